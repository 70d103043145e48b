"""SHA-256 of a model's config and weights: the same from every folder and on every device."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
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

    Device and folder make no difference, nor do the config's notes on its origin. Weights are whatever the
    modules put into a checkpoint: parameters, buffers, packed and quantized weights with their scales.

    Arguments:
        module: a transformers model.

    Returns:
        64 hexadecimal digits.
    """
    whole = hashlib.sha256(_config_text(module).encode())
    # hashlib lets go of the interpreter while it hashes, so threads overlap hashing with copies off the device.
    with ThreadPoolExecutor(_THREADS) as threads:
        lines = list(threads.map(lambda item: _module_lines(*item), module.named_modules()))
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


def _module_lines(path: str, owner: nn.Module) -> list[str]:
    with align_module_device(owner):  # brings weights back that accelerate has offloaded
        return [f"{path}.{name} {_described(value)}\n" for name, value in _saved(owner).items()]


def _saved(owner: nn.Module) -> Mapping[str, Any]:
    """What a module puts into a checkpoint, without the modules in it.

    Not its parameters and buffers alone: a quantized one may hold its weights packed, or scales beside them. What is of
    another class than torch's own is copied first: bitsandbytes lays weights out anew as it saves them, and the model
    would give other numbers afterwards.
    """
    saved: Any = OrderedDict()
    saved._metadata = OrderedDict()  # where some modules note their version
    if type(owner)._save_to_state_dict is not nn.Module._save_to_state_dict:
        alone = copy.copy(owner)
        alone._modules = {}
        owner = copy.deepcopy(alone)
    try:
        owner._save_to_state_dict(saved, "", keep_vars=False)
    except NotImplementedError:  # bitsandbytes' embeddings
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                saved[name], saved[f"{name} beside"] = parameter.data, vars(parameter)
    return saved


def _described(value: Any) -> str:
    """What tells a value from others of its kind; of a tensor dtype, shape and the SHA-256 of its bytes."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, dict):
        return _described(sorted((str(key), _described(item)) for key, item in value.items()))
    if value is None or isinstance(value, str | int | float | torch.dtype | torch.Size | torch.device):
        return repr(value)
    if not isinstance(value, Tensor):
        return hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    form = f"{value.dtype} {tuple(value.shape)}"
    if value.is_quantized:
        return f"{form} {_described(_quantized(value))}"
    if hasattr(value, "__tensor_flatten__"):  # a tensor made of others, as torchao's
        names, context = value.__tensor_flatten__()
        return f"{form} {_described([getattr(value, name) for name in names])} {context!r}"
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{form} {hashlib.sha256(data.data).hexdigest()}"


def _quantized(tensor: Tensor) -> list[Any]:
    """The integers of a tensor that torch quantized, and their grid."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.int_repr(), tensor.q_scale(), tensor.q_zero_point()]
    return [
        tensor.int_repr(),
        tensor.q_per_channel_scales(),
        tensor.q_per_channel_zero_points(),
        tensor.q_per_channel_axis(),
    ]
