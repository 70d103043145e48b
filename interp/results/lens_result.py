"""Result of a lens: arrays with named axes, as a table, a figure or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from interp.results.drawing import plots
from interp.results.named_arrays import Coordinate, Coordinates, NamedArrays
from interp.text import token_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

__all__ = ["Attribution", "FigureKind", "Floats", "Integers", "LensResult", "Quantity"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Table = Literal["groups", "top", "distribution"]
FigureKind = Literal["curves", "heat_map", "tokens"]
Quantity = Literal["probability", "log_prob", "rank", "entropy", "kl", "surprisal"]


@dataclass(frozen=True, eq=False, repr=False)
class LensResult(NamedArrays):
    """One lens over some examples. All logarithms are natural (nats), all floats float32.

    The leading axes, `...` below, are `example` and those that the lens has: `layer`; `position` and `layer`;
    `source_layer` and `target_layer`; `site`; `window` and `block`. Where an example has no such position, floats are
    NaN and integers -1.

    Arguments:
        coordinates: the leading axes in order -> what stands along each, e.g. `{"example": range(8), "layer": layers}`.
        log_prob: (..., group), log of the summed probability of a group's distinct tokens; NaN: empty group.
        rank: (..., group), how many tokens stand above the group's best one; -1: empty group.
        top_ids: (..., k), the most probable tokens, best first.
        top_log_prob: (..., k), their log-probabilities.
        entropy: (...).
        kl: (...), KL(the lens at the last layer || the lens here); each lens says what it compares with.
        surprisal: (...), -ln p_model(the lens's most probable token), where p_model is what the model itself says at
            the source position (Ghandeharioun et al. 2024); NaN where that is not known.
        model_top_id: (example,) or (example, position), the most probable token of p_model; -1 where it is not known.
        baseline: (example, group), log-probability of the groups after the unpatched target prompt; None for a lens
            that has no target prompt.
        group_names: names along the axis `group`; left empty, they are numbers.

    Raises:
        InterpError: an array whose shape does not fit the coordinates.
    """

    coordinates: Coordinates  # type: ignore[assignment]  # given as any sequences, kept as tuples
    log_prob: Floats
    rank: Integers
    top_ids: Integers
    top_log_prob: Floats
    entropy: Floats
    kl: Floats
    surprisal: Floats
    model_top_id: Integers
    baseline: Floats | None = None
    group_names: tuple[str, ...] = ()

    ARRAYS: ClassVar[Mapping[str, tuple[tuple[str, ...], type]]] = {
        "log_prob": (("...", "group"), np.float32),
        "rank": (("...", "group"), np.int32),
        "top_ids": (("...", "top"), np.int32),
        "top_log_prob": (("...", "top"), np.float32),
        "entropy": (("...",), np.float32),
        "kl": (("...",), np.float32),
        "surprisal": (("...",), np.float32),
        "model_top_id": (("prompt",), np.int32),
        "baseline": (("example", "group"), np.float32),
    }

    def to_frame(self, table: Table = "groups", *, tokenizer: PreTrainedTokenizerBase | None = None) -> pd.DataFrame:
        """The result as a tidy table: one observation a row, a column for each leading axis.

        Arguments:
            table: `groups`: a row for each group, with `log_prob`, `probability`, `rank` and, where there is a
                baseline, `baseline_log_prob`. `top`: a row for each top token, with `place` (0: the best), `token_id`,
                `log_prob`, `probability`. `distribution`: `entropy`, `kl`, `surprisal`, `top_id`, `model_top_id`.
            tokenizer: adds the text of tokens, `token`, to `top`, the one table that it is for.

        Returns:
            The table, logarithms in nats; without rows for positions that an example does not have.

        Raises:
            InterpError: no such table, or a tokenizer for one that has no texts.
        """
        import pandas as pd

        if table not in get_args(Table):
            raise InterpError(f"expected a table, got {table!r}.{nearest(table, get_args(Table))}")
        if tokenizer is not None and table != "top":
            raise InterpError(f"tokenizer: the texts of tokens are in the table 'top', and {table!r} is asked for.")
        own: dict[str, Sequence[Coordinate]] = {
            "groups": {"group": self.group_names},
            "top": {"place": range(self.top_ids.shape[-1])},
            "distribution": {},
        }[table]  # type: ignore[assignment]
        axes = {**self.coordinates, **own}
        shape = tuple(len(values) for values in axes.values())
        frame = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        columns: dict[str, NDArray] = {}
        if table == "groups":
            columns = {"log_prob": self.log_prob, "probability": np.exp(self.log_prob), "rank": self.rank}
            if self.baseline is not None:
                columns["baseline_log_prob"] = self._spread(self.baseline, ("example", "group"), (*self.axes, "group"))
        elif table == "top":
            columns = {"token_id": self.top_ids, "log_prob": self.top_log_prob}
            columns["probability"] = np.exp(self.top_log_prob)
        else:
            columns = {"entropy": self.entropy, "kl": self.kl, "surprisal": self.surprisal}
            columns["top_id"] = self.top_ids[..., 0]
            columns["model_top_id"] = self._spread(self.model_top_id, self.axes_of("model_top_id"), self.axes)
        for name, values in columns.items():
            frame[name] = np.broadcast_to(values, shape).ravel()
        if tokenizer is not None:
            texts = {token: token_text(tokenizer, int(token)) for token in np.unique(self.top_ids) if token >= 0}
            frame.insert(list(frame.columns).index("log_prob"), "token", frame["token_id"].map(texts))
        read = self.top_ids[..., 0] >= 0
        there = np.broadcast_to(read.reshape(read.shape + (1,) * len(own)), shape).ravel()
        return frame[there].reset_index(drop=True)

    def _spread(self, values: NDArray, axes: Sequence[str], over: Sequence[str]) -> NDArray:
        """An array with axes of length one for those of `over` that it has not."""
        return values.reshape(tuple(values.shape[axes.index(axis)] if axis in axes else 1 for axis in over))

    def plot(
        self,
        kind: FigureKind | None = None,
        *,
        quantity: Quantity = "probability",
        groups: Sequence[str] | None = None,
        example: Coordinate | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        position_names: Sequence[str] | None = None,
        confidence: float = 0.95,
        title: str | None = None,
    ) -> Figure:
        """Draw curves, heat maps or tokens.

        Arguments:
            kind: `curves`: mean of each group over examples along the one axis beside `example`, with a confidence
                band; `heat_map`: the mean over the two axes beside `example`, a map for each group; `tokens`: the most
                probable token of one example at every layer (and position). None: by the number of axes.
            quantity: what curves and heat maps show: a group's `probability`, `log_prob` or `rank`, or `entropy`, `kl`
                or `surprisal`; nats.
            groups: which, in order; None: all.
            example: the example that is shown; None: the mean of all, and the first for `tokens`.
            tokenizer: what tokens are called by; None: their ids.
            position_names: what stands along the axis `position` in place of its coordinates, such as a prompt's
                tokens.
            confidence: of the band, mean -+ z std / sqrt(n) with the normal quantile z.
            title: above the figure.

        Returns:
            A figure of matplotlib's (`interp.plots.Figure`): a notebook shows it with values on hover, `.savefig(path)`
            writes it.

        Raises:
            ImportError: matplotlib is not installed.
            InterpError: more axes than the figure has (`select` first), or no such group or example.
        """
        return plots().lens_figure(
            self, kind, quantity=quantity, groups=groups, example=example, tokenizer=tokenizer,
            position_names=position_names, confidence=confidence, title=title,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(NamedArrays):
    """What parts of a model add to the logits of groups of tokens, in logits.

        logit == sum of contribution over sites + constant + remainder

    The leading axes are `example`, `position` where several are asked for, and `site`. A group of several tokens has
    the mean of their logits; the difference of two groups is the difference of their numbers.

    Arguments:
        coordinates: the leading axes -> what stands along each.
        contribution: (..., group).
        logit: (example[, position], group), the model's own, with its scale and before its softcap.
        constant: (example, group), what the biases of final norm and head give, whatever the prompt.
        remainder: (example[, position], group), what the sites leave to others; with all of them, roundings.
        group_names: names along the axis `group`.
    """

    coordinates: Coordinates  # type: ignore[assignment]
    contribution: Floats
    logit: Floats
    constant: Floats
    remainder: Floats
    group_names: tuple[str, ...] = ()

    ARRAYS: ClassVar[Mapping[str, tuple[tuple[str, ...], type]]] = {
        "contribution": (("...", "group"), np.float32),
        "logit": (("prompt", "group"), np.float32),
        "constant": (("example", "group"), np.float32),
        "remainder": (("prompt", "group"), np.float32),
    }

    def to_frame(self) -> pd.DataFrame:
        """A tidy table: a row for each example, position, site and group, with its `contribution` in logits.

        Positions that an example does not have have no rows.
        """
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [*self.coordinates.values(), self.group_names], names=[*self.coordinates, "group"]
        )
        frame = index.to_frame(index=False)
        frame["contribution"] = self.contribution.ravel()
        return frame.dropna(ignore_index=True)

    def top_k(self, k: int = 10, *, largest: Literal["both", "positive", "negative"] = "both") -> pd.DataFrame:
        """The parts that add the most, for each example, position and group.

        Arguments:
            k: how many.
            largest: by magnitude (`both`), the largest (`positive`), or the smallest, most negative (`negative`).

        Returns:
            As `to_frame`, with the column `place`, 0 for the first.

        Raises:
            InterpError: no such order, or no part asked for.
        """
        orders = {"both": lambda values: -values.abs(), "positive": lambda values: -values, "negative": lambda x: x}
        if largest not in orders:
            raise InterpError(f"largest: expected {', '.join(orders)}, got {largest!r}.{nearest(largest, orders)}")
        if k < 1:
            raise InterpError(f"k: expected at least 1, got {k}.")
        frame = self.to_frame()
        order = frame.assign(_key=orders[largest](frame["contribution"]))
        by = [axis for axis in frame.columns if axis not in ("site", "contribution")]
        order = order.sort_values([*by, "_key"], kind="stable").drop(columns="_key")
        order["place"] = order.groupby(by, sort=False).cumcount()
        return order[order["place"] < k].reset_index(drop=True)

    def plot(
        self, *, groups: Sequence[str] | None = None, example: Coordinate | None = None, title: str | None = None
    ) -> Figure:
        """Draw bars of the contributions of every site, by group; see `LensResult.plot`.

        Arguments:
            groups: which, in order; None: all.
            example: the example that is shown; None: the mean of all.
            title: above the figure.

        Raises:
            ImportError: matplotlib is not installed.
            InterpError: several positions (`select` one first), or no such group or example.
        """
        return plots().attribution_figure(self, groups=groups, example=example, title=title)
