"""Where a training stands, in one safetensors file: lens, optimizer, step, and place in the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.files import write_tensors

__all__ = ["optimizer_tensors", "read_checkpoint", "restore_optimizer", "write_checkpoint"]

_KEY = "interpipe"
_OPTIMIZER = "optimizer"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON into one file, under its name only when it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {_KEY: json.dumps(state, sort_keys=True)})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_checkpoint` wrote.

    Raises:
        InterpError: it is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise InterpError(
            f"{path} is no checkpoint of a tuned lens ({type(error).__name__}). Remove it to begin anew."
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory by name, `optimizer.PARAMETER.KIND`, on the CPU."""
    return {
        f"{_OPTIMIZER}.{index}.{kind}": value.detach().cpu().contiguous()
        for index, kinds in optimizer.state_dict()["state"].items()
        for kind, value in kinds.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the memory that `optimizer_tensors` took; other tensors are passed over."""
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith(f"{_OPTIMIZER}."):
            _, index, kind = name.split(".")
            whole["state"].setdefault(int(index), {})[kind] = value
    optimizer.load_state_dict(whole)
