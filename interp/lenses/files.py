"""Results in one safetensors file: arrays, and what describes them as JSON in its metadata. No pickle.

Maps, lenses and checkpoints write their tensors by `write_tensors` too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import InterpError

__all__ = ["read_arrays", "write_arrays", "write_tensors"]

_KEY = "interpipe"  # one key alone: safetensors writes several in an order of chance
_VERSION = 1


def write_arrays(path: str | Path, kind: str, arrays: Mapping[str, NDArray], described: Mapping[str, Any]) -> None:
    """Write arrays and their description; the same bytes for the same content.

    Arguments:
        path: of the file; its folder has to exist.
        kind: what the file holds, by which `read_arrays` knows it.
        arrays: name -> array.
        described: what JSON can hold.
    """
    text = json.dumps({"kind": kind, "version": _VERSION, **described}, sort_keys=True, ensure_ascii=False)
    Path(path).write_bytes(save(dict(arrays), metadata={_KEY: text}))


def read_arrays(path: str | Path, kind: str) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Read what `write_arrays` wrote.

    Returns:
        The arrays by name, and the description.

    Raises:
        InterpError: no such file, or one that holds something else.
    """
    if not Path(path).is_file():
        raise InterpError(f"there is no file {str(path)!r}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except SafetensorError as error:
        raise InterpError(f"{str(path)!r} is no whole safetensors file: {error}. Save the result again.") from None
    described: dict[str, Any] = json.loads(metadata.get(_KEY, "{}"))
    if (described.get("kind"), described.get("version")) != (kind, _VERSION):
        found = f"{described.get('kind')} (version {described.get('version')})"
        raise InterpError(f"{str(path)!r}: expected a {kind} (version {_VERSION}), found {found}.")
    return arrays, described


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
