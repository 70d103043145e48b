"""What a record says, in words."""

from __future__ import annotations

from interp.architectures.record import Architecture
from interp.architectures.table import ARCHITECTURES

__all__ = ["described"]


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
