"""Section `store`: how tensors lie on disk. It is about form, not content, and applies to every zarr store of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.base import bounded, load_section, section_from


@dataclass(frozen=True)
class StoreConfig:
    """Form of the zarr stores.

    Arguments:
        chunk_bytes: size of an inner chunk at most, in bytes.
        compression: `none` or `zstd`.
    """

    chunk_bytes: int = bounded(1 << 20, 8, 1 << 30)  # 8: one element of any dtype
    compression: str = "none"


def store_from(values: dict[str, Any]) -> StoreConfig:
    """The section from plain values; see `section_from`."""
    return section_from(StoreConfig, values, "store")


def load_store_config(params: str = "params.yaml") -> StoreConfig:
    """The section of a run folder's `params.yaml`."""
    return store_from(load_section("store", params))
