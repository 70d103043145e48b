"""What a record says, held against a plain transformers model with torch hooks: the independent twin of the proofs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from interp.architectures import Architecture, Sublayer, find_architecture
from tests.families import build

IDS = torch.tensor([[1, 17, 250, 33, 94, 301, 12], [1, 88, 5, 260, 71, 12, 390]])


@cache
def plain(name: str) -> nn.Module:
    """The model of a case that nothing ever wraps."""
    return build(name)


def record_of(name: str) -> Architecture:
    config: Any = plain(name).config
    record = find_architecture(config.model_type, config.get_text_config())
    assert record is not None, config.model_type
    return record


def layers_of(model: nn.Module, record: Architecture) -> list[nn.Module]:
    return list(model.get_submodule(record.layers))  # type: ignore[arg-type]


def hidden(value: Any) -> Tensor:
    """A tensor (batch, position, width): of a tuple or list the first item, of flat tokens by batch again."""
    tensor = value if isinstance(value, Tensor) else value[0]
    return tensor.reshape(IDS.shape[0], -1, tensor.shape[-1]) if tensor.dim() == 2 else tensor


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first argument of a module: its hidden states."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def captured(places: Mapping[str, tuple[nn.Module, str]]) -> Iterator[dict[str, Tensor]]:
    """Hooks that fill the given dict with clones of inputs and outputs while they stand."""
    values: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: values.__setitem__(name, hidden(argument(args, kwargs)).clone())

    def after(name: str) -> Callable[..., None]:
        return lambda _, args, output: values.__setitem__(name, hidden(output).clone())

    hooks = [
        module.register_forward_pre_hook(before(name), with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(after(name))
        for name, (module, side) in places.items()
    ]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


def places_of(model: nn.Module, record: Architecture) -> dict[str, tuple[nn.Module, str]]:
    """Everything that the record names in each layer."""
    places = {}
    for index, layer in enumerate(layers_of(model, record)):
        own = record.of_layer(layer)
        places[f"{index}.before"] = (layer, "input")
        places[f"{index}.after"] = (layer, "output")
        if own.middle is not None:
            places[f"{index}.middle"] = (layer.get_submodule(own.middle), "input")
        for role, part in own.sublayers(layer):
            places[f"{index}.{role}.in"] = (layer.get_submodule(part.module), "input")
            for source in sources(layer, part):
                places[f"{index}.{role}.{source}"] = (layer.get_submodule(source), "output")
            if part.projection is not None and has(layer, part.projection):
                places[f"{index}.{role}.projection"] = (layer.get_submodule(part.projection), "input")
    return places


def has(layer: nn.Module, path: str) -> bool:
    return path in dict(layer.named_modules())


def sources(layer: nn.Module, part: Sublayer) -> list[str]:
    return [path for path in part.sources if has(layer, path)]


def staged(layer: nn.Module, parts: Mapping[str, Sublayer], stream: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """norm_after(residual_scale * residual_norm(stream) + sum of scale * added).

    Arguments:
        layer: the layer.
        parts: the sublayers of one stage, by role.
        stream: the residual stream before it.
        values: role.path -> what that module gave.
    """
    first = next(iter(parts.values()))
    if first.residual_norm is not None:
        stream = layer.get_submodule(first.residual_norm)(stream)
    if first.residual_scale is not None:
        stream = stream * getattr(layer, first.residual_scale)
    for role, part in parts.items():
        for source in sources(layer, part):
            factor = 1.0 if part.scale is None else getattr(layer, part.scale)
            stream = stream + values[f"{role}.{source}"] * factor
    return stream if first.norm_after is None else layer.get_submodule(first.norm_after)(stream)


def stages(record: Architecture, layer: nn.Module) -> list[dict[str, Sublayer]]:
    """The sublayers of a layer, stage by stage."""
    own = record.of_layer(layer)
    there = dict(own.sublayers(layer))
    if own.middle is None:
        return [there]
    return [{role: part for role, part in there.items() if role != "mlp"}, {"mlp": there["mlp"]}]


def read_out(model: nn.Module, record: Architecture, stream: Tensor) -> Tensor:
    """Logits of the residual stream after the last layer, by the record."""
    config: Any = model.config
    text = config.get_text_config()
    norm = () if record.final_norm is None else (record.final_norm,)
    for path in (*norm, *(path for path in record.before_head if has(model, path)), record.head):
        stream = model.get_submodule(path)(stream)
    if record.logit_scale is not None and getattr(text, record.logit_scale) is not None:
        stream = stream * getattr(text, record.logit_scale)
    if record.logit_divisor is not None:
        stream = stream / getattr(text, record.logit_divisor)
    if record.softcap is not None and getattr(text, record.softcap, None) is not None:
        cap = getattr(text, record.softcap)
        stream = torch.tanh(stream / cap) * cap
    if record.silenced is not None:  # Chameleon's words for images
        never = [token for word, token in text.vocabulary_map.items() if word.startswith("IMGIMG")]
        stream[..., never] = torch.finfo(stream.dtype).min
    return stream


def same(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5, msg=lambda text: f"{what}: {text}")


@torch.no_grad()
def prove(model: nn.Module, record: Architecture) -> None:
    """Chain, stages, projections and readout.

    Raises:
        AssertionError: the first identity that does not hold.
    """
    with captured(places_of(model, record)) as values:
        logits = model(input_ids=IDS, use_cache=False).logits
    layers = layers_of(model, record)
    for index, layer in enumerate(layers):
        own = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{index}.")}
        if index:
            same(own["before"], values[f"{index - 1}.after"], f"chain into layer {index}")
        stream = own["before"]
        for number, parts in enumerate(stages(record, layer)):
            if number:
                same(own["middle"], stream, f"middle of layer {index}")
            stream = staged(layer, parts, stream, own)
        same(own["after"], stream, f"output of layer {index}")
        for role, part in record.of_layer(layer).sublayers(layer):
            prove_projection(layer, role, part, own, f"{role} of layer {index}")
    same(logits, read_out(model, record, values[f"{len(layers) - 1}.after"]), "readout")


def prove_projection(layer: nn.Module, role: str, part: Sublayer, values: Mapping[str, Tensor], where: str) -> None:
    """The last linear map alone makes of its input what the sublayer gives."""
    if f"{role}.projection" not in values:
        return
    projection = layer.get_submodule(str(part.projection))
    projected = projection(values[f"{role}.projection"])
    (source,) = sources(layer, part)[:1]
    inside = (part.module, part.projection)
    given = projected if source in inside else layer.get_submodule(source)(projected)  # a norm behind
    expected = values[f"{role}.{source}"]
    if role == "mlp":  # some multiply it by a number
        given = given * (given * expected).sum() / (given * given).sum()
    same(given, expected, f"projection of {where}")


def silence(_: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that puts zeros in place of the hidden states."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return type(output)((torch.zeros_like(output[0]), *output[1:]))


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model's forward has an argument."""
    return name in inspect.signature(model.forward).parameters


@contextmanager
def zeroed_at_padding(model: nn.Module, record: Architecture, mask: Tensor) -> Iterator[None]:
    """What the record's `unpadded` modules give is zero where the mask (batch, position) is, while this stands."""
    modules = [
        layer.get_submodule(path) for layer in layers_of(model, record) for path in record.unpadded if has(layer, path)
    ]
    hooks = [module.register_forward_hook(lambda _, args, output: output * mask[..., None]) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
