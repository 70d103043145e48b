"""Reads lenses in the format of the tuned-lens library, such as those published with the paper.

https://github.com/AlignmentResearch/tuned-lens: a folder with `config.json` and `params.pt`. Its translator number i
takes the i-th of transformers' `hidden_states`: 0 is the embedding, i is the residual stream that enters block i, which
is `resid_post` of layer i - 1. So its translators 1 to L-1 are ours of layers 0 to L-2, and its translator 0, of the
embedding, has no place here.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.translators.tuned_lens import TunedLens, check_sizes, read_config

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["load_public"]

WEIGHTS_FILE = "params.pt"
_KEY = re.compile(r"(?:layer_translators\.)?(\d+)\.(weight|bias)")
_log = logging.getLogger(__name__)


def load_public(folder: str | Path, model: StandardizedTransformer, *, check: bool = True) -> TunedLens:
    """Read a lens that the tuned-lens library saved (Belrose et al. 2023).

    Its `params.pt` is read as tensors alone; nothing in it is run.

    Arguments:
        folder: with `config.json` and `params.pt`.
        model: the model that it was trained for; the lens goes to its device.
        check: compare the hash of the head that the library keeps; False: take the lens all the same.

    Returns:
        The lens for layers 0 to L-2; the translator of the embedding is left out, which one line of the log says.

    Raises:
        InterpError: no lens there, one that is not whole, or one of another model.
    """
    folder = Path(folder)
    config = read_config(folder)
    absent = [name for name in ("base_model_name_or_path", "d_model", "num_hidden_layers") if name not in config]
    if absent:
        raise InterpError(
            f"{folder}: expected a config.json of the tuned-lens library, got one without {', '.join(absent)}. Lenses "
            "of this library are read by `TunedLens.load`."
        )
    check_sizes(folder, model, config["d_model"], config["num_hidden_layers"])
    if check and config.get("unembed_hash"):
        _check_head(folder, model, config)
    translators = _translators(folder / WEIGHTS_FILE)
    expected = list(range(config["num_hidden_layers"]))
    if sorted(translators) != expected:
        raise InterpError(f"{folder}: expected translators {expected}, got {sorted(translators)}. It is not whole.")
    _log.info("%s: the translator of the embedding is left out, there is no layer before it.", folder)
    lens = TunedLens.of(model)
    lens.model_name = config["base_model_name_or_path"]
    lens.take(
        {
            f"{kind}.{number - 1}": value.float()
            for number, parts in translators.items()
            if number > 0
            for kind, value in {
                "bias": torch.zeros(model.hidden_size, dtype=torch.float32, device="cpu"),
                **parts,
            }.items()
        }
    )
    return lens


def _translators(path: Path) -> dict[int, dict[str, Tensor]]:
    """Number of the translator -> `weight`, `bias`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InterpError(
            f"{path} cannot be read as a dictionary of tensors ({type(error).__name__}). Download the lens again."
        ) from error
    translators: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is not None:
            translators.setdefault(int(match[1]), {})[match[2]] = value
        elif not key.startswith("unembed"):  # some lenses carry a copy of the model's head
            raise InterpError(
                f"{path}: {key!r} is not part of a linear tuned lens. Expected 0.weight, 0.bias, 1.weight, ...; "
                "lenses with several layers or low rank are not read."
            )
    return translators


def _check_head(folder: Path, model: StandardizedTransformer, config: dict[str, Any]) -> None:
    """Compare the library's hash of the head: of its first and last few numbers, printed to one decimal."""
    head = model._module.get_submodule(model.tail.paths[-1]).weight.detach().cpu()
    found = {
        hashlib.sha256(_printed(head.to(dtype).numpy()).encode()).hexdigest()
        for dtype in (torch.float32, torch.float16)  # what it printed depends on the dtype that it was loaded in
    }
    if config["unembed_hash"] not in found:
        raise InterpError(
            f"the lens in {folder} was trained for {config['base_model_name_or_path']!r} with a head of hash "
            f"{config['unembed_hash'][:12]}, the head of this model has {' or '.join(h[:12] for h in sorted(found))}. "
            "Load that model (its revision too), or pass check=False to use the lens all the same."
        )


def _printed(weight: np.ndarray) -> str:
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75, suppress=False, floatmode="maxprec", sign="-"):
        return np.array_str(weight, precision=1)
