"""Steering vectors from contrast pairs: what prompts of one kind have at a site and those of the other have not.

The difference of means (Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2024, arXiv 2312.06681) keeps the size that
the difference has in the model. The first principal component of the differences of pairs (Zou et al. 2023, arXiv
2310.01405) is a direction of length 1: what most of the pairs' differences lie along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.interventions.intervention import Intervention
from interp.interventions.values import SavedTensor
from interp.sites import canonical
from interp.tensor_files import read_tensors, write_tensors

__all__ = ["Contrast", "SteeringVectors", "contrast"]

Contrast = Literal["mean_difference", "principal_component"]
_KEY = "interpipe"
_KIND = "SteeringVectors"


def contrast(positive: Tensor, negative: Tensor, method: Contrast) -> Tensor:
    """The direction from one kind of prompts to the other.

    Arguments:
        positive, negative: (prompt, ..., number), what prompts of either kind have; prompt i of one is the pair of
            prompt i of the other. For the difference of means they may be different in number.
        method: `mean_difference`, or `principal_component`: of the differences of the pairs, as they are, not around
            their mean, which is what is looked for; length 1, towards `positive`.

    Returns:
        (..., number), float32.

    Raises:
        InterpError: an unknown method, no prompts, prompts that are no pairs, or no difference at all.
    """
    methods = get_args(Contrast)
    if method not in methods:
        raise InterpError(f"method: expected {' or '.join(methods)}, got {method!r}.{nearest(str(method), methods)}")
    positive, negative = positive.float(), negative.float()
    difference = positive.mean(0) - negative.mean(0)
    if method == "mean_difference":
        if not bool(difference.any()):
            raise InterpError("method mean_difference: the means of the two sets are the same, which steers nowhere.")
        return difference
    if len(positive) != len(negative):
        raise InterpError(
            f"method principal_component: expected pairs, got {len(positive)} positive and {len(negative)} negative "
            "prompts. The mean_difference takes any number of either."
        )
    pairs = (positive - negative).movedim(0, -2)  # (..., pair, number)
    if not bool((pairs.flatten(-2).norm(dim=-1) > 0).all()):
        raise InterpError("method principal_component: the pairs do not differ at all.")
    first = torch.linalg.svd(pairs, full_matrices=False).Vh[..., 0, :]
    towards = (first * difference).sum(-1, keepdim=True)
    return torch.where(towards < 0, -first, first)


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """Vectors by site, in a safetensors file under the names of the sites.

    Arguments:
        vectors: site, in the canonical spelling -> (number,), or (head, number) for all heads of a site.
        method: how they were made.
    """

    vectors: Mapping[str, Tensor]
    method: str

    def __post_init__(self) -> None:
        named = {canonical(site): vector.detach() for site, vector in self.vectors.items()}
        if not named:
            raise InterpError("steering vectors: expected a vector for one site at least, got none.")
        object.__setattr__(self, "vectors", named)

    def __getitem__(self, site: str) -> Tensor:
        name = canonical(site)
        if name not in self.vectors:
            raise InterpError(f"there is no steering vector for {name}.{nearest(name, self.vectors)}")
        return self.vectors[name]

    def save(self, path: str | Path) -> None:
        """Write them into a safetensors file, whose folder has to exist."""
        write_tensors(path, self.vectors, {_KEY: json.dumps({"kind": _KIND, "method": self.method})})

    @classmethod
    def load(cls, path: str | Path) -> SteeringVectors:
        """Read what `save` wrote.

        Raises:
            InterpError: no such file, or one that holds something else.
        """
        vectors, header = read_tensors(path)
        described = json.loads(header.get(_KEY, "{}"))
        if described.get("kind") != _KIND:
            raise InterpError(f"{str(path)!r}: expected {_KIND}, found {described.get('kind', 'other tensors')}.")
        return cls(vectors, described["method"])

    def interventions(
        self,
        positions: str | int | Sequence[Any] = "all",
        factor: float = 1.0,
        *,
        sites: str | None = None,
        steps: str = "every",
        file: str | Path | None = None,
    ) -> list[Intervention]:
        """What adds them, times a factor, at their sites.

        Arguments:
            positions, factor, steps: as in `Intervention`.
            sites: those alone, with spaces between (`resid_post.3 resid_post.4`); None: all of them.
            file: where they are saved: the interventions then name the file in place of holding the numbers.

        Raises:
            InterpError: a site without a vector.
        """
        names = list(self.vectors) if sites is None else canonical(sites).split()
        return [
            Intervention(
                name, positions, "add", self[name] if file is None else SavedTensor(str(file), name), factor=factor,
                steps=steps,
            )
            for name in names
        ]  # fmt: skip
