"""An edit at any hook point does what it does in TransformerLens, made in place or by return value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.interp.compat.transformer_lens.bridges import IDS, bridge_of
from tests.interp.compat.transformer_lens.recorded_models import FAMILIES, recorded


def by_return(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
    return tensor * 0.5 + 0.1 if tensor.is_floating_point() else None


def in_place(tensor: torch.Tensor, hook: Any) -> None:
    if tensor.is_floating_point():
        tensor.mul_(0.5).add_(0.1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_edit_at_every_point(family: str) -> None:
    bridge, told = bridge_of(family), recorded(family)[1]["edits"]
    plain, wrong, compared = bridge(IDS), [], 0
    for name, expected in told.items():
        if name not in bridge.hook_dict:
            continue
        ways = [bridge.run_with_hooks(IDS, fwd_hooks=[(name, edit)]) for edit in (by_return, in_place)]
        if expected is None:  # rotated queries and keys of GPT-NeoX and Falcon: TransformerLens calls no hook there
            assert "hook_rot_" in name and not torch.allclose(ways[0], plain, atol=1e-2)
        elif not torch.allclose(ways[0][0, -1, :4], torch.tensor(expected), atol=3e-5):
            wrong.append(name)
        if not torch.equal(*ways):
            wrong.append(f"{name} in place")
        compared += 1
    assert wrong == [] and compared >= 60


def test_an_edit_of_the_stream_in_the_middle_of_a_layer_reaches_all_that_reads_it() -> None:
    """TransformerLens's `hook_resid_mid` is what enters the second norm, and the stream goes on without the edit."""
    bridge = bridge_of("gpt2")
    _, cache = bridge.run_with_cache(IDS)

    def replace(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return cache["resid_mid", 1]

    other = IDS.flip(1)
    whole = bridge.run_with_hooks(other, fwd_hooks=[("blocks.1.hook_resid_mid", replace)])
    norm = bridge.run_with_hooks(other, fwd_hooks=[("blocks.1.ln2.hook_in", replace)])
    assert torch.allclose(whole, bridge(IDS), atol=1e-5) and not torch.allclose(norm, whole, atol=1e-2)
