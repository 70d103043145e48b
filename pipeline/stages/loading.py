"""Load the model of a run, as its config names it."""

from __future__ import annotations

import logging
import sys

from transformers.utils import logging as transformers_logging

from interp.model import StandardizedTransformer
from pipeline.config.model import ModelConfig

__all__ = ["load_model"]

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
