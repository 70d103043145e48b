"""The table against transformers: every family, tiny and random, proved with torch hooks on a model nothing wraps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from interp.architectures import ARCHITECTURES, REFUSED, Architecture, Sublayer, candidates, known_model_types
from tests.families import FAMILIES
from tests.interp.architectures import plain
from tests.vision import FAMILIES as SEEING

# What transformers builds from a config that has a text model of its own.
OPENED = {
    "gpt-sw3": "gpt2",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "dots3_note": "dots3_note_text",
    "emu3": "emu3_text_model",
}
PROMPTS = [[1, 17, 250, 33, 94, 301, 12, 77], [1, 88, 5, 260, 71], [1, 44, 9]]


def test_every_model_type_has_one_record_for_each_of_its_layouts() -> None:
    layouts = defaultdict(list)
    for record in ARCHITECTURES:
        for model_type in record.model_types:
            layouts[model_type].append(record.when)
    for model_type, conditions in layouts.items():
        assert len(set(conditions)) == len(conditions), model_type
        assert [when for when in conditions if not when] == [()], f"{model_type}: one record without a condition"
        assert conditions[-1] == (), f"{model_type}: the record without a condition would hide those behind it"


def test_every_causal_language_model_of_transformers_is_in_the_table_or_refused() -> None:
    known = set(known_model_types())
    assert known & set(REFUSED) == set()
    opened = {OPENED.get(model_type, model_type) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert opened - known - set(REFUSED) == set()


def test_every_model_type_of_the_table_is_proved_here() -> None:
    built = {plain.plain(name).config.model_type for name in FAMILIES}  # type: ignore[union-attr]
    seeing = {family.model_type for family in SEEING.values()}  # in tests/interp/model/test_vision.py
    assert built <= set(known_model_types()) <= built | seeing


@pytest.mark.parametrize("name", FAMILIES)
def test_the_record_is_the_family_s_own_and_names_modules_that_are_there(name: str) -> None:
    model: Any = plain.plain(name)
    found = candidates(model.config, model)  # raises where a module is missing
    record = plain.record_of(name)
    assert found.known
    assert found.records == (record,)
    assert model.get_submodule(record.embedding) is model.get_input_embeddings()
    assert model.get_submodule(record.head) is model.get_output_embeddings()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_compute_as_the_record_says(name: str) -> None:
    plain.prove(plain.plain(name), plain.record_of(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_layers_return_and_in_which_order_they_run(name: str) -> None:
    model, record = plain.plain(name), plain.record_of(name)
    returned: list[Any] = []
    called: list[tuple[int, str]] = []
    hooks = []
    for index, layer in enumerate(plain.layers_of(model, record)):
        hooks.append(layer.register_forward_hook(lambda _, args, output: returned.append(output)))
        for role, part in record.sublayers(layer):
            module = layer.get_submodule(part.module)
            hooks.append(
                module.register_forward_hook(lambda _, args, output, at=(index, role): called.append(at))  # type: ignore[misc]
            )
    model(input_ids=plain.IDS, use_cache=False)
    for hook in hooks:
        hook.remove()
    assert {not isinstance(output, Tensor) for output in returned} == {record.layer_returns_tuple}
    mixing = ["mixer", "attention"] if record.mixer_first else ["attention", "mixer"]
    assert called == sorted(called, key=lambda at: (at[0], [*mixing, "mlp"].index(at[1])))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_z_has_a_slice_for_each_head(name: str) -> None:
    model, record = plain.plain(name), plain.record_of(name)
    with plain.captured(plain.places_of(model, record)) as values:
        model(input_ids=plain.IDS, use_cache=False)
    for index, layer in enumerate(plain.layers_of(model, record)):
        attention = dict(record.sublayers(layer)).get("attention")
        if attention is None or attention.projection is None:
            continue
        heads = number_of_heads(layer.get_submodule(attention.module), model.config)
        width = values[f"{index}.attention.projection"].shape[-1]
        assert width % heads == 0, f"{width} numbers in {heads} heads at layer {index}"


def number_of_heads(attention: nn.Module, config: Any) -> int:
    """Of this layer: in some families they differ from layer to layer."""
    for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
        if isinstance(heads := getattr(attention, name, None), int):
            return heads
    return config.get_text_config().num_attention_heads


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_residual_stream_between_the_stages_is_written_in_place(name: str) -> None:
    """The input of `middle`, changed in place, is what the MLP's output is added to."""
    model, record = plain.plain(name), plain.record_of(name)
    for index, layer in enumerate(plain.layers_of(model, record)):
        middle = record.of_layer(layer).middle
        if middle is None:
            continue
        written: list[Tensor] = []

        def write(_: nn.Module, args: Any, kwargs: Any, written: list[Tensor] = written) -> None:
            live = plain.argument(args, kwargs)
            live.copy_(live.flip(-2) * 0.5)
            written.append(plain.hidden(live).clone())

        hook = layer.get_submodule(middle).register_forward_pre_hook(write, with_kwargs=True)
        try:
            with plain.captured(plain.places_of(model, record)) as values:
                model(input_ids=plain.IDS, use_cache=False)
        finally:
            hook.remove()
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{index}.")}
        expected = plain.staged(layer, plain.stages(record, layer)[1], written[0], own)
        plain.same(own["after"], expected, f"output of layer {index}")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_mlp_reads_what_attention_adds_unless_they_are_parallel(name: str) -> None:
    """Sums alone cannot tell: resid_post == resid_pre + attn_out + mlp_out in both."""
    model, record = plain.plain(name), plain.record_of(name)
    for index, layer in enumerate(plain.layers_of(model, record)):
        there = dict(record.sublayers(layer))
        mixing = there.get("attention") or there.get("mixer")
        if mixing is None or "mlp" not in there:
            continue
        read = {}
        for silent in (False, True):
            module = layer.get_submodule(plain.sources(layer, mixing)[-1])
            hook = module.register_forward_hook(plain.silence if silent else lambda *_: None)
            try:
                with plain.captured({"mlp": (layer.get_submodule(there["mlp"].module), "input")}) as values:
                    model(input_ids=plain.IDS, use_cache=False)
            finally:
                hook.remove()
            read[silent] = values["mlp"]
        assert torch.equal(read[False], read[True]) == record.of_layer(layer).parallel, f"layer {index}"


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_left_padded_batch_gives_what_single_prompts_give(name: str) -> None:
    """With a mask and with positions that count from each prompt's first token."""
    model, record = plain.plain(name), plain.record_of(name)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if plain.takes(model, "position_ids"):
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with plain.zeroed_at_padding(model, record, mask):
        batched = model(**inputs, use_cache=False).logits[:, -1]
    for row, prompt in enumerate(PROMPTS):
        single = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        plain.same(batched[row], single, f"prompt {row}")


def spoiled(model: nn.Module, record: Architecture) -> Iterator[tuple[str, Architecture]]:
    """The record with one thing left out that it says of this model."""
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for name in ("logit_scale", "logit_divisor", "softcap"):
        if getattr(record, name) is not None and getattr(text, getattr(record, name), None) is not None:
            yield name, replace(record, **{name: None})
    if any(plain.has(model, path) for path in record.before_head):
        yield "before_head", replace(record, before_head=())
    if record.final_norm is not None:
        yield "final_norm", replace(record, final_norm=None)
    layers = plain.layers_of(model, record)
    for role in ("attention", "mixer", "mlp"):
        part: Sublayer | None = getattr(record, role)
        layer = next((layer for layer in layers if role in dict(record.sublayers(layer))), None)
        if part is None or layer is None or part is not dict(record.sublayers(layer))[role]:
            continue
        there = plain.sources(layer, part)
        if there != [part.module]:
            for source in there:
                yield f"{role} adds {source}", replace(record, **{role: without(part, source)})
        for field in fields(Sublayer):
            if field.name in ("scale", "residual_scale", "residual_norm", "norm_after") and getattr(part, field.name):
                yield f"{role} {field.name}", replace(record, **{role: replace(part, **{field.name: None})})


def without(part: Sublayer, source: str) -> Sublayer:
    """A sublayer that adds one module less, or itself in its place, and says nothing of its projection."""
    others = tuple(path for path in part.sources if path != source)
    return replace(part, added=others or (part.module,), projection=None)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_that_a_record_says_could_be_left_out(name: str) -> None:
    """The plain proof can fail; and the tiny models are such that every norm, scale and cap shows."""
    model, record = plain.plain(name), plain.record_of(name)
    for what, wrong in spoiled(model, record):
        with pytest.raises((AssertionError, RuntimeError), match=r"middle of|output of|readout|size|shape"):
            plain.prove(model, wrong)
            pytest.fail(f"{what} may be left out")
