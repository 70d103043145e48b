"""Sections `tracking` and `cache`: where MLflow runs go, and which cached results are taken. No number needs them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.config.section import bounded, chosen

PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/]*@")


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it: `http://me:***@host`.

    Arguments:
        text: what is shown, logged or written where others read it.
    """
    return PASSWORD.sub(r"\1:***@", text)


@dataclass(frozen=True)
class TrackingConfig:
    """Where and how a run is tracked.

    Arguments:
        enabled: track at all.
        uri: MLflow tracking URI; null: `mlflow.db` (sqlite) in the repository's root, artifacts beside it.
            A password in it is masked wherever it is shown or sent; `MLFLOW_TRACKING_PASSWORD` keeps it out of files.
        experiment: name of the MLflow experiment.
        tags: further tags.
        timeout: seconds that a server may cost a run, or a whole sweep, in all.
    """

    section: ClassVar[str] = "tracking"
    enabled: bool = True
    uri: str | None = None
    experiment: str = "interpipe"
    tags: dict[str, str] = field(default_factory=dict)
    timeout: int = bounded(15, 1, 3600)


@dataclass(frozen=True)
class CacheConfig:
    """What makes a cached result another one.

    Arguments:
        versions: what another minor version of a library that computed it does: `recompute`, or take it and `warn`, or
            take it and `ignore` the versions.
    """

    section: ClassVar[str] = "cache"
    versions: str = chosen("recompute", "recompute", "warn", "ignore")
