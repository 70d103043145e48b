"""Results about circuits: scores of edges, and how faithful circuits of several sizes are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from interp.results.drawing import plots
from interp.results.lens_result import Floats, Integers
from interp.results.named_arrays import Coordinates, NamedArrays
from interp.results.patching_result import Direction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["EdgeScores", "FaithfulnessCurve", "area_under_roc"]


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(NamedArrays):
    """What a patch of each edge is expected to do to the metric, by example; NaN where two nodes have no edge.

    Arguments:
        coordinates: `example`, `sender` (what writes into the residual stream) and `receiver` (what reads it), named
            as in `interp.patching.ComputationGraph`.
        score: (example, sender, receiver), in the metric's unit: patched - unpatched.
        clean, corrupted: (example,), the metric of the prompts as they are.
        metric: its name.
        direction: `noising`: of corrupted values written into the clean run; `denoising`: of clean ones into the
            corrupted run.
    """

    coordinates: Coordinates  # type: ignore[assignment]  # given as any sequences, kept as tuples
    score: Floats
    clean: Floats
    corrupted: Floats
    metric: str = "metric"
    direction: Direction = "noising"
    group_names: tuple[str, ...] = ()

    ARRAYS: ClassVar = {
        "score": (("...",), np.float32),
        "clean": (("example",), np.float32),
        "corrupted": (("example",), np.float32),
    }
    FACTS: ClassVar[tuple[str, ...]] = ("metric", "direction")

    @property
    def mean(self) -> NDArray[np.float64]:
        """(sender, receiver), the mean over examples."""
        mean: NDArray[np.float64] = self.score.astype(np.float64).mean(axis=0)
        return mean

    @property
    def node_scores(self) -> dict[str, float]:
        """Source -> the sum of its edges' mean scores: what is attributed to the node as a whole.

        That holds of `edge_attribution_patching`, whose scores are of first order; exact effects do not add up.
        """
        return dict(zip(map(str, self.along("sender")), np.nansum(self.mean, axis=1).tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """A tidy table: a row for each edge, with `sender`, `receiver`, `edge`, the `mean` over examples, its
        `standard_error` (NaN for one example) and `n`; strongest edges first.
        """
        import pandas as pd

        there = ~np.isnan(self.score[0])
        scores = self.score[:, there].astype(np.float64)
        senders, receivers = np.nonzero(there)
        frame = pd.DataFrame(
            {
                "sender": np.array(self.along("sender"))[senders],
                "receiver": np.array(self.along("receiver"))[receivers],
            }
        )
        frame["edge"] = frame["sender"] + " -> " + frame["receiver"]
        frame["mean"] = scores.mean(axis=0)
        n = len(scores)
        frame["standard_error"] = scores.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.nan
        frame["n"] = n
        order = np.argsort(-frame["mean"].abs().to_numpy(), kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    def plot(self, strongest: int = 20, *, title: str | None = None) -> Figure:
        """Draw a heat map of senders and receivers, those that the strongest edges are between.

        Arguments:
            strongest: how many edges choose them; all edges between them are shown.
            title: above the figure.

        Returns:
            A figure of matplotlib's (`interp.plots.Figure`): a notebook shows it with values on hover, `.savefig(path)`
            writes it.

        Raises:
            ImportError: matplotlib is not installed.
            InterpError: no edge is asked for.
        """
        return plots().edges_figure(self, strongest, title=title)

    def auroc(self, edges: Collection[str]) -> float:
        """Area under the ROC curve of finding known edges by the absolute mean score.

        Arguments:
            edges: the true ones, `sender -> receiver`.

        Raises:
            InterpError: an edge that there is not, or none or all of them.
        """
        frame = self.to_frame()
        named = set(frame["edge"])
        for edge in edges:
            if edge not in named:
                raise InterpError(f"there is no edge {edge!r}.{nearest(edge, sorted(named))}")
        return area_under_roc(frame["mean"].abs().to_numpy(), frame["edge"].isin(list(edges)).to_numpy())


def area_under_roc(scores: NDArray, truth: NDArray) -> float:
    """The chance that a true item scores above one that is not, ties half (the area under the ROC curve).

    Arguments:
        scores: (item,); higher: more likely true.
        truth: (item,) of bool.

    Raises:
        InterpError: no item that is true, or none that is not.
    """
    truth = np.asarray(truth, dtype=bool)
    true, false = np.asarray(scores)[truth], np.asarray(scores)[~truth]
    if not len(true) or not len(false):
        raise InterpError(f"expected true items and others, got {len(true)} true ones of {len(truth)}.")
    above = (true[:, None] > false).sum() + (true[:, None] == false).sum() / 2
    return float(above / (len(true) * len(false)))


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(NamedArrays):
    """How much of what a model does circuits of growing size do (Mueller et al. 2025, arXiv 2504.13151).

    The faithfulness of a circuit is f = (circuit - corrupted) / (clean - corrupted), each the mean of the metric over
    examples: 1 as the whole model, 0 as nothing of it.

    Arguments:
        coordinates: `example` and `proportion`, the share of edges (or nodes) in each circuit, as text.
        circuit: (example, proportion), the metric of the clean prompts with everything outside the circuit corrupted.
        clean, corrupted: (example,), the metric of the prompts as they are.
        edges: (proportion,), how many edges each circuit has.
        metric: its name.
    """

    coordinates: Coordinates  # type: ignore[assignment]  # given as any sequences, kept as tuples
    circuit: Floats
    clean: Floats
    corrupted: Floats
    edges: Integers
    metric: str = "metric"
    group_names: tuple[str, ...] = ()

    ARRAYS: ClassVar = {
        "circuit": (("...",), np.float32),
        "clean": (("example",), np.float32),
        "corrupted": (("example",), np.float32),
        "edges": (("proportion",), np.int32),
    }
    FACTS: ClassVar[tuple[str, ...]] = ("metric",)

    @property
    def proportions(self) -> NDArray[np.float64]:
        """(proportion,), the shares of edges in numbers."""
        return np.array([float(text) for text in self.along("proportion")])

    @property
    def faithfulness(self) -> NDArray[np.float64]:
        """(proportion,).

        Raises:
            InterpError: the metric has the same mean for clean and corrupted prompts.
        """
        clean, corrupted = (float(values.astype(np.float64).mean()) for values in (self.clean, self.corrupted))
        if clean == corrupted:
            raise InterpError(
                f"{self.metric} is {clean:.6g} for clean and corrupted prompts alike: there is nothing to keep."
            )
        found: NDArray[np.float64] = (self.circuit.astype(np.float64).mean(axis=0) - corrupted) / (clean - corrupted)
        return found

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under faithfulness over the proportions, by trapezoids; higher is better.

        Where all circuits are as good as the model it is the range of the proportions, 0.999 for the benchmark's.
        """
        return float(np.trapezoid(self.faithfulness, self.proportions))

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area between faithfulness and 1, by trapezoids of |1 - f|; 0 is best."""
        return float(np.trapezoid(np.abs(1 - self.faithfulness), self.proportions))

    def to_frame(self) -> pd.DataFrame:
        """A row for each circuit: `proportion`, `edges`, the mean of the metric (`circuit`) and `faithfulness`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "proportion": self.proportions,
                "edges": self.edges,
                "circuit": self.circuit.astype(np.float64).mean(axis=0),
                "faithfulness": self.faithfulness,
            }
        )

    def plot(self, *, title: str | None = None) -> Figure:
        """Draw faithfulness by the share of edges, with CPR and CMD above; see `EdgeScores.plot`.

        Arguments:
            title: above the figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plots().faithfulness_figure(self, title=title)
