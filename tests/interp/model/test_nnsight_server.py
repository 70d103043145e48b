"""Traces sent to a server: another process, which has nnsight and the model, and no `interp`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.modeling import huggingface
from transformers import AutoModelForCausalLM

from interp import StandardizedTransformer
from interp.activations import collect
from interp.compat.nnterp import StandardizedTransformer as NnterpTransformer
from interp.lenses import Latents, logit_lens, patchscope_lens
from interp.sites import parse_sites
from tests.interp.model.plain import IDS, changing

# What a server does with requests, as nnsight's `RequestModel` says.
SERVER = """
import sys
import torch
sys.modules["interp"] = None
folder, ours = sys.argv[1:]
sys.path[:] = [path for path in sys.path if path != ours]
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing import tracer as tracing
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
model = TransformersModel(AutoModelForCausalLM.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder))
for path in map(str.strip, sys.stdin):
    with open(path, "rb") as sent:
        request = RequestModel.deserialize(sent.read(), model._remoteable_persistent_objects(), compress=True)
    tracing.inc()
    request.execute(request.info.code)
    saved = {name: value for name, value in request.info.frame.f_locals.items() if id(value) in tracing._saves()}
    torch.save(saved, path + ".result")
    tracing.dec()
    print("done")
"""
Ask = Callable[[bytes], Any]


@pytest.fixture(scope="module")
def server(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A server of the tiny Llama: what is packed goes in, what was saved comes out."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-u", "-c", SERVER, str(model_folder("llama")), str(Path(__file__).parents[3])]
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0, cwd=folder
        ) as process,
    ):

        def ask(blob: bytes) -> Any:
            assert process.stdin is not None and process.stdout is not None
            path = folder / "request"
            path.write_bytes(blob)
            with suppress(BrokenPipeError):
                process.stdin.write(f"{path}\n".encode())
            assert process.stdout.readline() == b"done\n", (folder / "errors").read_text()
            return torch.load(f"{path}.result")

        yield ask
        process.kill()


@pytest.mark.parametrize("weights", ["here too", "there"])
@pytest.mark.parametrize("kind", [StandardizedTransformer, NnterpTransformer], ids=["interp", "nnterp"])
@torch.no_grad()
def test_a_session_runs_where_interp_is_not(
    kind: type[StandardizedTransformer],
    weights: str,
    server: Ask,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = model_folder("llama")
    sent = []

    def request(self: RemoteBackend, envelope: Any, tracer: Any) -> Any:
        sent.append(envelope)
        return server(self._serialize(tracer))

    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setitem(huggingface._ID_CACHE, str(folder), "owner/name")  # what the hub would say
    model = kind(folder, remote=weights == "there")
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


@pytest.mark.parametrize("weights", ["here too", "there"])
def test_collecting_and_lenses_run_where_interp_is_not(
    weights: str, server: Ask, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, requests = model_folder("llama"), []

    def request(self: RemoteBackend, envelope: Any, tracer: Any) -> Any:
        requests.append(envelope)
        return server(self._serialize(tracer))

    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setitem(huggingface._ID_CACHE, str(folder), "owner/name")
    here, model = StandardizedTransformer(folder), StandardizedTransformer(folder, remote=weights == "there")
    ids, positions = [[1, 5, 6, 7], [1, 9, 8], [1, *range(4, 14)]], [[3, 0], [2], [5, 10]]
    sites = parse_sites("q.1 k.1 scores.1 pattern.2 z.3.h1 head_out.3 resid_post.* logits", 4, 4, 2)
    expected = collect(here, ids, sites, positions)
    found = collect(model, ids, sites, positions, batch_tokens=12, remote=True)
    assert len(requests) == 1  # for all its batches
    for kind, values in expected.items():
        torch.testing.assert_close(found[kind], values, equal_nan=True, atol=1e-5, rtol=1e-4)

    generator = torch.Generator().manual_seed(0)
    latents, reference = torch.randn(4, 3, 32, generator=generator), torch.randn(3, 32, generator=generator)
    groups = [[[5, 6], [7], []], [[9], [], [4]], [[3, 3], [1], [2]]]
    given: dict[str, Any] = dict(targets=groups, top_k=3, batch_size=2)
    into = dict(target_prompts=[[1, 5, 6, 7], [1, 4, 4], [1, 4, 4, 7, 8]], target_positions=[[2], [1], [0]])
    known, plain = Latents(latents, range(4), reference), Latents(latents, range(4))
    for lens, source, options in (
        (logit_lens, known, {}),
        (logit_lens, plain, dict(inverted=True)),
        (patchscope_lens, known, into),
        (patchscope_lens, plain, dict(**into, patch="from_layer", site="attn_in")),
    ):
        local = lens(here, source, **given, **options).arrays()  # type: ignore[operator]
        far = lens(model, source, **given, **options, remote=True).arrays()  # type: ignore[operator]
        assert far.keys() == local.keys()
        for name, values in local.items():
            assert far[name].dtype == values.dtype
            np.testing.assert_allclose(far[name], values, atol=1e-5, rtol=1e-4, err_msg=name)
    assert len(requests) == 5
