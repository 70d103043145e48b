"""A trace sent to a server: another process, which has nnsight and the model, and no `interp`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.modeling import huggingface
from transformers import AutoModelForCausalLM

from interp import StandardizedTransformer
from tests.interp.model.plain import IDS, changing

# What a server does with a request, as nnsight's `RequestModel` says.
SERVER = """
import sys
import torch
sys.modules["interp"] = None
sys.path[:] = [path for path in sys.path if not path.endswith(sys.argv[2])]
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing import tracer as tracing
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
torch.set_num_threads(1)
model = TransformersModel(AutoModelForCausalLM.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder))
request = RequestModel.deserialize(sys.stdin.buffer.read(), model._remoteable_persistent_objects(), compress=True)
tracing.inc()
request.execute(request.info.code)
saved = {name: value for name, value in request.info.frame.f_locals.items() if id(value) in tracing._saves()}
torch.save(saved, sys.stdout.buffer)
"""


@torch.no_grad()
def test_a_trace_runs_where_interp_is_not(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    sent = []

    def request(self: RemoteBackend, envelope: Any, tracer: Any) -> Any:
        sent.append(envelope)
        command = [sys.executable, "-c", SERVER, str(folder), str(Path(__file__).parents[3])]
        ran = subprocess.run(command, input=self._serialize(tracer), capture_output=True, check=False, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr.decode()
        (tmp_path / "result").write_bytes(ran.stdout)
        return torch.load(tmp_path / "result")

    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setitem(huggingface._ID_CACHE, str(folder), "owner/name")  # what the hub would say
    model = StandardizedTransformer(folder, remote=True)
    with model.session(remote=True):
        with model.trace(IDS):
            source = model.read("resid_post.1").clone()
        with model.trace(IDS):
            model.write("resid_post.2", source)
            pattern = model.read("pattern.3").clone().save()
            z = model.read("z.3").clone().save()
            early = model.readout(source).save()
            logits = model.logits.save()
        with model.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                model.skip_layers(1, 2)
                skipped = model.logits.save()
            with tracer.invoke(IDS[1:]):
                model.skip_layers(1, 2)
                model.write("q.3", torch.zeros_like(model.read("q.3")))
                uniform = model.attention_probabilities[3].clone().save()
        with model.generate(IDS, max_new_tokens=3, do_sample=False) as tracer:
            for _ in tracer.iter[:3]:
                model.steer(1, torch.ones(32), factor=4.0)
            ids = tracer.result.save()
    assert sent[0].model_key.startswith("nnsight.modeling.transformers.TransformersModel:")

    plain: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    layers = plain.model.layers
    first, second = plain(IDS, output_hidden_states=True).hidden_states[1:3]
    torch.testing.assert_close(early, plain.lm_head(plain.model.norm(second)))
    seen = []
    watch = layers[3].self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with changing(layers[2], lambda *_: second):
        expected = plain(IDS, output_attentions=True)
    watch.remove()
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(pattern, expected.attentions[3])
    torch.testing.assert_close(z.flatten(-2), seen[0])
    with changing(layers[2], lambda *_: first):
        torch.testing.assert_close(skipped, plain(IDS).logits[:1])
    causal = torch.ones(6, 6).tril()
    torch.testing.assert_close(uniform, (causal / causal.sum(-1, keepdim=True)).expand(1, 4, 6, 6))
    with changing(layers[1], lambda hidden, _: hidden + 4):
        assert torch.equal(ids, plain.generate(IDS, max_new_tokens=3, do_sample=False))
