"""Records what easyroutine 1.1.5 gives on a tiny Llama, where it is right; run by hand, in its environment:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers==4.51.1 "numpy<2" pandas einops pyyaml rich \
        python-dotenv pillow pydantic accelerate && ENV/bin/pip install --no-deps easyroutine==1.1.5
    ENV/bin/python -m tests.interp.compat.easyroutine.record

Into `recorded/llama.json.gz`: the weights' digest, and what each call gave.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.interp.compat.transformer_lens.recorded_models import OTHER, PROMPT, digest, made, words

FILE = Path(__file__).parent / "recorded" / "llama.json.gz"
NAME = "hf-internal-testing/tiny-random-LlamaForCausalLM"  # the one text model that easyroutine loads

FLAGS = (
    "resid_in", "resid_out", "resid_in_post_layernorm", "attn_in", "attn_out", "mlp_out", "values", "keys", "queries",
    "embed", "attn_pattern", "head_queries", "head_out", "head_values_projected", "last_layernorm",
)  # fmt: skip
POSITIONS: tuple[list[Any], ...] = (["all"], ["last", "last-2"], [0, (1, 3)], ["inputs-partition-1", "last"])
PIVOTS = [2, 4]
HALVES = dict(multiplication_value=0.5)
# type, activation, positions, and what else: `patch` stands for what the other prompt has there.
INTERVENTIONS: dict[str, dict[str, Any]] = {
    "columns": dict(type="columns", activation="pattern_L1H2", token_positions=["last-2"]),
    "columns halved": dict(type="columns", activation="pattern_L0H1", token_positions=["last-2"], **HALVES),
    "rows": dict(type="rows", activation="pattern_L1H3", token_positions=["last"]),
    "grid": dict(type="grid", activation="pattern_L0H0", token_positions=(["last"], [0, 2])),
    **{
        f"{what} {key}": dict(type="full", activation=key, token_positions=["last-2"], **more)
        for key in ("resid_in_1", "resid_out_0", "attn_in_1", "attn_out_0", "mlp_out_0")
        for what, more in (("zeroed", {}), ("patched", {"patch": True}))
    },
}


def plain(value: Any) -> Any:
    """Numbers and lists in place of tensors."""
    if type(value).__name__ == "ValueWithInfo":
        value = value.value() if callable(value.value) else value.value
    if isinstance(value, torch.Tensor):
        rounded = torch.as_tensor(value.detach().float().tolist(), dtype=torch.float64)
        return [float(f"{one:.6g}") for one in rounded.flatten().tolist()], list(value.shape)
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return value


def main() -> None:
    from easyroutine.interpretability import ExtractionConfig, HookedModel, Intervention, models
    from transformers import GenerationConfig

    module, tokenizer = made("llama", attn_implementation="eager"), words()
    models.LlamaForCausalLM.from_pretrained = staticmethod(lambda *_, **__: module)
    models.LlamaTokenizer = SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    model = HookedModel.from_pretrained(NAME, device_map="cpu", torch_dtype=torch.float32)
    told: dict[str, Any] = {"digest": digest(made("llama"))}
    given, other = (
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(1, 5).long()} for ids in (PROMPT, OTHER)
    )
    for flag in FLAGS:
        cache = model.forward(given, ["all"], extraction_config=ExtractionConfig(**{f"extract_{flag}": True}))
        told[f"extract_{flag}"] = {
            key: plain(value) for key, value in cache.items() if key not in ("mapping_index", "token_dict")
        }
    told["positions"] = {}
    for positions in POSITIONS:
        config = ExtractionConfig(extract_resid_out=True)
        cache = model.forward(given, positions, pivot_positions=PIVOTS, extraction_config=config)
        told["positions"][json.dumps(positions)] = {
            "mapping_index": list(cache["mapping_index"].values()),
            "resid_out_1": plain(cache["resid_out_1"]),
        }
    flags = {f"extract_{flag}": True for flag in FLAGS[:6]}
    held = model.forward(other, ["last-2"], extraction_config=ExtractionConfig(**flags))
    told["interventions"] = {}
    for name, asked in INTERVENTIONS.items():
        asked = dict(asked)
        if asked.pop("patch", False):
            asked["patching_values"] = held[asked["activation"]]
        cache = model.forward(given, ["all"], interventions=[Intervention(**asked)])
        told["interventions"][name] = plain(cache["logits"])
    told["predict"] = {
        key: round(value, 6) for key, value in model.predict(k=4, inputs=given, target_token_positions=["last"]).items()
    }
    told["generate"] = model.generate(given, GenerationConfig(max_new_tokens=4, eos_token_id=None))[0].tolist()
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(gzip.compress(json.dumps(told, separators=(",", ":"), sort_keys=True).encode(), mtime=0))
    print(f"{FILE.name}: {FILE.stat().st_size} bytes, {len(told)} entries")


if __name__ == "__main__":
    main()
