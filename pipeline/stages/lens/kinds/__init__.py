"""The classes that compute the kinds of lenses, one module each: a kind's config names its class (`stage`).

The modules of this project are imported here, so that what the stage `lens` depends on can be read off the text; one of
the user's own is imported when a config names it.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from interp.errors import InterpError
from pipeline.config.lens_base import LensConfig
from pipeline.stages.lens.base import Lens
from pipeline.stages.lens.inputs import Inputs
from pipeline.stages.lens.kinds import (  # noqa: F401
    attention_object,
    jacobian_lens,
    knockout,
    logit_lens,
    patchscope,
    patchscope_generate,
    patchscope_grid,
    tuned_lens,
)

__all__ = ["prepare", "stage_class"]


def stage_class(config: type[LensConfig]) -> type[Lens[Any]]:
    """The class that computes a kind of lens.

    Arguments:
        config: the kind's config class.

    Raises:
        InterpError: its `stage` names none.
    """
    try:
        found = resolve_name(config.stage) if ":" in config.stage else None
    except (ImportError, AttributeError) as error:
        raise InterpError(f"{config.__name__}.stage: cannot import {config.stage!r}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Lens)):
        raise InterpError(
            f"{config.__name__}.stage: expected MODULE:CLASS of a subclass of pipeline.stages.lens.base.Lens, got "
            f"{config.stage!r}."
        )
    return found


def prepare(name: str, config: LensConfig, inputs: Inputs) -> Lens[Any]:
    """Find all that a lens needs, so that every fault of the config shows before anything is computed.

    Raises:
        InterpError: the lens cannot be run on these inputs.
    """
    found: Any = stage_class(type(config))
    lens: Lens[Any] = found(name, config, inputs)
    return lens
