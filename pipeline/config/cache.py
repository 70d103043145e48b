"""Section `cache`: when a result that some run has computed before is taken in place of computing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.base import load_section, section_from

VERSIONS = ("recompute", "warn", "ignore")


@dataclass(frozen=True)
class CacheConfig:
    """What makes a cached result another one.

    Arguments:
        versions: what another minor version of a library that computed it does: `recompute`, or take it and `warn`, or
            take it and `ignore` the versions.
    """

    versions: str = "recompute"


def cache_from(values: dict[str, Any]) -> CacheConfig:
    """The section from plain values; see `section_from`."""
    return section_from(CacheConfig, values, "cache")


def load_cache_config(params: str = "params.yaml") -> CacheConfig:
    """The section of a run folder's `params.yaml`."""
    return cache_from(load_section("cache", params))
