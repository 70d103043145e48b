"""`PatchingResult`: metrics of patched runs by row, with statistics over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from interp.errors import InterpError, nearest
from interp.results import PatchingResult as _Values

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PatchingResult"]

_RENAMED = {"head_index": "head", "dest_pos": "pos"}


@dataclass
class PatchingResult:
    """Metrics of patched runs.

    Arguments:
        values: ([metric,] *grid[, row]): the first axis where metrics were named, the last unless `reduced`. Of a table
            of cells the grid is one axis.
        axis_names: of the grid; empty of a table.
        index_df: a row a cell.
        metric_names: of the metrics.
        reduced: rows were averaged, or the metric is one number.
        baseline: ([metric,][row]), of the corrupted run as it is; None: not asked for.
        has_metric_axis: metrics were named.
        patch_type_names: what the axis `patch_type` stands for.
    """

    values: Tensor
    axis_names: list[str]
    index_df: pd.DataFrame
    metric_names: list[str]
    reduced: bool
    baseline: Tensor | None = None
    has_metric_axis: bool = False
    patch_type_names: list[str] | None = None

    def __getitem__(self, metric_name: str) -> PatchingResult:
        """The result of one metric.

        Raises:
            InterpError: there is none of that name.
        """
        if metric_name not in self.metric_names:
            raise InterpError(f"no metric {metric_name!r}.{nearest(metric_name, self.metric_names)}")
        if not self.has_metric_axis:
            return self
        index = self.metric_names.index(metric_name)
        baseline = None if self.baseline is None else self.baseline[index]
        return PatchingResult(
            self.values[index], self.axis_names, self.index_df, [metric_name], self.reduced, baseline, False,
            self.patch_type_names,
        )  # fmt: skip

    def mean(self) -> Tensor:
        """The mean over rows."""
        return self.values if self.reduced else self.values.mean(-1)

    def stderr(self) -> Tensor:
        """The standard error of that mean."""
        self._check_rows("stderr")
        return self.values.std(-1) / self.values.shape[-1] ** 0.5

    def effect(self) -> Tensor:
        """What each patch does to the metric: `values - baseline`."""
        return self.values - self._baseline()

    def normalized(self, clean_baseline: Tensor) -> Tensor:
        """(values - corrupted) / (clean - corrupted): 0 where a patch does nothing, 1 where it restores the clean run.

        Arguments:
            clean_baseline: the metric of the clean run, of the shape of `baseline`.
        """
        corrupted = self._baseline()
        assert self.baseline is not None  # else that was refused
        clean = torch.as_tensor(clean_baseline).to(self.values)
        if clean.shape != self.baseline.shape:
            raise InterpError(f"clean_baseline: expected shape {tuple(self.baseline.shape)}, got {tuple(clean.shape)}.")
        return (self.values - corrupted) / (clean.reshape(corrupted.shape) - corrupted)

    def bootstrap_ci(
        self, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0, of_effect: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The lower and upper end of the percentile bootstrap interval of each cell's mean over rows."""
        found = self._statistics(confidence, n_resamples, seed, "effect" if of_effect else "patched")
        return found["low"], found["high"]

    def permutation_pvalue(self, *, seed: int = 0) -> Tensor:
        """Two-sided p-values of each cell's mean effect being zero, by flipping signs of rows."""
        self._baseline()
        return self._statistics(0.95, 2, seed, "effect")["p_value"]

    def to_dataframe(self) -> pd.DataFrame:
        """A table: a row for each metric, cell and row of the batch."""
        import pandas as pd

        values = (self.values if self.has_metric_axis else self.values[None]).cpu()
        values = values.reshape(len(self.metric_names), len(self.index_df), -1)
        frames = []
        for name, of_metric in zip(self.metric_names, values, strict=True):
            frame = self.index_df.loc[self.index_df.index.repeat(of_metric.shape[1])].reset_index(drop=True)
            frame.insert(0, "metric", name)
            if self.patch_type_names is not None and "patch_type" in frame:
                frame["patch_type_name"] = [self.patch_type_names[int(index)] for index in frame["patch_type"]]
            if not self.reduced:
                frame["example"] = np.tile(np.arange(of_metric.shape[1]), len(self.index_df))
            frame["value"] = of_metric.flatten().numpy()
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    @classmethod
    def stacked(cls, results: Sequence[PatchingResult], axes: Sequence[str], names: Sequence[str]) -> PatchingResult:
        """Grids of several values on a leading axis `patch_type`; shared heads are filled with 0.

        Arguments:
            results: of the same metrics and rows.
            axes: of the grid.
            names: what the results are of.
        """
        import pandas as pd

        first = results[0]
        lead = int(first.has_metric_axis)
        values = []
        for result in results:
            own = [_RENAMED.get(name, name) for name in result.axis_names]
            rest = range(lead + len(own), result.values.ndim)
            values.append(result.values.permute(*range(lead), *(lead + own.index(name) for name in axes), *rest))
        if "head" in axes:
            at = lead + list(axes).index("head")
            heads = max(value.shape[at] for value in values)
            behind = [0] * 2 * (values[0].ndim - 1 - at)
            values = [functional.pad(value, (*behind, 0, heads - value.shape[at])) for value in values]
        whole = torch.stack(values, dim=lead)
        shape = whole.shape[lead : lead + 1 + len(axes)]
        table = pd.MultiIndex.from_product([range(size) for size in shape], names=["patch_type", *axes])
        return cls(
            whole, ["patch_type", *axes], table.to_frame(index=False), first.metric_names, first.reduced,
            first.baseline, first.has_metric_axis, list(names),
        )  # fmt: skip

    def _statistics(self, confidence: float, resamples: int, seed: int, quantity: str) -> dict[str, Tensor]:
        self._check_rows("statistics")
        values = (self.values if self.has_metric_axis else self.values[None]).cpu()
        cells = values.reshape(len(self.metric_names), -1, values.shape[-1]).permute(2, 1, 0).numpy()
        before = torch.zeros(len(self.metric_names), values.shape[-1])
        if self.baseline is not None:
            before = self.baseline.cpu().reshape(before.shape)
        of_rows = before.T.numpy().astype(np.float32)
        result = _Values(
            {"example": range(cells.shape[0]), "cell": range(cells.shape[1])},
            patched=cells.astype(np.float32), clean=of_rows, corrupted=of_rows, group_names=tuple(self.metric_names),
        )  # fmt: skip
        frame = result.statistics(quantity, confidence=confidence, resamples=resamples, seed=seed)  # type: ignore[arg-type]
        return {
            name: torch.from_numpy(frame[name].to_numpy(np.float32).copy()).reshape(self.values.shape[:-1])
            for name in ("low", "high", "p_value")
        }

    def _baseline(self) -> Tensor:
        """The baseline with the grid's axes."""
        if self.baseline is None:
            raise InterpError("this needs the corrupted run's metric: pass baseline=True.")
        lead, rows = int(self.has_metric_axis), int(not self.reduced)
        grid = self.values.ndim - lead - rows
        shape = self.baseline.shape
        return self.baseline.reshape(*shape[:lead], *(1 for _ in range(grid)), *shape[lead:])

    def _check_rows(self, what: str) -> None:
        if self.reduced:
            raise InterpError(f"{what}: rows were averaged. Pass reduce='none'.")
