"""Finds the record that describes a model: its family's, the user's, or a similar layout that is then proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from interp.architectures.record import Architecture, submodule
from interp.architectures.rename import RenameConfig, renamed
from interp.architectures.table import ARCHITECTURES, why_refused
from interp.architectures.vision import VISION_LAYOUTS
from interp.errors import InterpError

__all__ = ["Candidates", "candidates", "described", "find_architecture", "known_model_types", "missing_parts"]


@dataclass(frozen=True)
class Candidates:
    """Records that a model may follow.

    Arguments:
        records: in the order in which to try them, at least one.
        known: the first one was written for the model's family; otherwise the layouts are guesses, and one counts only
            once it is proved.
    """

    records: tuple[Architecture, ...]
    known: bool


def known_model_types() -> list[str]:
    """The `model_type`s that a record stands for."""
    return sorted({model_type for record in ARCHITECTURES for model_type in record.model_types})


def find_architecture(model_type: str, config: Any) -> Architecture | None:
    """The record of a family, by its config; None where there is none."""
    return next((record for record in ARCHITECTURES if record.fits(model_type, config)), None)


def candidates(config: Any, module: Any, rename_config: RenameConfig | None = None) -> Candidates:
    """The records that may describe a model.

    A family without a record is given every layout of the table whose modules it has; that it also *computes* so has
    then to be proved.

    Arguments:
        config: the model's config; of a model with a vision or audio tower the whole one.
        module: the model.
        rename_config: the user's names; they win over those of the table.

    Raises:
        InterpError: a family that is refused, with the reason; or no record fits, with what is missing.
    """
    model_type, text = config.model_type, config.get_text_config()
    reason = why_refused(model_type, text)
    if reason is not None and rename_config is None:
        raise InterpError(f"{model_type!r} is not supported: {reason}")
    record = None if reason is not None else find_architecture(model_type, text)
    if record is None and reason is None and rename_config is None and text is not config:
        inside = [guess for guess in _inside(module, text) if not missing_parts(guess, module)]
        if inside:
            return Candidates(tuple(inside), known=len(inside) == 1)
    if record is not None:
        chosen = renamed(record, module, rename_config)
        if missing := missing_parts(chosen, module):
            raise InterpError(
                f"{type(module).__name__} has no {', no '.join(missing)}, which a causal language model of family "
                f"{record.family!r} has. Load it with its head (AutoModelForCausalLM), or say in rename_config= where "
                "they are."
            )
        return Candidates((chosen,), known=True)
    fitting, closest = _fitting(model_type, module, rename_config)
    if not fitting:
        raise InterpError(
            f"unknown architecture {model_type!r}: no record of it, and no layout of the table fits (nearest: no "
            f"{', no '.join(closest)}). Say where they are in rename_config=RenameConfig(...), or add a record to "
            "interp.architectures. `python -m interp families` lists those that have one."
        )
    return Candidates(tuple(fitting), known=False)


def _inside(module: Any, text: Any) -> list[Architecture]:
    """Records of a model that holds a language model of the table beside a tower: that one's, where it lies.

    What the language model by itself does to its logits, the whole one may leave out.
    """
    record = find_architecture(text.model_type, text) or find_architecture(text.model_type.removesuffix("_text"), text)
    path = next(
        (
            path
            for path, part in module.named_modules()
            if path and type(getattr(part, "config", None)) is type(text) and hasattr(part, "get_input_embeddings")
        ),
        None,
    )
    if record is None or path is None:
        return []
    root = record.layers.partition(".")[0]

    def moved(old: str | None) -> str | None:
        return None if old is None else f"{path}.{old.partition('.')[2]}" if old.startswith(f"{root}.") else old

    layers, embedding = moved(record.layers), moved(record.embedding)
    assert layers is not None and embedding is not None
    whole = replace(
        record,
        family=module.config.model_type,
        model_types=(module.config.model_type,),
        when=(),
        layers=layers,
        embedding=embedding,
        final_norm=moved(record.final_norm),
        before_head=tuple(str(moved(part)) for part in record.before_head),
        head="lm_head",
    )
    plain = replace(whole, softcap=None, logit_scale=None, logit_divisor=None)
    return list(dict.fromkeys([plain, whole]))


def _fitting(model_type: str, module: Any, rename_config: RenameConfig | None) -> tuple[list[Architecture], list[str]]:
    """The distinct layouts whose modules a model has; and what the nearest one lacks where there are none."""
    fitting: list[Architecture] = []
    closest: list[str] | None = None
    for record in ARCHITECTURES:
        guess = renamed(replace(record, family=model_type, model_types=(model_type,), when=()), module, rename_config)
        missing = missing_parts(guess, module)
        if missing and (closest is None or len(missing) < len(closest)):
            closest = missing
        if not missing and guess not in fitting:
            fitting.append(guess)
    # Sums hold for parallel layers where they hold for layers of two stages, so these are tried first.
    return sorted(fitting, key=lambda guess: guess.middle is None), closest or []


def missing_parts(architecture: Architecture, module: Any) -> list[str]:
    """What a model lacks of a record, in words; nothing where all is there.

    Arguments:
        architecture: the record.
        module: the model.
    """
    roots = {"layers": architecture.layers, "embedding": architecture.embedding, "head": architecture.head}
    if architecture.final_norm is not None:
        roots["final norm"] = architecture.final_norm
    missing = [f"{role} at {path!r}" for role, path in roots.items() if submodule(module, path) is None]
    if architecture.silenced is not None and not _has(module, architecture.silenced):
        missing.append(f"tokens that are never said at {architecture.silenced!r}")
    layers = submodule(module, architecture.layers)
    for index, layer in enumerate(layers if layers is not None else ()):
        if absent := list(_missing_in_layer(architecture, layer)):
            return missing + [f"{role} at '{architecture.layers}.{index}.{path}'" for role, path in absent]
    return missing


def _has(module: Any, attribute: str) -> bool:
    try:
        attrgetter(attribute)(module)
    except AttributeError:
        return False
    return True


def _missing_in_layer(architecture: Architecture, layer: Any) -> Iterator[tuple[str, str]]:
    architecture = architecture.of_layer(layer)
    there = dict(architecture.sublayers(layer))
    if architecture.middle is not None and architecture.mlp is not None:  # every layer has both stages
        if "mlp" not in there:
            yield "MLP", architecture.mlp.module
        if not {"attention", "mixer"} & set(there):
            either = [part.module for part in (architecture.attention, architecture.mixer) if part is not None]
            yield "attention", " or ".join(either)
        if submodule(layer, architecture.middle) is None:
            yield "module between attention and MLP", architecture.middle
    elif not there:
        parts = (architecture.attention, architecture.mixer, architecture.mlp)
        yield "sublayer", " or ".join(dict.fromkeys(part.module for part in parts if part is not None))
    for role, part in there.items():
        if not any(submodule(layer, source) is not None for source in part.sources):
            yield f"what the {role} adds", part.sources[0]
        for norm in (part.residual_norm, part.norm_after):
            if norm is not None and submodule(layer, norm) is None:
                yield "norm", norm
        for scale in (part.scale, part.residual_scale):
            if scale is not None and not hasattr(layer, scale):
                yield "scale", scale


def described() -> list[dict[str, str]]:
    """The supported model types in alphabetical order, each with what is particular about its family.

    Returns:
        A dictionary a model type: `model_type`, `family` and `how`, a line in words.
    """
    lines: dict[str, dict[str, str]] = {}
    for record in ARCHITECTURES:
        for model_type in record.model_types:
            how = _in_words(record)
            if record.when:
                how += f", where {' and '.join(f'{name} is {value}' for name, value in record.when)}"
            if model_type in lines:
                lines[model_type]["how"] += f"; or {how}"
            else:
                lines[model_type] = {"model_type": model_type, "family": record.family, "how": how}
    for layout in VISION_LAYOUTS:
        sees = f"images through {layout.tower}" + (f" and {layout.projector}" if layout.projector else "")
        for model_type in layout.model_types:
            if model_type in lines:
                lines[model_type]["how"] += f", {sees}"
            else:
                how = f"the record of its language model, {sees}"
                lines[model_type] = {"model_type": model_type, "family": model_type, "how": how}
    return [lines[model_type] for model_type in sorted(lines)]


def _in_words(record: Architecture) -> str:
    words = [f"layers at {record.layers}"]
    mixing = [part.module for part in (record.attention, record.mixer) if part is not None]
    if mixing:
        words.append(f"{' or '.join(dict.fromkeys(mixing))} mixes tokens")
    if record.mlp is None:
        words.append("no MLP")
    if record.parallel:
        words.append("attention and MLP in parallel")
    for part in (record.attention, record.mixer, record.mlp):
        if part is not None and part.added and part.added[0] != part.projection:
            words.append(f"adds {' + '.join(part.added)}")
        if part is not None and part.scale is not None:
            words.append(f"times {part.scale}")
        if part is not None and part.norm_after is not None:
            words.append(f"then {part.norm_after}")
    if record.before_head:
        words.append(f"{', '.join(record.before_head)} before the head")
    tail = {"times": record.logit_scale, "divided by": record.logit_divisor, "capped at": record.softcap}
    words += [f"logits {how} {field}" for how, field in tail.items() if field is not None]
    return ", ".join(words)
