"""What a tuned lens was trained to speak through: the model's readout, as one number."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from accelerate.utils import align_module_device
from torch import Tensor

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["unembedding_digest"]

# Numbers that are hashed at once.
_CHUNK = 1 << 24


def unembedding_digest(model: StandardizedTransformer) -> str:
    """SHA-256 over the model's readout: the weights of final norm and head, scale and softcap.

    Weights count as rounded to bfloat16, so that a checkpoint has one digest whether it is loaded as float32 or as
    bfloat16. (float16 can round a weight of a float32 checkpoint otherwise.)

    Arguments:
        model: the model.

    Returns:
        64 hexadecimal digits.
    """
    tail = model.tail
    digest = hashlib.sha256(json.dumps([tail.scale, tail.divisor, tail.softcap]).encode())
    for path in tail.paths:
        module = model._module.get_submodule(path)
        with align_module_device(module):  # brings weights back that accelerate has offloaded
            for name, weight in sorted(module.named_parameters()):
                digest.update(f"{name} {tuple(weight.shape)}\n".encode())
                _update(digest, weight.detach())
    return digest.hexdigest()


def _update(digest: hashlib._Hash, weight: Tensor) -> None:
    for chunk in weight.reshape(-1).split(_CHUNK):
        digest.update(chunk.to(torch.bfloat16).cpu().view(torch.uint8).numpy().data)
