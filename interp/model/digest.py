"""What a model is, as one number: the same for the same config and weights, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

__all__ = ["model_digest"]

# Fields of a config that say where it came from and how it was stored, not what the model computes.
_PROVENANCE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
_THREADS = 4


def model_digest(module: nn.Module) -> str:
    """SHA-256 over a model's config and the names, dtypes, shapes and bytes of its weights.

    Device and folder make no difference, nor do the config's notes on its origin. Weights are parameters and those
    buffers that a checkpoint holds.

    Arguments:
        module: a transformers model.

    Returns:
        64 hexadecimal digits.
    """
    whole = hashlib.sha256(_config_text(module).encode())
    owners = [(name, owner) for name, owner in module.named_modules() if any(True for _ in _weights(owner))]
    # hashlib lets go of the interpreter while it hashes, so threads overlap hashing with copies off the device.
    with ThreadPoolExecutor(_THREADS) as threads:
        lines = list(threads.map(lambda item: _module_lines(*item), owners))
    for line in sorted(line for group in lines for line in group):
        whole.update(line.encode())
    return whole.hexdigest()


def _config_text(module: nn.Module) -> str:
    config: Any = module.config
    return json.dumps(_without_provenance(config.to_diff_dict()), sort_keys=True, default=str)


def _without_provenance(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_provenance(item) for key, item in value.items() if key not in _PROVENANCE}
    if isinstance(value, list | tuple):
        return [_without_provenance(item) for item in value]
    return value


def _weights(owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in owner._parameters.items():
        if parameter is not None:
            yield name, parameter
    for name, buffer in owner._buffers.items():
        if buffer is not None and name not in owner._non_persistent_buffers_set:
            yield name, buffer


def _module_lines(path: str, owner: nn.Module) -> list[str]:
    lines = []
    with align_module_device(owner):  # brings weights back that accelerate has offloaded
        for name, tensor in _weights(owner):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest = hashlib.sha256(data.data).hexdigest()
            lines.append(f"{path}.{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n")
    return lines
