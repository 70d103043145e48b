"""Kinds of norms. Reading and writing inside a layer: `tests/interp/compat/transformer_lens/test_named_points.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from interp.model.places_inside import norm_kind, norm_weights, normalized

WIDTH = 24


class Scaled(nn.Module):
    """No norm at all."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(
    ("norm", "kind", "shift"),
    [
        (nn.LayerNorm(WIDTH, eps=1e-5), (True, 1e-5), 0.0),
        (nn.LayerNorm(WIDTH, eps=1e-3, elementwise_affine=False), (True, 1e-3), 0.0),
        (nn.RMSNorm(WIDTH, eps=1e-6), (False, 1e-6), 0.0),
        (LlamaRMSNorm(WIDTH, eps=1e-6), (False, 1e-6), 0.0),
        (Gemma2RMSNorm(WIDTH, eps=1e-6), (False, 1e-6), 1.0),
    ],
)
@torch.no_grad()
def test_kinds_and_weights(norm: nn.Module, kind: tuple[bool, float], shift: float) -> None:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    assert norm_kind(norm, WIDTH, device=torch.device("cpu"), dtype=torch.float32) == kind
    x = torch.randn(2, 3, WIDTH)
    weight, bias = norm_weights(norm, *kind, x)
    assert torch.allclose(normalized(x, *kind)[1] * weight + bias, norm(x), atol=1e-4)
    own = getattr(norm, "weight", None)
    assert torch.allclose(weight, torch.ones(WIDTH) if own is None else own + shift, atol=1e-4)


def test_what_is_no_norm() -> None:
    for module in (Scaled(), nn.LayerNorm(7), nn.Embedding(3, WIDTH)):
        assert norm_kind(module, WIDTH, device=torch.device("cpu"), dtype=torch.float32) is None
