"""Least squares of many affine maps at once, from rows that come in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["AffineFit"]

# Directions whose variance is this small beside the largest are taken for none: they carry float32's rounding.
_RANK_TOLERANCE = 1e-12


class AffineFit:
    """Adds up what least squares needs, in float64; memory does not depend on how many rows are added.

    That is a matrix (source hidden_size, source + target hidden_size) a map. Rows are added relative to the first
    batch's mean, so that a large common offset costs no digits.

    Arguments:
        num_layers: source layers.
        source_size: hidden_size of the source model.
        target_size: hidden_size of the target model.
        num_targets: target layers, each reached from every source layer; None: each source layer has one target.
        device: where it is added up; None: the CPU.
    """

    def __init__(
        self,
        num_layers: int,
        source_size: int,
        target_size: int,
        *,
        num_targets: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._pairs = num_targets is not None
        self._layers, self._targets = num_layers, num_targets or 1
        self.source_size, self.target_size = source_size, target_size
        self.num_rows = 0
        self._device = torch.device("cpu" if device is None else device)
        target_axes = (1, self._targets) if self._pairs else (num_layers, 1)
        self._source_sum = self._zeros(num_layers, source_size)
        self._target_sum = self._zeros(*target_axes, target_size)
        self._gram = self._zeros(num_layers, source_size, source_size)
        self._cross = self._zeros(num_layers, self._targets, source_size, target_size)
        self._offsets: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def add(self, source: Tensor, target: Tensor) -> None:
        """Add rows.

        Arguments:
            source: (layer, row, source_size).
            target: (layer, row, target_size), of the same rows. With `num_targets` its layers are the target layers;
                else the source layers, or one layer that serves all.

        Raises:
            InterpError: shapes that do not fit, or numbers that are not finite.
        """
        target_layers = (self._targets,) if self._pairs else (1, self._layers)
        rows = source.shape[1] if source.dim() == 3 else -1
        if tuple(source.shape) != (self._layers, rows, self.source_size):
            raise InterpError(
                f"source: expected shape (layer, row, hidden_size) = ({self._layers}, any, {self.source_size}), got "
                f"{tuple(source.shape)}."
            )
        if target.dim() != 3 or tuple(target.shape[1:]) != (rows, self.target_size) or len(target) not in target_layers:
            raise InterpError(
                f"target: expected shape (layer, row, hidden_size) = ({' or '.join(map(str, target_layers))}, {rows}, "
                f"{self.target_size}), got {tuple(target.shape)}."
            )
        if not (bool(source.isfinite().all()) and bool(target.isfinite().all())):
            raise InterpError("expected finite latents, got NaN or infinity. Leave out prompts without the position.")
        x = source.to(self._device, torch.float64)
        y = target.to(self._device, torch.float64)
        y = y[None] if self._pairs else y[:, None].expand(self._layers, -1, -1, -1)  # (layer or 1, target, row, size)
        if self._offsets is None and rows:
            self._offsets = x.mean(dim=1), y.mean(dim=2)
        if self._offsets is None:
            return
        x = x - self._offsets[0][:, None]
        y = y - self._offsets[1][:, :, None]
        self.num_rows += rows
        self._source_sum += x.sum(dim=1)
        self._target_sum += y.sum(dim=2)
        for layer in range(self._layers):
            self._gram[layer] += x[layer].T @ x[layer]
            for reached in range(self._targets):
                self._cross[layer, reached] += x[layer].T @ y[layer if len(y) > 1 else 0, reached]

    @torch.no_grad()
    def solve(self, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
        """The maps that leave the smallest sum of squares; the smallest such W where several do.

        Arguments:
            ridge: weight of the penalty on the sum of squares of W; the bias is free.

        Returns:
            Weight (layer, target, target_size, source_size) and bias (layer, target, target_size), float32, CPU. The
            axis `target` has length 1 without `num_targets`.

        Raises:
            InterpError: no more rows than numbers in a latent, without ridge: such a fit would be exact on anything.
        """
        if ridge < 0:
            raise InterpError(f"ridge: expected 0 or more, got {ridge}.")
        if self._offsets is None or (self.num_rows <= self.source_size and ridge == 0):
            raise InterpError(
                f"{self.num_rows} rows cannot fix an affine map of {self.source_size} numbers: expected more rows than "
                f"that. Add rows, or give ridge a positive value."
            )
        weight = torch.empty(
            self._layers, self._targets, self.target_size, self.source_size, dtype=torch.float32, device="cpu"
        )
        bias = torch.empty(self._layers, self._targets, self.target_size, dtype=torch.float32, device="cpu")
        for layer in range(self._layers):
            mean = self._source_sum[layer] / self.num_rows  # (source,), relative to the offset
            gram = self._gram[layer] - self.num_rows * torch.outer(mean, mean)
            gram.diagonal().add_(ridge)
            inverse = _inverse(gram)
            for reached in range(self._targets):
                place = (0 if self._pairs else layer, reached)
                target_mean = self._target_sum[place] / self.num_rows
                cross = self._cross[layer, reached] - self.num_rows * torch.outer(mean, target_mean)
                solved = (inverse @ cross).T  # (target, source)
                weight[layer, reached] = solved
                centre = self._offsets[0][layer] + mean
                bias[layer, reached] = self._offsets[1][place] + target_mean - solved @ centre
        return weight, bias

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)


def _inverse(gram: Tensor) -> Tensor:
    """The inverse of a symmetric matrix, without the directions in which it is nothing."""
    return torch.linalg.pinv(gram, rtol=_RANK_TOLERANCE, hermitian=True)
