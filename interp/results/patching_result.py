"""Result of patching: metrics of every patched run, and of the runs without a patch, by example.

What a patch does is measured for each example first; means, intervals and tests over examples come after. A grid is
many tests at once: of 384 cells without any effect, 19 have p < 0.05. So p-values are corrected over the grid, and the
size of that family stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from interp.results.drawing import plots
from interp.results.lens_result import Floats, Integers
from interp.results.named_arrays import Coordinate, Coordinates, NamedArrays

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

__all__ = ["Direction", "Effect", "PatchingResult"]

Direction = Literal["denoising", "noising"]
Effect = Literal["recovery", "effect", "patched"]
_ROUNDING = 1e-5  # of the largest value of a metric: a smaller effect is what two orders of summing differ by
_AT_ONCE = 1 << 22  # numbers that resampling holds at once
_FLIPS = 1 << 17  # ways to flip signs: all of up to 17 examples. Fewer could tell no cell of a large grid from chance.


@dataclass(frozen=True, eq=False, repr=False)
class PatchingResult(NamedArrays):
    """Metrics of runs with something of another run written into them. Groups are the metrics, in float32.

    The leading axes, `...` below, are `example` (a pair of prompts) and those of the grid: `site`, `layer`, `position`,
    `head`, or what else is patched. NaN where an example has no such cell.

    Arguments:
        coordinates: the leading axes in order -> what stands along each.
        patched: (..., group), the metric of each patched run.
        clean: (example, group), of the clean prompts as they are.
        corrupted: (example, group), of the corrupted prompts as they are.
        token_ids: (example, position), the token of the patched prompt at each position, -1: none; None where the
            result has no axis `position`, or several tokens stand at one place of it.
        direction: `denoising`: clean values are written into the corrupted run; `noising`: corrupted ones into the
            clean run.
        group_names: names of the metrics.

    Raises:
        InterpError: an array whose shape does not fit the coordinates, or an unknown direction.
    """

    coordinates: Coordinates  # type: ignore[assignment]  # given as any sequences, kept as tuples
    patched: Floats
    clean: Floats
    corrupted: Floats
    token_ids: Integers | None = None
    direction: Direction = "denoising"
    group_names: tuple[str, ...] = ()

    ARRAYS: ClassVar[Mapping[str, tuple[tuple[str, ...], type]]] = {
        "patched": (("...", "group"), np.float32),
        "clean": (("example", "group"), np.float32),
        "corrupted": (("example", "group"), np.float32),
        "token_ids": (("prompt",), np.int32),
    }
    FACTS: ClassVar[tuple[str, ...]] = ("direction",)

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise InterpError(
                f"direction: unknown {self.direction!r}.{nearest(str(self.direction), get_args(Direction))}"
            )
        super().__post_init__()

    @property
    def grid(self) -> tuple[str, ...]:
        """Names of the axes of the grid: the leading ones without `example`."""
        return self.axes[1:]

    @property
    def unpatched(self) -> NDArray[np.float32]:
        """(example, group), the metric of the run that is written into, before anything is."""
        return self.corrupted if self.direction == "denoising" else self.clean

    @property
    def effect(self) -> NDArray[np.float64]:
        """(..., group), patched - unpatched: what the patch does to the metric, in its unit."""
        return self.values("effect")

    @property
    def recovery(self) -> NDArray[np.float64]:
        """(..., group), (patched - corrupted) / (clean - corrupted): 0 as the corrupted run, 1 as the clean one.

        NaN where the two runs do not differ.
        """
        return self.values("recovery")

    def values(self, quantity: Effect) -> NDArray[np.float64]:
        """(..., group) of one quantity: `recovery`, `effect`, or the metric itself, `patched`.

        Raises:
            InterpError: an unknown quantity.
        """
        if quantity not in get_args(Effect):
            raise InterpError(f"expected a quantity, got {quantity!r}.{nearest(str(quantity), get_args(Effect))}")
        patched = self.patched.astype(np.float64)
        if quantity == "patched":
            return patched
        if quantity == "effect":
            return patched - self._over_grid(self.unpatched)
        clean, corrupted = self._over_grid(self.clean), self._over_grid(self.corrupted)
        span = np.broadcast_to(clean - corrupted, patched.shape)
        return np.divide(patched - corrupted, span, out=np.full(patched.shape, np.nan), where=span != 0)

    def _over_grid(self, by_example: NDArray) -> NDArray[np.float64]:
        """(example, 1, ..., group) of (example, group)."""
        shape = (by_example.shape[0], *(1 for _ in self.grid), by_example.shape[1])
        return by_example.astype(np.float64).reshape(shape)

    def statistics(
        self, quantity: Effect = "recovery", *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
    ) -> pd.DataFrame:
        """Mean over examples of every cell, with its interval and the test that the patch does nothing.

        The interval is a percentile bootstrap over examples. The test flips signs of (patched - unpatched) by example,
        in all ways for up to 17 examples and in 131,071 drawn ones for more; with n examples no p-value is below
        2 / 2^n. Effects below 1e-5 of the metric's largest value are roundings and count as none. The p-values are
        corrected for the number of cells (Benjamini & Hochberg 1995): of the cells with `p_corrected` < 0.05, less than
        5 % are expected to have no effect.

        Arguments:
            quantity: what the mean is of: `recovery`, `effect` or `patched`.
            confidence: of the interval.
            resamples: of the bootstrap.
            seed: of bootstrap and test.

        Returns:
            A row for each cell and metric: the axes of the grid, `metric`, `mean`, `standard_error`, `low`, `high`,
            `n` (examples that count), `p_value`, `p_corrected`, and `family_size`, how many tests were corrected
            together: all cells of one metric that have two examples or more. Interval and test are NaN for fewer.

        Raises:
            InterpError: an unknown quantity, a confidence out of range, or too few resamples.
        """
        import pandas as pd

        if not 0 < confidence < 1:
            raise InterpError(f"confidence: expected a number between 0 and 1, got {confidence}.")
        if resamples < 2:
            raise InterpError(f"resamples: expected at least 2, got {resamples}.")
        values = self.values(quantity)
        examples, groups = values.shape[0], values.shape[-1]
        values = values.reshape(examples, -1, groups)  # (example, cell, metric)
        frames = []
        for index, metric in enumerate(self.group_names):
            changes = self._changes(quantity, index).reshape(examples, -1)
            frame = self._cells()
            frame["metric"] = metric
            for name, column in _tested(values[..., index], changes, confidence, resamples, seed).items():
                frame[name] = column
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else self._cells().iloc[:0]

    def _changes(self, quantity: Effect, group: int) -> NDArray[np.float64]:
        """(...), what the patch changes in a quantity of one metric, without roundings."""
        effect = self.effect[..., group]
        largest = np.nanmax(np.abs(self.patched[..., group]), initial=0.0)
        if quantity == "recovery":
            fixed = 0.0 if self.direction == "denoising" else 1.0
            changes = self.recovery[..., group] - fixed
        else:
            changes = effect
        return np.where(np.abs(effect) <= _ROUNDING * largest, np.where(np.isnan(changes), np.nan, 0.0), changes)

    def _cells(self) -> pd.DataFrame:
        import pandas as pd

        if not self.grid:
            return pd.DataFrame(index=range(1))
        return pd.MultiIndex.from_product([self.coordinates[axis] for axis in self.grid], names=self.grid).to_frame(
            index=False
        )

    def to_frame(self) -> pd.DataFrame:
        """A tidy table: a row for each example, cell and metric that there is, with `patched`, `clean`, `corrupted`,
        `effect` and `recovery`. `statistics` gives the table over examples.
        """
        import pandas as pd

        axes = {**self.coordinates, "metric": self.group_names}
        frame = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        frame["patched"] = self.patched.ravel()
        for name, by_example in (("clean", self.clean), ("corrupted", self.corrupted)):
            frame[name] = np.broadcast_to(self._over_grid(by_example), self.patched.shape).ravel().astype(np.float32)
        frame["effect"] = self.effect.ravel()
        frame["recovery"] = self.recovery.ravel()
        return frame[frame["patched"].notna()].reset_index(drop=True)

    def plot(
        self,
        quantity: Effect = "recovery",
        *,
        metric: str | None = None,
        example: Coordinate | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        position_names: Sequence[str] | None = None,
        significant: float | None = None,
        title: str | None = None,
    ) -> Figure:
        """Draw a heat map over the two axes of the grid, layers upward; a row of tiles where it has one.

        Arguments:
            quantity: `recovery`, `effect` or `patched`.
            metric: which metric; None: the first.
            example: the example that is shown; None: the mean of all.
            tokenizer: positions are called by their tokens (of the example that is shown; of several, where all have
                the same token there).
            position_names: what stands along the axis `position` in place of its coordinates.
            significant: show cells alone whose corrected p-value is below this; the title says how many tests these
                are. None: all cells.
            title: above the figure.

        Returns:
            A figure of matplotlib's (`interp.plots.Figure`): a notebook shows it with values on hover, `.savefig(path)`
            writes it.

        Raises:
            ImportError: matplotlib is not installed.
            InterpError: more axes than two (`select` first), or no such metric or example.
        """
        return plots().patching_figure(
            self, quantity, metric=metric, example=example, tokenizer=tokenizer, position_names=position_names,
            significant=significant, title=title,
        )  # fmt: skip


def _tested(
    values: NDArray[np.float64], changes: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> dict[str, NDArray]:
    """Statistics over examples of each cell.

    Arguments:
        values: (example, cell), NaN where an example has no such cell.
        changes: (example, cell), what of them the patch does.

    Returns:
        Name of a column -> (cell,).
    """
    from scipy import stats

    known = np.isfinite(values)
    n = known.sum(axis=0)
    found = {
        name: np.full(n.shape, np.nan) for name in ("mean", "standard_error", "low", "high", "p_value", "p_corrected")
    }
    for rows, cells in _alike(known):
        own = values[np.ix_(rows, cells)]
        found["mean"][cells] = own.mean(axis=0)
        if len(rows) < 2:
            continue
        found["standard_error"][cells] = stats.sem(own, axis=0)
        interval = stats.bootstrap(
            (own,), np.mean, axis=0, vectorized=True, n_resamples=resamples, batch=max(1, _AT_ONCE // own.size),
            confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        found["low"][cells], found["high"][cells] = interval.low, interval.high
        found["p_value"][cells] = _sign_flip(changes[np.ix_(rows, cells)], seed)
    tested = np.isfinite(found["p_value"])
    if tested.any():
        found["p_corrected"][tested] = stats.false_discovery_control(found["p_value"][tested], method="bh")
    return {**found, "n": n, "family_size": np.full(n.shape, tested.sum())}


def _sign_flip(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Two-sided p-values (cell,) of the mean of (example, cell) being zero, by flipping signs of examples.

    What `scipy.stats.permutation_test(permutation_type="samples")` gives, which takes minutes for a large grid.
    """
    examples, cells = values.shape
    every = 1 << examples if examples < 63 else _FLIPS + 1
    observed = np.abs(values.sum(axis=0)) * (1 - 1e-12)  # roundings of sums that are equal
    as_far = np.zeros(cells)
    generator, step = np.random.default_rng(seed), max(1, _AT_ONCE // cells)
    flips = every if every <= _FLIPS else _FLIPS - 1
    for start in range(0, flips, step):
        count = min(step, flips - start)
        if every <= _FLIPS:
            numbers = np.arange(start, start + count)
            flipped = (numbers[:, None] >> np.arange(examples)) & 1
        else:
            flipped = generator.integers(0, 2, (count, examples))
        as_far += (np.abs((1.0 - 2.0 * flipped) @ values) >= observed).sum(axis=0)
    return as_far / flips if every <= _FLIPS else (as_far + 1) / (flips + 1)


def _alike(known: NDArray[np.bool_]) -> Iterator[tuple[NDArray, NDArray]]:
    """Cells that the same examples have, some at a time: (those examples, the cells), each by number."""
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for index, pattern in enumerate(patterns.T):
        rows, cells = pattern.nonzero()[0], (which.ravel() == index).nonzero()[0]
        if len(rows):
            for some in np.array_split(cells, -(-len(rows) * len(cells) * 4 // _AT_ONCE)):
                yield rows, some
