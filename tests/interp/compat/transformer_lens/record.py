"""Records what TransformerLens 4.3.0 gives on the tiny models of `recorded_models.py`; run by hand, in its environment:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformer_lens==4.3.0
    ENV/bin/python -m tests.interp.compat.transformer_lens.record

One file a family in `recorded/`: the tensors that differ, and in the header which name has which. Arguments
choose: families, `scenarios`, and `script` (the one in `examples`).
"""

from __future__ import annotations

import gzip
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save
from transformers import AutoTokenizer

from tests.interp.compat.transformer_lens.recorded_models import (
    ANSWERS,
    FAMILIES,
    FOLDER,
    OTHER,
    PROMPT,
    SCRIPT,
    digest,
    made,
    words,
)
from tests.interp.compat.transformer_lens.scenarios import SCENARIOS, numbers

PATCHES = (
    "resid_pre", "resid_mid", "attn_out", "mlp_out", "attn_head_out_by_pos", "attn_head_q_by_pos", "attn_head_k_by_pos",
    "attn_head_v_by_pos", "attn_head_pattern_by_pos", "attn_head_out_all_pos", "attn_head_q_all_pos",
    "attn_head_k_all_pos", "attn_head_v_all_pos", "attn_head_pattern_all_pos", "attn_head_all_pos_every", "block_every",
)  # fmt: skip
GATED: dict[str, tuple[str, ...]] = {
    "attn_result": ("attn.hook_result",),
    "split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "hook_mlp_in": ("hook_mlp_in",),
    "attn_in": ("hook_attn_in",),
}
WEIGHTS = (
    "W_E",
    "W_U",
    "b_U",
    "W_Q",
    "W_K",
    "W_V",
    "W_O",
    "b_Q",
    "b_K",
    "b_V",
    "b_O",
    "W_in",
    "W_out",
    "b_in",
    "b_out",
)


class Recording:
    """Tensors by name, each different one kept once, and anything else that JSON holds."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self._keys: dict[bytes, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().clone().contiguous()
        if not tensor.is_floating_point():
            tensor = tensor.to(torch.int32)
        content = repr((tuple(tensor.shape), tensor.dtype)).encode() + tensor.numpy().tobytes()
        key = self._keys.setdefault(content, str(len(self._keys)))
        self.tensors[key] = tensor
        self.names[name] = key

    def add_all(self, group: str, tensors: Any) -> None:
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                self.add(f"{group}/{name}", tensor)

    def save(self, path: Path) -> None:
        facts = json.dumps({"names": self.names, **self.facts}, separators=(",", ":"), sort_keys=True)
        path.write_bytes(gzip.compress(save(self.tensors, {"recorded": facts}), mtime=0))


def boot(family: str, folder: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    module = made(family, attn_implementation="eager")
    words().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(f"tiny/{family}", hf_model=module, tokenizer=tokenizer)
    return bridge.eval()


def metric(logits: torch.Tensor) -> torch.Tensor:
    return (logits[:, -1, ANSWERS[0]] - logits[:, -1, ANSWERS[1]]).mean()


def record_run(told: Recording, bridge: Any, ids: torch.Tensor, group: str) -> None:
    """The output and every hook point's tensor."""
    logits, cache = bridge.run_with_cache(ids)
    told.add(f"{group}/logits", logits)
    first = {name: point.name for name, point in bridge.hook_dict.items()}
    told.add_all(group, {name: tensor for name, tensor in cache.items() if first[name] == name})
    told.facts["aliases"] = {name: first[name] for name in cache if first[name] != name}


def record_edits(told: Recording, bridge: Any, ids: torch.Tensor) -> None:
    """The last position's first logits after an edit at each point; None where TransformerLens calls no hook."""
    edits: dict[str, list[float] | None] = {}
    for name, point in bridge.hook_dict.items():
        called: list[str] = []

        def edit(tensor: torch.Tensor, hook: Any, called: list[str] = called) -> torch.Tensor | None:
            called.append(hook.name)
            return tensor * 0.5 + 0.1 if tensor.is_floating_point() else None

        if point.name == name and bridge._gated_hook_reason(name) is None:
            logits = bridge.run_with_hooks(ids, fwd_hooks=[(name, edit)])
            edits[name] = [round(each, 5) for each in logits[0, -1, :4].tolist()] if called else None
    told.facts["edits"] = edits


def record_analysis(told: Recording, bridge: Any, ids: torch.Tensor, group: str) -> None:
    """What the methods of ActivationCache give."""
    _, cache = bridge.run_with_cache(ids)
    both = {}
    both["accumulated_resid"], labels = cache.accumulated_resid(layer=-1, incl_mid=True, return_labels=True)
    told.facts[f"{group} accumulated labels"] = labels
    both["accumulated_resid ln"] = cache.accumulated_resid(layer=None, apply_ln=True, pos_slice=-1)
    both["accumulated_resid 1 -1"] = cache.accumulated_resid(layer=1, pos_slice=-1)
    both["accumulated_resid mlp_input"] = cache.accumulated_resid(layer=1, mlp_input=True)
    both["decompose_resid"], labels = cache.decompose_resid(layer=-1, return_labels=True)
    told.facts[f"{group} decomposed labels"] = labels
    for mode in ("mlp", "attn"):
        both[f"decompose_resid {mode}"] = cache.decompose_resid(
            mode=mode, apply_ln=True, incl_embeds=False, pos_slice=-1
        )
    both["stack_head_results"], labels = cache.stack_head_results(
        return_labels=True, incl_remainder=True, pos_slice=(3, 5)
    )
    told.facts[f"{group} head labels"] = labels
    both["stack_head_results 1 ln"] = cache.stack_head_results(layer=1, apply_ln=True, pos_slice=-1)
    both["stack_activation"] = cache.stack_activation("pattern")
    both["logit_attrs"] = cache.logit_attrs(both["decompose_resid"], ANSWERS[0])
    both["logit_attrs difference"] = cache.logit_attrs(
        cache.decompose_resid(layer=-1, pos_slice=-1),
        torch.tensor([ANSWERS[0]]),
        incorrect_tokens=torch.tensor([ANSWERS[1]]),
        pos_slice=-1,
    )
    if not bridge.cfg.gated_mlp:
        both["get_neuron_results"] = cache.get_neuron_results(0, neuron_slice=(0, 3), pos_slice=-1)
    both["stack_neuron_results"], labels = cache.stack_neuron_results(
        -1, pos_slice=-1, neuron_slice=[0, 5], return_labels=True, incl_remainder=True
    )
    told.facts[f"{group} neuron labels"] = labels
    full, labels = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
    both["get_full_resid_decomposition"] = full
    told.facts[f"{group} full labels"] = labels
    both["apply_ln_to_stack"] = cache.apply_ln_to_stack(both["decompose_resid"][:, :, 2:4], layer=1, pos_slice=(2, 4))
    both["remove_batch_dim"] = bridge.run_with_cache(ids)[1].remove_batch_dim()["pattern", 0]
    told.add_all(group, both)


def record_patching(told: Recording, bridge: Any, ids: torch.Tensor, other: torch.Tensor) -> None:
    from transformer_lens import patching

    _, clean = bridge.run_with_cache(ids)
    for name in PATCHES:
        told.add(f"patching/{name}", getattr(patching, f"get_act_patch_{name}")(bridge, other, clean, metric))
    told.add(
        "patching/pattern_dest_src",
        patching.get_act_patch_attn_head_pattern_dest_src_pos(
            bridge, other[:, :3], bridge.run_with_cache(ids[:, :3])[1], metric
        ),
    )
    _, corrupted = bridge.run_with_cache(other)
    for part in ("q",) if bridge.cfg.n_key_value_heads else ("q", "k", "v"):
        told.add(
            f"patching/direct_path {part}",
            patching.get_act_patch_direct_path(
                bridge, other, clean, corrupted, metric, 0, 1, component=part, verbose=False
            ),
        )


def record_more(told: Recording, bridge: Any, ids: torch.Tensor, other: torch.Tensor) -> None:
    """Gated hook points, gradients, slices, padding, generation and tokens."""
    for flag, ends in GATED.items():
        setter = getattr(bridge, f"set_use_{flag}")
        setter(True)
        _, cache = bridge.run_with_cache(ids, names_filter=lambda name, ends=ends: name.endswith(ends))
        told.add_all("gated", cache)
        setter(False)

    names = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_q", "blocks.1.attn.hook_pattern", "blocks.1.hook_mlp_out"]
    _, cache = bridge.run_with_cache(ids, names_filter=names, incl_bwd=True, return_type="loss")
    told.add_all("gradient", {name: tensor for name, tensor in cache.items() if name.endswith("_grad")})
    bridge.zero_grad()

    for label, places in {"-1": -1, "(1, 4)": (1, 4), "[0, 3]": [0, 3], "(0, 5, 2)": (0, 5, 2)}.items():
        for name in ("hook_embed", "blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern"):
            told.add(f"slice/{label} {name}", bridge.run_with_cache(ids, names_filter=name, pos_slice=places)[1][name])

    padded = torch.cat([torch.tensor([[0, 0, *PROMPT[0][:3]]]), other])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    told.add("padded/logits", bridge(padded, attention_mask=mask))
    told.add("padded/resid", bridge.run_with_cache(padded, attention_mask=mask)[1]["blocks.1.hook_resid_mid"])
    told.add("generated", bridge.generate(ids, max_new_tokens=4, do_sample=False, verbose=False, return_type="tokens"))
    told.facts["tokens"] = {
        "to_tokens": bridge.to_tokens("a b no").tolist(),
        "to_tokens no bos": bridge.to_tokens("a b no", prepend_bos=False).tolist(),
        "to_tokens two": bridge.to_tokens(["a b no", "c d"]).tolist(),
        "to_string": bridge.to_string(ids[0]),
        "to_str_tokens": bridge.to_str_tokens("a b no"),
        "to_str_tokens ids": bridge.to_str_tokens(ids[0]),
        "to_single_token": bridge.to_single_token("no"),
        "to_single_str_token": bridge.to_single_str_token(7),
    }


def record(family: str, folder: str) -> None:
    """One family's file."""
    told = Recording()
    ids, other = torch.tensor(PROMPT), torch.tensor(OTHER)
    bridge = boot(family, folder)
    with torch.no_grad():
        plain = made(family, attn_implementation="eager")(ids).logits
    told.facts["digest"] = digest(made(family))
    told.facts["cfg"] = {name: value for name, value in bridge.cfg.to_dict().items() if not callable(value)}
    told.facts["cfg"]["dtype"] = str(bridge.cfg.dtype)
    record_run(told, bridge, ids, "cache")
    difference = float((told.tensors[told.names["cache/logits"]] - plain).abs().max())
    told.add("loss", bridge(ids, return_type="loss"))
    told.add("loss_per_token", bridge(ids, return_type="loss", loss_per_token=True))
    with torch.no_grad():
        record_edits(told, bridge, ids)
    more = family in ("gpt2", "llama")
    if more:
        record_more(told, bridge, ids, other)
        record_patching(told, bridge, ids, other)
        record_analysis(told, bridge, ids, "analysis")
        bridge.enable_compatibility_mode()
        record_run(told, bridge, ids, "folded")
        record_analysis(told, bridge, ids, "folded analysis")
        if family == "gpt2":
            told.add_all("folded weights", {name: getattr(bridge, name) for name in WEIGHTS})
    path = FOLDER / f"{family}.safetensors.gz"
    told.save(path)
    print(f"{family}: {len(told.names)} names, {path.stat().st_size} bytes; logits differ by {difference:.1e}")


def record_scenarios() -> None:
    """What the pieces that need no model do."""
    import transformer_lens
    from transformer_lens import hook_points, utilities

    lens = SimpleNamespace(
        HookPoint=hook_points.HookPoint,
        HookedRootModule=transformer_lens.HookedRootModule,
        Config=transformer_lens.TransformerBridgeConfig,
        KeyValueCache=transformer_lens.TransformerLensKeyValueCache,
        utilities=utilities,
    )
    told = {name: run(lens) for name, run in SCENARIOS.items()}
    (FOLDER / "scenarios.json").write_text(json.dumps(told, separators=(",", ":")) + "\n", encoding="utf-8")


def record_script() -> None:
    """What the example script prints and computes."""
    names = runpy.run_path(str(SCRIPT))
    told = {name: numbers(each) for name, each in names["results"].items()}
    (FOLDER / "script.json").write_text(json.dumps(told, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    FOLDER.mkdir(exist_ok=True)
    others = {"scenarios": record_scenarios, "script": record_script}
    with tempfile.TemporaryDirectory() as temporary:
        for each in sys.argv[1:] or [*FAMILIES, *others]:
            others[each]() if each in others else record(each, temporary)
