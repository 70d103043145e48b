"""Damage to files: a flipped bit that no time of the file tells of, a file cut short."""

from __future__ import annotations

import os
from pathlib import Path

import yaml


def flip(file: Path, offset: int = -1) -> None:
    """Flip a bit of a file in place, as a failing disk does: its times and its mode stay."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.chmod(before.st_mode & 0o777)


def locked(folder: Path, artifact: str) -> str:
    """The name of an artifact's object, from a run folder's `dvc.lock`."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
    return next(str(out["md5"]) for stage in stages for out in stage["outs"] if out["path"] == artifact)
