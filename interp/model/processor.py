"""Loads the processor of a model that sees images."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, ProcessorMixin

__all__ = ["image_feeds", "load_processor", "quiet_pipeline", "sees_images"]


def sees_images(module: Any) -> bool:
    """Whether a model takes images."""
    return "pixel_values" in image_feeds(module)


def image_feeds(module: Any) -> set[str]:
    """Names of what a model's forward pass takes."""
    return set(inspect.signature(type(module).forward).parameters)


@contextmanager
def quiet_pipeline() -> Iterator[None]:
    """Leave out that a model which sees images is none for a pipeline of text: nnsight's, which prompts go past."""
    logger = logging.getLogger("transformers.pipelines.base")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def load_processor(source: str | Path, *, revision: str | None, trust_remote_code: bool) -> ProcessorMixin | None:
    """Load a processor from a folder or the hub; None where there is none."""
    try:
        loaded: Any = AutoProcessor.from_pretrained(str(source), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError):
        return None
    return loaded if isinstance(loaded, ProcessorMixin) else None
