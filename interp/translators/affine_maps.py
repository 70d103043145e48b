"""Affine maps between layers, or between two models: what a patchscope puts latents through.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102, sections 2 and 4: the identity, an affine map fitted by
least squares from a layer to the last one, and affine maps between two models. A tuned lens is a map too
(`TunedLens.as_map`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from interp.errors import InterpError
from interp.tensor_files import write_tensors

__all__ = ["AffineFit", "AffineMap", "AffinePairs", "IdentityMap", "LatentMap"]


class LatentMap(Protocol):
    """What latents are put through before they are written elsewhere."""

    def __call__(self, latents: Tensor, layers: Sequence[int], /) -> Tensor:
        """Map latents.

        Arguments:
            latents: (layer, row, hidden_size of the source model).
            layers: what the axis `layer` stands for: source layers.

        Returns:
            (layer, row, hidden_size of the target model).
        """


@dataclass(frozen=True)
class IdentityMap:
    """Latents as they are."""

    def __call__(self, latents: Tensor, layers: Sequence[int]) -> Tensor:
        _check_axis(latents, layers)
        return latents


@dataclass(frozen=True)
class AffineMap:
    """x -> W x + b, one for each source layer.

    Arguments:
        layers: the source layers, each once.
        weight: (layer, target hidden_size, source hidden_size) float32.
        bias: (layer, target hidden_size) float32.

    Raises:
        InterpError: shapes that do not fit, or a layer twice.
    """

    layers: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        _check_once("layers", self.layers)
        expected = (len(self.layers), self.weight.shape[1] if self.weight.dim() == 3 else "target hidden_size")
        if self.weight.dim() != 3 or self.weight.shape[0] != len(self.layers) or tuple(self.bias.shape) != expected:
            raise InterpError(
                f"expected weight (layer, target, source) and bias (layer, target) for {len(self.layers)} layers, got "
                f"{tuple(self.weight.shape)} and {tuple(self.bias.shape)}."
            )

    @torch.no_grad()
    def __call__(self, latents: Tensor, layers: Sequence[int]) -> Tensor:
        """Map latents, in float32, on the device where they are.

        Raises:
            InterpError: a layer that there is no map for, or latents of another width.
        """
        _check_axis(latents, layers)
        _check_known(layers, self.layers, "source")
        if latents.shape[2] != self.weight.shape[2]:
            raise InterpError(
                f"latents: expected {self.weight.shape[2]} numbers each, as the map was fitted to, got "
                f"{latents.shape[2]}. Are they of another model?"
            )
        places = [self.layers.index(layer) for layer in layers]
        return torch.stack(
            [
                functional.linear(rows.float(), self.weight[place].to(rows.device), self.bias[place].to(rows.device))
                for rows, place in zip(latents, places, strict=True)
            ]
        )

    @classmethod
    def fit(
        cls, source: Tensor, target: Tensor, *, layers: Sequence[int] | None = None, ridge: float = 0.0
    ) -> AffineMap:
        """Fit by least squares, with bias, each source layer by itself. Latents in batches: `AffineFit`.

        Arguments:
            source: (layer, row, hidden_size).
            target: (layer, row, hidden_size of the target model), what each should become; one layer, such as the
                last, serves all source layers.
            layers: what the axis `layer` of `source` stands for; None: 0, 1, ...
            ridge: weight of the penalty on the sum of squares of W.

        Raises:
            InterpError: shapes that do not fit, numbers that are not finite, or too few rows.
        """
        held = tuple(range(len(source))) if layers is None else tuple(layers)
        fit = AffineFit(len(held), source.shape[-1], target.shape[-1])
        fit.add(source, target)
        return cls.of(fit, held, ridge=ridge)

    @classmethod
    def of(cls, fit: AffineFit, layers: Sequence[int], *, ridge: float = 0.0) -> AffineMap:
        """The map of a fit that has seen its rows.

        Arguments:
            fit: without `num_targets`.
            layers: its source layers.
            ridge: weight of the penalty on the sum of squares of W.
        """
        weight, bias = fit.solve(ridge)
        if weight.shape[1] != 1:
            raise InterpError("expected a fit with one target a source layer, got one of pairs. Use AffinePairs.of.")
        return cls(tuple(layers), weight[:, 0], bias[:, 0])

    @staticmethod
    def fit_pairs(
        source: Tensor,
        target: Tensor,
        *,
        layers: Sequence[int] | None = None,
        target_layers: Sequence[int] | None = None,
        ridge: float = 0.0,
    ) -> AffinePairs:
        """Fit a map from every source layer to every target layer, by least squares.

        Arguments:
            source: (source layer, row, hidden_size).
            target: (target layer, row, hidden_size of the target model), the same rows.
            layers: what the first axis of `source` stands for; None: 0, 1, ...
            target_layers: what the first axis of `target` stands for; None: 0, 1, ...
            ridge: weight of the penalty on the sum of squares of W.
        """
        held = tuple(range(len(source))) if layers is None else tuple(layers)
        reached = tuple(range(len(target))) if target_layers is None else tuple(target_layers)
        fit = AffineFit(len(held), source.shape[-1], target.shape[-1], num_targets=len(reached))
        fit.add(source, target)
        return AffinePairs.of(fit, held, reached, ridge=ridge)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the same map gives the same bytes."""
        write_tensors(
            path, {"layers": torch.tensor(self.layers, device="cpu"), "weight": self.weight, "bias": self.bias}
        )

    @classmethod
    def load(cls, path: str | Path) -> AffineMap:
        """Read what `save` wrote.

        Raises:
            InterpError: it is no such file.
        """
        held = _load(path, ("layers", "weight", "bias"))
        return cls(tuple(held["layers"].tolist()), held["weight"], held["bias"])


@dataclass(frozen=True)
class AffinePairs:
    """x -> W x + b, one for each pair of source and target layer.

    Arguments:
        layers: the source layers, each once.
        target_layers: the target layers, each once.
        weight: (source layer, target layer, target hidden_size, source hidden_size) float32.
        bias: (source layer, target layer, target hidden_size) float32.
    """

    layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        _check_once("layers", self.layers)
        _check_once("target_layers", self.target_layers)
        pairs = (len(self.layers), len(self.target_layers))
        if tuple(self.weight.shape[:2]) != pairs or self.bias.shape != self.weight.shape[:3]:
            raise InterpError(
                f"expected weight (source layer, target layer, target, source) and bias without the last axis, for "
                f"{pairs[0]} and {pairs[1]} layers, got {tuple(self.weight.shape)} and {tuple(self.bias.shape)}."
            )

    def to_layer(self, target_layer: int) -> AffineMap:
        """The maps from all source layers to one target layer.

        Raises:
            InterpError: there is none to that layer.
        """
        _check_known([target_layer], self.target_layers, "target")
        place = self.target_layers.index(target_layer)
        return AffineMap(self.layers, self.weight[:, place], self.bias[:, place])

    @classmethod
    def of(
        cls, fit: AffineFit, layers: Sequence[int], target_layers: Sequence[int], *, ridge: float = 0.0
    ) -> AffinePairs:
        """The maps of a fit with `num_targets` that has seen its rows."""
        weight, bias = fit.solve(ridge)
        return cls(tuple(layers), tuple(target_layers), weight, bias)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the same maps give the same bytes."""
        layers = {
            "layers": torch.tensor(self.layers, device="cpu"),
            "target_layers": torch.tensor(self.target_layers, device="cpu"),
        }
        write_tensors(path, {**layers, "weight": self.weight, "bias": self.bias})

    @classmethod
    def load(cls, path: str | Path) -> AffinePairs:
        """Read what `save` wrote.

        Raises:
            InterpError: it is no such file.
        """
        held = _load(path, ("layers", "target_layers", "weight", "bias"))
        layers, target_layers = tuple(held["layers"].tolist()), tuple(held["target_layers"].tolist())
        return cls(layers, target_layers, held["weight"], held["bias"])


def _check_axis(latents: Tensor, layers: Sequence[int]) -> None:
    if latents.dim() != 3 or latents.shape[0] != len(layers):
        raise InterpError(
            f"latents: expected shape (layer, row, hidden_size) with {len(layers)} layers, got {tuple(latents.shape)}."
        )


def _check_known(layers: Sequence[int], known: Sequence[int], what: str) -> None:
    missing = [layer for layer in layers if layer not in known]
    if missing:
        raise InterpError(
            f"the map has no {what} layers {missing}, only {list(known)}. Leave them out, or fit a map with them."
        )


def _check_once(name: str, layers: Sequence[int]) -> None:
    if not layers or len(set(layers)) != len(layers):
        raise InterpError(f"{name}: expected at least one layer, each once, got {list(layers)}.")


def _load(path: str | Path, names: Sequence[str]) -> dict[str, Tensor]:
    try:
        held = load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise InterpError(f"{path} is no file of affine maps ({error}). `save` writes one.") from error
    if set(held) != set(names):
        raise InterpError(f"{path}: expected {', '.join(names)}, got {', '.join(sorted(held))}. It is another kind.")
    return held


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
