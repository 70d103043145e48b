"""Section `model`: which language model, and how it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.section import MISSING, bounded, chosen

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder language model.

    Arguments:
        name: short name, used in figures and tracking.
        source: hub id or local folder (relative to the run folder, or absolute).
        revision: branch, tag or commit on the hub; null: the hub's default.
        dtype: `float32`, `bfloat16` or `float16`.
        device_map: accelerate's placement: `auto`, `cpu`, `cuda:0`, ...
        attention_implementation: `sdpa`, `eager`, `flash_attention_2`, ...
        trust_remote_code: run code that the hub repository carries.
        remote: run `collect` and the lenses in sessions on NDIF, and load no weights. The API key is read from the
            environment variable NDIF_API_KEY, and kept nowhere; NDIF_HOST names a server of one's own. The server has
            its own dtype, devices and attention: `device_map` has to be `auto`, `attention_implementation` is not used,
            and `dtype` is what activations are kept in.
        num_layers: known depth, so that a bad layer is rejected before anything is loaded; null: read it from a local
            folder's config, or not checked.
        depends_on: file or folder whose content the stages depend on: the folder itself for a local model, and this
            project's own marker file for a model on the hub, which its revision identifies.
    """

    section: ClassVar[str] = "model"
    name: str = MISSING
    source: str = MISSING
    revision: str | None = None
    dtype: str = chosen("float32", *DTYPES)
    device_map: str = "auto"
    attention_implementation: str = chosen("sdpa", *ATTENTION)
    trust_remote_code: bool = False
    remote: bool = False
    num_layers: int | None = bounded(None, 1, 10_000)
    depends_on: str = MISSING


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
