"""The root's `params.yaml`: the default config, for `dvc repro` at the root, which composes nothing itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.config.paths import ROOT

__all__ = ["default_params"]


def default_params() -> str:
    """The text of `params.yaml` as `dvc exp run` writes it: by DVC's own function, so that the two cannot part."""
    from dvc.utils.hydra import compose_and_dump

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(str(path), str(ROOT / "conf"), None, "config", str(ROOT), [])
        return path.read_text(encoding="utf-8")
