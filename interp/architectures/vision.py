"""Where models that see have their vision tower and their projector, and how what these give enters the language model.

The language model beside them has a record of its own (`interp.architectures.Architecture`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["VISION_LAYOUTS", "VisionLayout", "vision_layout"]


@dataclass(frozen=True)
class VisionLayout:
    """Where one family sees. Paths are dotted, from the model or (where said) from the tower.

    Arguments:
        model_types: the `model_type`s of configs that belong to it.
        tower: what makes numbers of pixels.
        layers: from the tower, the list of its layers, one of these; empty: it has no residual stream.
        projector: what makes vectors of the language model's width of what the tower gives; None: there is none.
        first_position: the number of a prompt's first position.
        mixes: prompts with and without images may share a forward pass.
        between_layers: what the tower gives is added to the language model's residual stream between its first layers
            too, at the tokens of images: there `resid_pre` is not `resid_post` of the layer before.
    """

    model_types: tuple[str, ...]
    tower: str = "model.vision_tower"
    layers: tuple[str, ...] = ("encoder.layers", "encoder.layer", "transformer.layers")
    projector: str | None = "model.multi_modal_projector"
    first_position: int = 0
    mixes: bool = True
    between_layers: bool = False


VISION_LAYOUTS: tuple[VisionLayout, ...] = (
    VisionLayout(("llava", "llava_next", "llava_onevision", "gemma3", "internvl")),
    # Its text alone is looked at from both sides where no token is padded, and from one where some are.
    VisionLayout(("paligemma",), first_position=1, mixes=False),
    VisionLayout(("idefics3", "smolvlm"), tower="model.vision_model", projector="model.connector"),
    VisionLayout(("qwen2_vl", "qwen2_5_vl"), tower="model.visual", layers=("blocks",), projector="model.visual.merger"),
    VisionLayout(
        ("qwen3_vl",), tower="model.visual", layers=("blocks",), projector="model.visual.merger", between_layers=True
    ),
    # A quantizer makes words of an image, which the language model embeds like others.
    VisionLayout(("chameleon",), tower="model.vqmodel", layers=(), projector=None),
)


def vision_layout(config: Any) -> VisionLayout | None:
    """How a model sees, by its config; None: it does not, or its family is not known."""
    return next((layout for layout in VISION_LAYOUTS if config.model_type in layout.model_types), None)
