"""Safetensors files: written by one rename, read with the text in their header. No pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import InterpError

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors into a safetensors file, under its name only when it is whole and on the disk.

    Whoever may read other new files of this process may read it: safetensors alone lets nobody but the owner.

    Arguments:
        path: of the file; its folder has to exist.
        tensors: name -> tensor, on any device.
        metadata: text by key, for the file's header.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch()  # with the mode that the process's umask leaves
    mode = partial.stat().st_mode
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(held, partial, metadata=None if metadata is None else dict(metadata))
    partial.chmod(mode)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file whole.

    Arguments:
        path: of the file.

    Returns:
        Name -> tensor, on the CPU, and the text by key of the file's header.

    Raises:
        InterpError: no such file, or one that is no safetensors file, or cut short.
    """
    if not Path(path).is_file():
        raise InterpError(f"there is no file {str(path)!r}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
            return found, dict(file.metadata() or {})
    except SafetensorError as error:
        raise InterpError(f"{str(path)!r} is no whole safetensors file: {error}. Save it again.") from None
