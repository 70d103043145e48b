"""The vision tower of a model that sees, its projector, and the residual stream of the tower as sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.architectures import VisionLayout, submodule, vision_layout
from interp.errors import InterpError
from interp.model.places import ModulePlace
from interp.model.processor import sees_images
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["Sees", "VisionPlace", "layers_path", "layout_of", "num_vision_layers", "vision_place"]


def layout_of(model: StandardizedTransformer) -> VisionLayout:
    """How a model sees.

    Raises:
        InterpError: it does not, or its family is not known.
    """
    found = vision_layout(model._module.config)
    if found is None or submodule(model._module, found.tower) is None:
        why = (
            "where its vision tower is is not known; reach its modules by their own names"
            if sees_images(model._module)
            else "it takes no images"
        )
        raise InterpError(f"{type(model._module).__name__} has no vision tower here: {why}.")
    return found


def layers_path(model: StandardizedTransformer) -> str | None:
    """The list of layers of the vision tower, dotted; None: there is none."""
    found = vision_layout(model._module.config)
    if found is None:
        return None
    paths = (f"{found.tower}.{path}" for path in found.layers)
    return next((path for path in paths if submodule(model._module, path) is not None), None)


def num_vision_layers(model: StandardizedTransformer) -> int | None:
    """How many layers the vision tower has; None: there is none with a residual stream."""
    path = layers_path(model)
    layers: Any = None if path is None else submodule(model._module, path)
    return None if layers is None else len(layers)


class Sees:
    """What a `StandardizedTransformer` has to see with."""

    @property
    def vision_tower(self: Any) -> Any:
        """What makes numbers of pixels, an nnsight envoy.

        Raises:
            InterpError: the model sees no images.
        """
        return self.get(layout_of(self).tower)

    @property
    def projector(self: Any) -> Any:
        """What makes vectors of the language model's width of what the vision tower gives, an nnsight envoy.

        Raises:
            InterpError: the model sees no images, or has no projector.
        """
        path = layout_of(self).projector
        if path is None:
            raise InterpError(
                f"{type(self._module).__name__} has no projector: its images are words of its vocabulary, which the "
                "language model embeds like others."
            )
        return self.get(path)

    @property
    def num_vision_layers(self: Any) -> int:
        """How many layers the vision tower has that share a residual stream; 0: none, or there is no tower."""
        return num_vision_layers(self) or 0


def vision_place(model: StandardizedTransformer, site: Site) -> VisionPlace:
    """Where a site of the vision tower is.

    Arguments:
        model: the model, with that many layers of its tower.
        site: `vision.resid_pre` or `vision.resid_post` of a layer.
    """
    path = layers_path(model)
    assert path is not None and site.layer is not None
    side = "input" if site.kind == "vision.resid_pre" else "output"
    return VisionPlace(model.get(path)[site.layer], side, str(site))


class VisionPlace(ModulePlace):
    """What a layer of a vision tower takes or gives: (image or tile, patch, width), or (patch, width) of all images."""

    def _live(self) -> Tensor:
        batcher = self.envoy.interleaver.batcher
        if batcher is not None and batcher.batching:
            raise InterpError(
                f"{self.name}: nnsight gives an invoke its rows, and images are no rows. Read it in a trace without "
                "invokes, of one prompt or several: model.trace([text, text], images=[[a], [b, c]])."
            )
        return super()._live()

    def _hidden(self, live: Tensor) -> Tensor:
        return live

    def write(self, value: Tensor) -> None:
        """Write in place of what is there.

        Raises:
            InterpError: the trace has invokes.
        """
        self._live()
        super().write(value)
