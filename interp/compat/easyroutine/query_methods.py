"""Queries and interventions of a `HookedModel`, as interventions of interp."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from interp.compat.easyroutine.ablation_queries import ablations
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.later_interventions import Intervention, changes_of
from interp.compat.easyroutine.patching_queries import patches
from interp.interventions import Intervention as Change

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["QueryMethods"]


class QueryMethods:
    """What a `HookedModel` changes in its runs.

    Attributes:
        additional_interventions: those that act in every run.
    """

    standardized: StandardizedTransformer
    additional_interventions: Sequence[Intervention | Change] = ()

    def changes(
        self, batch: InputBatch, ablation_queries: Any = None, patching_queries: Any = None, interventions: Any = None
    ) -> list[Change]:
        """All that is changed in a run: what is registered, interventions, patches, ablations, in this order.

        Arguments:
            batch: the examples.
            ablation_queries, patching_queries: a list, a dictionary or a table.
            interventions: easyroutine's, or interp's own.

        Raises:
            InterpError: what is unknown or does not fit, before the model runs.
        """
        model = self.standardized
        return [
            *changes_of(self.additional_interventions, batch, model),
            *changes_of(interventions, batch, model),
            *patches(patching_queries, batch, model),
            *ablations(ablation_queries, batch, model),
        ]

    def register_interventions(self, interventions: Iterable[Intervention | Change]) -> None:
        """Make interventions act in every run from now on, in place of those that were registered before."""
        self.additional_interventions = list(interventions)

    def clean_interventions(self) -> None:
        """Take the registered interventions away."""
        self.additional_interventions = ()
