"""What `model.run` gives: logits, activations, gradients and new tokens, by example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from interp.errors import InterpError, nearest
from interp.sites import Site, Spelling, parse_site

__all__ = ["RunResult", "SiteTensors"]


class SiteTensors(Mapping[str, Tensor]):
    """Tensors by site, in any spelling: `values["resid_post.-1"]`, `values["blocks.3.hook_z"]`; `sites` has the sites.

    Arguments:
        values: the tensors.
        sizes: layers, heads and key-value heads of the model, for spellings that count from the end.
    """

    def __init__(self, values: Mapping[Site, Tensor], sizes: tuple[int, int, int]) -> None:
        self.sites = {str(site): site for site in values}
        self._values = {str(site): value for site, value in values.items()}
        self._sizes = sizes

    def __getitem__(self, site: Spelling) -> Tensor:
        name = str(parse_site(site, *self._sizes))
        if name not in self._values:
            raise InterpError(
                f"{name} was not read.{nearest(name, self._values) if self._values else ''} Name it in read=."
            )
        return self._values[name]

    def __contains__(self, site: object) -> bool:
        return str(parse_site(site, *self._sizes)) in self._values  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"SiteTensors({', '.join(f'{name}: {tuple(value.shape)}' for name, value in self._values.items())})"


@dataclass(frozen=True, eq=False)
class RunResult:
    """A run of examples. Where an example has no such position, and no such key, tensors hold NaN.

    Arguments:
        labels: what the positions are called, one for each place on the axis `position`.
        tokens: of each example its tokens there, counted from 0; -1: it has none.
        activations: what was read, in the shapes of `interp.sites.SHAPES` with the positions that were asked for in
            place of all, keys counted from each example's own first token; without the head axis where a site names
            one head. `result["resid_post.3"]` is short for `result.activations["resid_post.3"]`.
        logits: (example, position, vocabulary); None: not asked for.
        metric: (example,), what `gradients_of` gave; None: no gradients.
        gradients: of each example's metric at the sites that were read, as `activations`; None: not asked for.
        new_ids: the new tokens of each example, that which ended it included; None: nothing was generated.
        new_logits: (example, step, vocabulary), what each new token was chosen from.
        texts: the new tokens as text.
    """

    labels: list[str]
    tokens: list[list[int]]
    activations: SiteTensors
    logits: Tensor | None = None
    metric: Tensor | None = None
    gradients: SiteTensors | None = None
    new_ids: list[list[int]] | None = None
    new_logits: Tensor | None = None
    texts: list[str] | None = None

    def __getitem__(self, site: Spelling) -> Tensor:
        return self.activations[site]

    def __repr__(self) -> str:
        parts = [f"{len(self.tokens)} examples", f"positions {', '.join(self.labels)}", repr(self.activations)]
        return f"RunResult({'; '.join(parts)})"
