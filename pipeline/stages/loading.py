"""Load the model of a run, as its config names it, and what its prompts' images are fed as."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from transformers.utils import logging as transformers_logging

from interp.activations.prompt_batches import encoded_prompts
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.prompts import Media, Prompt
from pipeline.artifacts.tokens import IMAGES, Row
from pipeline.config.model import ModelConfig
from pipeline.files import digest_of

__all__ = ["as_fed", "load_model", "media_of", "processor_digest"]

log = logging.getLogger("interpipe")


def load_model(config: ModelConfig) -> StandardizedTransformer:
    """Load the model of the section `model`; without its weights, where it runs elsewhere.

    Raises:
        InterpError: as `StandardizedTransformer`.
    """
    if not sys.stderr.isatty():  # plain log lines where there is no terminal
        transformers_logging.disable_progress_bar()
    if config.remote:  # the names and sizes alone
        log.info(
            "the model runs on a server, in its own dtype, on its own devices and with its own attention: "
            "model.attention_implementation=%s is not used",
            config.attention_implementation,
        )
        return StandardizedTransformer(
            config.source, revision=config.revision, trust_remote_code=config.trust_remote_code, remote=True
        )
    return StandardizedTransformer(
        config.source,
        revision=config.revision,
        dtype=config.dtype,
        device_map=config.device_map,
        attn_implementation=config.attention_implementation,
        trust_remote_code=config.trust_remote_code,
    )


def as_fed(row: Row) -> Prompt | Sequence[int]:
    """A prompt of the run folder as the library's functions take it: its text and images, or its token ids."""
    return Prompt(row.prompt, images=tuple(IMAGES / name for name in row.images)) if row.images else row.input_ids


def media_of(model: StandardizedTransformer, rows: Sequence[Row]) -> list[Media | None]:
    """What the model is fed beside the token ids of some prompts of the run folder; None for those without images.

    Raises:
        InterpError: an image is missing, or the processor makes other tokens of one than stage `tokenize` did.
    """
    media: list[Media | None] = []
    for row in rows:
        prompt = as_fed(row)
        if not isinstance(prompt, Prompt):
            media.append(None)
            continue
        missing = [name for name in row.images if not (IMAGES / name).is_file()]
        if missing:
            raise InterpError(f"expected the image {IMAGES / missing[0]}, found none. Run the stage `tokenize` again.")
        [encoded] = encoded_prompts(model, [prompt])
        if encoded.input_ids != list(row.input_ids):
            raise InterpError(
                f"tokens/ has {len(row.input_ids)} tokens of {row.prompt[:60]!r}, and the model's processor makes "
                f"{len(encoded.input_ids)}, or others: it has changed. Run the stage `tokenize` again."
            )
        media.append(encoded.media)
    return media


def processor_digest(processor: Any) -> str:
    """SHA-256, in hexadecimal, of all that decides what a processor makes of an image."""
    return digest_of(type(processor).__name__, json.loads(processor.image_processor.to_json_string()))
