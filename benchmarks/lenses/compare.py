"""Do two tools say the same? Asked before any time is quoted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.lenses.works import Result

__all__ = ["TOLERANCE", "DisagreementError", "Readout", "check"]

TOLERANCE = 1e-5  # of probabilities, in float32


class DisagreementError(Exception):
    """A tool's result is not the reference's."""


class Readout:
    """The probabilities that a Llama's own norm and head give for hidden states; for comparing activations."""

    def __init__(self, model: Path) -> None:
        with safe_open(model / "model.safetensors", framework="pt") as weights:
            self.norm, self.head = weights.get_tensor("model.norm.weight"), weights.get_tensor("lm_head.weight")

    def __call__(self, hidden: Tensor) -> Tensor:
        """(row, hidden) to (row, vocabulary)."""
        normed = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * self.norm
        return (normed @ self.head.T).softmax(-1)


def check(
    tool: str,
    result: Result,
    reference: Result,
    readout: Callable[[Tensor], Tensor],
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Compare a result with the reference's.

    Probabilities within `tolerance`, entropies within ten times that. Activations are read out at every layer, and all
    probabilities of the vocabulary compared. Generated tokens are equal up to where the reference itself was within
    the tolerance of another choice.

    Returns:
        The largest difference of a probability; of generated tokens, the share of rows that are equal to the end.

    Raises:
        DisagreementError: it is not the reference's.
    """
    for name, expected in reference.items():
        if name != "margin" and result[name].shape != expected.shape:
            raise DisagreementError(
                f"{tool}: {name} has shape {tuple(result[name].shape)}, not {tuple(expected.shape)}."
            )
    if "ids" in reference:
        return _same_tokens(tool, result["ids"], reference["ids"], reference["margin"] > 2 * tolerance)
    if "activations" in reference:
        layers = zip(result["activations"], reference["activations"], strict=True)
        largest = max(_largest(readout(found), readout(expected)) for found, expected in layers)
    else:
        largest = max(_largest(result[name], reference[name]) for name in ("answer", "top"))
    if not largest <= tolerance:  # also where it is NaN
        raise DisagreementError(f"{tool}: probabilities are off by {largest:.2g}, more than {tolerance}.")
    if "entropy" in reference:
        off = _largest(result["entropy"], reference["entropy"])
        if not off <= 10 * tolerance:
            raise DisagreementError(f"{tool}: entropies are off by {off:.2g} nats.")
    return largest


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max())


def _same_tokens(tool: str, found: Tensor, expected: Tensor, clear: Tensor) -> float:
    """(source, layer, new) tokens: rows may part where the reference's choice was not `clear`."""
    steps = found.shape[-1]
    first = torch.where(found == expected, steps, torch.arange(steps)).min(dim=-1).values  # where a row parts
    parted = first < steps
    wrong = parted & clear.gather(-1, first.clamp(max=steps - 1)[..., None])[..., 0]
    if bool(wrong.any()):
        source, layer = wrong.nonzero()[0].tolist()
        raise DisagreementError(f"{tool}: other tokens are generated, first for source {source} at layer {layer}.")
    return float((~parted).float().mean())
