"""Loading nnterp's `StandardizedTransformer`: its arguments, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.compat.nnterp import ModuleAccessor, StandardizedTransformer
from interp.compat.nnterp.interventions import logit_lens
from interp.compat.nnterp.rename_utils import RenameConfig, RenamingError
from interp.errors import InterpError
from interp.model import loading
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, hidden, ids_of, next_probs
from tests.interp.reference import build
from tests.tiny import tiny_tokenizer

TEXT = PROMPTS[0]


def test_arguments_are_nnterps_in_their_order() -> None:
    parameters = list(inspect.signature(StandardizedTransformer.__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in parameters] == [
        ("model", inspect.Parameter.empty),
        ("trust_remote_code", False),
        ("check_renaming", True),
        ("remote", False),
        ("allow_dispatch", True),
        ("enable_attention_probs", False),
        ("check_attn_probs_with_trace", True),
        ("allow_multimodal", False),
        ("rename_config", None),
        ("kwargs", inspect.Parameter.empty),
    ]
    assert issubclass(StandardizedTransformer, interp.StandardizedTransformer)


def test_from_a_folder(model_folder: Callable[[str], Path]) -> None:
    model = StandardizedTransformer(str(model_folder("gpt2")), False, True, dispatch=True, dtype="float32")
    assert (model.num_layers, model.num_heads, model.hidden_size, model.vocab_size) == (4, 4, 32, 400)
    assert model._model is model._module and type(model._model).__name__ == "GPT2LMHeadModel"
    assert model.model._module is model._model.transformer
    with torch.no_grad(), model.trace(TEXT):
        logits = model.logits[0, -1].clone().save()
    torch.testing.assert_close(logits.softmax(-1), next_probs("gpt2", TEXT), **CLOSE)


def test_weights_are_placed_by_accelerate_unless_said_otherwise(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_model(*args: Any, device_map: Any, **kwargs: Any) -> Any:
        asked.append(device_map)
        return loading.load_model(*args, device_map=device_map, **kwargs)

    monkeypatch.setattr("interp.model.transformer.load_model", load_model)
    folder = str(model_folder("gpt2"))
    StandardizedTransformer(folder, check_renaming=False)
    StandardizedTransformer(folder, check_renaming=False, device_map="cpu")
    assert asked == ["auto", "cpu"]


def test_remote_loads_no_weights(model_folder: Callable[[str], Path]) -> None:
    model = StandardizedTransformer(str(model_folder("gpt2")), remote=True)
    assert model.device.type == "meta" and model.num_layers == 4
    with model.scan(TEXT):
        shape = tuple(model.layers_output[1].shape)
        assert shape == (1, ids_of(TEXT).shape[1], 32)


@pytest.mark.parametrize(
    "family", ["gpt_neox", "falcon", "biogpt", "modernbert-decoder", "opt_350m", "mamba", "olmo_hybrid", "nanochat"]
)
def test_families_of_every_kind(family: str) -> None:
    """The backbone is `model`; the lens of the last layer is the model's own prediction."""
    model = StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer())
    assert model.model._module is getattr(model._model, model._model.base_model_prefix)
    lens = logit_lens(model, PROMPTS)
    assert isinstance(lens, Tensor)
    with torch.no_grad():
        logits = [model._model(input_ids=ids_of(prompt), use_cache=False).logits[0, -1] for prompt in PROMPTS]
    torch.testing.assert_close(lens[:, -1], torch.stack(logits).softmax(-1), **CLOSE)


def test_user_names_come_beside_the_standard_ones() -> None:
    model = StandardizedTransformer(build("gpt2"), tokenizer=tiny_tokenizer(), rename={"h": "blocks"})
    assert model.model.blocks is model.layers
    assert model.layers[0].self_attn._module is model._model.transformer.h[0].attn


def test_padding_side_can_be_chosen_in_tokenizer_kwargs(model_folder: Callable[[str], Path]) -> None:
    folder = str(model_folder("llama"))
    model = StandardizedTransformer(folder, tokenizer_kwargs={"padding_side": "right"})
    assert model.tokenizer.padding_side == "right"
    assert StandardizedTransformer(folder).tokenizer.padding_side == "left"


def test_a_rename_config_by_path_and_by_alternatives() -> None:
    config = RenameConfig(layers_name=".transformer.h", attn_name=["mha", "attn"], ln_final_name="ln_f")
    model = StandardizedTransformer(build("gpt2"), tokenizer=tiny_tokenizer(), rename_config=config)
    with torch.no_grad(), model.trace(TEXT):
        value = model.attentions_output[1][0].clone().save()
    torch.testing.assert_close(value, hidden("gpt2", TEXT, "attn_out.1"), **CLOSE)


def test_what_cannot_be_renamed_is_a_renaming_error() -> None:
    with pytest.raises(RenamingError, match="no such module"):
        StandardizedTransformer(
            build("gpt2"), tokenizer=tiny_tokenizer(), rename_config=RenameConfig(layers_name="blocks")
        )
    wrong = RenameConfig(ln_final_name=".transformer.h.0.ln_1")
    with pytest.raises(RenamingError, match="readout"):
        StandardizedTransformer(build("gpt2"), tokenizer=tiny_tokenizer(), rename_config=wrong)


def test_eager_attention_is_loaded_where_probabilities_are_enabled(model_folder: Callable[[str], Path]) -> None:
    folder = str(model_folder("llama"))
    assert StandardizedTransformer(folder, enable_attention_probs=True).attn_implementation == "eager"
    both = StandardizedTransformer(folder, enable_attention_probs=True, attn_implementation="eager")
    assert both.attn_implementation == "eager"
    assert StandardizedTransformer(folder).attn_implementation == "sdpa"
    in_memory = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), enable_attention_probs=True)
    assert in_memory.attn_implementation == "eager"
    with pytest.raises(InterpError, match="loads the model with eager attention"):
        StandardizedTransformer(folder, enable_attention_probs=True, attn_implementation="sdpa")


def test_a_keyword_that_nothing_takes_is_left_out_with_a_warning(model_folder: Callable[[str], Path]) -> None:
    folder = str(model_folder("llama"))
    with pytest.warns(UserWarning, match="'attn_rename'"), pytest.warns(UserWarning, match="'mlp_rename'"):
        model = StandardizedTransformer(folder, attn_rename="mha", mlp_rename="ffn", rms_norm_eps=0.1)
    assert model.config.rms_norm_eps == 0.1  # the others count
    plain = interp.StandardizedTransformer(folder, rms_norm_eps=0.1)
    with torch.no_grad():
        assert torch.equal(model.trace(TEXT, trace=False).logits, plain.trace(TEXT, trace=False).logits)
    with pytest.raises(InterpError, match="attn_rename"):
        interp.StandardizedTransformer(folder, attn_rename="mha")
    with pytest.warns(UserWarning, match="'attn_rename'"):
        StandardizedTransformer(build("gpt2"), tokenizer=tiny_tokenizer(), attn_rename="mha")


@pytest.mark.parametrize(
    ("family", "backbone", "paths"),
    [
        ("llama", "model", {"layers": "layers", "ln_final": "norm", "embed_tokens": "embed_tokens"}),
        ("gpt2", "transformer", {"layers": "h", "ln_final": "ln_f", "embed_tokens": "wte"}),
        ("gpt_neox", "gpt_neox", {"layers": "layers", "ln_final": "final_layer_norm", "embed_tokens": "embed_in"}),
        ("bloom", "transformer", {"layers": "h", "ln_final": "ln_f", "embed_tokens": "word_embeddings"}),
        ("phi", "model", {"layers": "layers", "ln_final": "final_layernorm", "embed_tokens": "embed_tokens"}),
        ("falcon", "transformer", {"layers": "h", "ln_final": "ln_f", "embed_tokens": "word_embeddings"}),
    ],
)
def test_names_stand_at_every_depth(family: str, backbone: str, paths: dict[str, str]) -> None:
    model = StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer())
    accessor = ModuleAccessor(model._model)
    holder = model._model.get_submodule(backbone)
    assert model.model._module is accessor.model is holder
    for name, path in paths.items():
        module = holder.get_submodule(path)
        assert getattr(model.model, name)._module is getattr(model, name)._module is module
        assert getattr(accessor.nn_model.model, name)._module is getattr(accessor, name) is module
    seen: list[Any] = []
    for module in (holder.get_submodule(paths["layers"])[1], holder.get_submodule(paths["ln_final"])):
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model._model(input_ids=ids_of(TEXT))
        with model.trace(TEXT):
            after = model.model.layers[1].output
            after = (after if isinstance(after, Tensor) else after[0]).clone().save()
            normed = model.model.ln_final.output.clone().save()
    torch.testing.assert_close(after, seen[0] if isinstance(seen[0], Tensor) else seen[0][0], **CLOSE)
    torch.testing.assert_close(normed, seen[1], **CLOSE)


def test_names_stand_at_every_depth_of_a_backbone_inside_another() -> None:
    model = StandardizedTransformer(build_family("opt"), tokenizer=tiny_tokenizer())
    decoder = model._model.model.decoder
    for holder in (model, model.model, model.model.model):
        assert holder.layers._module is decoder.layers
        assert holder.ln_final._module is decoder.final_layer_norm
        assert holder.embed_tokens._module is decoder.embed_tokens
    assert model.model.decoder._module is model.model.model._module is decoder
