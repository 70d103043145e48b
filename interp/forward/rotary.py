"""Rotary frequencies that depend on how long the fed prompts are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["rotary_limit"]


def rotary_limit(model: StandardizedTransformer) -> int | None:
    """Tokens up to which a prompt's values do not depend on what else is fed; None: they never do.

    Where the rotation is scaled by `longrope` (Phi 3) or `dynamic`, the longest prompt of a forward pass, once it is
    longer than what the model was first trained on, changes the frequencies of all its prompts, at all positions.

    Arguments:
        model: the model.
    """
    if model.spec.rope_scaling not in ("longrope", "dynamic"):
        return None
    config: Any = model._module.config.get_text_config()
    rope = config.rope_parameters
    entries = [rope] if "rope_type" in rope else list(rope.values())
    lengths = [entry.get("original_max_position_embeddings") for entry in entries]
    return min([length for length in lengths if length], default=config.max_position_embeddings)
