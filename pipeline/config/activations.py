"""Sections `collect` and `store`: which activations are kept, and in what form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.config.model import DTYPES
from pipeline.config.section import LARGEST_COUNT, bounded, chosen


@dataclass(frozen=True)
class CollectConfig:
    """Which places of the model are read, at which tokens, and how.

    Arguments:
        sites: sites (`interp.sites`), e.g. `resid_post.*`, `attn_out.3-5`, `z.*`, `pattern.2.h0-3`.
        positions: token positions (`interp.positions`), e.g. `last`, `query.last`.
        batch_tokens: tokens in a forward pass at most, padding included; null: what suits the device. Halved where
            memory runs out.
        share_prefixes: compute the tokens that prompts begin with alike (few-shot headers, chat templates) once.
        dtype: `model` keeps the model's own, else `float32`, `bfloat16`, `float16`.
        block_size: prompts in a shard of the store, the unit in which collecting resumes.
    """

    section: ClassVar[str] = "collect"
    sites: list[str] = field(default_factory=lambda: ["resid_post.*"])
    positions: list[str] = field(default_factory=lambda: ["last", "query.last"])
    batch_tokens: int | None = bounded(None, 1, LARGEST_COUNT)
    share_prefixes: bool = True
    dtype: str = chosen("model", "model", *DTYPES)
    block_size: int = bounded(64, 1, 1_000_000)


@dataclass(frozen=True)
class StoreConfig:
    """Form of the zarr stores.

    Arguments:
        chunk_bytes: size of an inner chunk at most, in bytes.
        compression: `none` or `zstd`.
    """

    section: ClassVar[str] = "store"
    chunk_bytes: int = bounded(1 << 20, 8, 1 << 30)  # 8: one element of any dtype
    compression: str = chosen("none", "none", "zstd")
