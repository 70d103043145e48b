"""Define the metrics: one table of what is measured of a lens, in which unit, which way is better, how it is computed.

Stage `evaluate` measures them in the table's order; by it stage `report` draws them, and the end of a run names them. A
metric of your own is one function in a module that `plugins:` names:

    @metric("top_probability", title="Top probability", note="of the most probable token", is_share=True)
    def top_probability(lens: Measured) -> Floats | None:
        return np.exp(lens.read("top_log_prob", top=0)) if lens.has("top_log_prob") else None

So is a figure of your own, which stands in the report's section of each lens that it has panels for:

    @figure("token_map")
    def token_map(source: Source) -> Sequence[tuple[Panel, Frame]]:
        ...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.store import Store

__all__ = ["ENTROPY_UNITS", "FIGURES", "METRICS", "Floats", "Measured", "Metric", "figure", "metric"]

Floats = NDArray[np.float64]
ENTROPY_UNITS = {"bits": math.log(2), "nats": 1.0}  # nats in one unit


class Measured:
    """What one lens measured, example by example, as its store in `lens.zarr` holds it; logarithms are natural.

    Arguments:
        store: of the lens.
        entropy_unit: `bits` or `nats`.
    """

    def __init__(self, store: Store, entropy_unit: str = "bits") -> None:
        self.store = store
        self.entropy_unit = entropy_unit
        self.read = cache(self._read)  # several metrics read the same array

    @cached_property
    def groups(self) -> list[str]:
        """The groups of answer tokens; none where the task names no answers."""
        return list(self.store.attributes["groups"])

    @cached_property
    def reads(self) -> bool:
        """Whether the lens reads a distribution over the vocabulary in each cell of its axes."""
        return "log_prob" in self.store.arrays

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """What the axes after `example` stand for: `layer`, or `source_layer` and `target_layer`, or `layer`, `block`.

        A lens that reads no distribution generates text in each cell.
        """
        return tuple(self.store.dimensions("entropy" if self.reads else "num_tokens")[1:])

    def has(self, array: str) -> bool:
        """Whether the lens wrote an array."""
        return array in self.store.arrays

    def _read(self, array: str, **index: int) -> Floats:
        """An array in float64, whole or at one index of some of its dimensions: `read("top_ids", top=0)`."""
        return self.store.read(array, **index).astype(np.float64)  # type: ignore[arg-type]  # none of them is `raw`


@dataclass(frozen=True)
class Metric:
    """One metric.

    Arguments:
        name: in the tables, in `metrics.json` and in MLflow.
        title, unit, note: for people; the unit is empty for shares and counts. `{last}` in a note stands for the last
            layer that was read.
        measure: gives (example, *axes), of groups (example, *axes, group), of a baseline (example, group); NaN where it
            does not apply to an example, None where it does not apply to the lens.
        more_is_better: whether the summary names the highest layer; else the lowest.
        of_groups: whether there is one number for each group of answer tokens.
        is_share: whether it lies between 0 and 1.
        is_baseline: whether it is of a run without the lens, so that it has no layers.
        is_drawn: whether the page draws it; else it stands in its tables alone.
        is_compared: whether it means the same in every lens, so that lenses stand beside each other in it.
        patched_note: note where the lens writes into a target prompt; empty: the same.
        headline: how the last lines of a run name it, with `{}` for the group; empty: they do not.
    """

    name: str
    title: str
    unit: str
    note: str
    measure: Callable[[Measured], Floats | None]
    more_is_better: bool = False
    of_groups: bool = False
    is_share: bool = False
    is_baseline: bool = False
    is_drawn: bool = True
    is_compared: bool = False
    patched_note: str = ""
    headline: str = ""


METRICS: dict[str, Metric] = {}
"""Name -> metric, in the order of the tables' rows."""

Measure = Callable[[Measured], Floats | None]


def metric(name: str, *, title: str, unit: str = "", note: str = "", **facts: Any) -> Callable[[Measure], Measure]:
    """Register a metric by the function that measures it.

    Arguments:
        name, title, unit, note: see `Metric`.
        facts: the other fields of `Metric`.

    Raises:
        ValueError: another function measures a metric of this name.
    """

    def register(measure: Measure) -> Measure:
        known = METRICS.get(name)
        # A module that is run as `python -m` and imported is loaded twice: the same function again is no other.
        if known is not None and _home(known.measure) != _home(measure):
            raise ValueError(f"metric {name!r} is there twice: {_home(known.measure)} and {_home(measure)}.")
        METRICS[name] = Metric(name, title, unit, note, measure, **facts)
        return measure

    return register


FIGURES: dict[str, Callable[[Any], Any]] = {}
"""Name -> figure of a user's own: from a lens of a finished run (`pipeline.stages.report.source.Source`) to panels."""

Drawing = TypeVar("Drawing", bound=Callable[[Any], Any])


def figure(name: str) -> Callable[[Drawing], Drawing]:
    """Register a figure by the function that makes its panels: (panel, frame), see `interp.plots`; none: not drawn.

    It stands here, where nothing is loaded that draws, since a plugin is imported before a config is checked.

    Raises:
        ValueError: another function has the name.
    """

    def register(draw: Drawing) -> Drawing:
        if _home(FIGURES.get(name, draw)) != _home(draw):
            raise ValueError(f"figure {name!r} is there twice: {_home(FIGURES[name])} and {_home(draw)}.")
        FIGURES[name] = draw
        return draw

    return register


def _home(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@metric(
    "probability", title="Probability", note="summed over the tokens that count as the answer", more_is_better=True,
    of_groups=True, is_share=True, headline="P({})",
)  # fmt: skip
def probability(lens: Measured) -> Floats | None:
    """Summed probability of the group's tokens."""
    return np.exp(lens.read("log_prob")) if lens.reads else None


@metric(
    "top1_accuracy", title="Top-1 accuracy", note="share of examples whose top token counts as the answer",
    more_is_better=True, of_groups=True, is_share=True,
)  # fmt: skip
def top1_accuracy(lens: Measured) -> Floats | None:
    """1 where the most probable token is one of the group's."""
    ranks = rank(lens)
    return None if ranks is None else np.where(np.isnan(ranks), np.nan, ranks == 0)


@metric(
    "rank", title="Rank", note="of the group’s best token, 0 for the most probable", of_groups=True, is_drawn=False,
)  # fmt: skip
def rank(lens: Measured) -> Floats | None:
    """Rank of the group's best token, 0 for the most probable; an empty group has none."""
    if not lens.reads or not lens.groups:
        return None
    return np.where(np.isnan(lens.read("log_prob")), np.nan, lens.read("rank"))


@metric(
    "relative_probability", title="Probability left", note="relative to the unblocked run", more_is_better=True,
    of_groups=True, headline="P({})",
)  # fmt: skip
def relative_probability(lens: Measured) -> Floats | None:
    """`probability` with a block knocked out, divided by that without."""
    if not lens.reads or not lens.groups or "block" not in lens.axes:
        return None
    without = lens.read("baseline_source_log_prob")  # (example, group)
    return np.exp(lens.read("log_prob") - without[:, None, None, :])


def _entropy(lens: Measured, unit: str) -> Floats | None:
    """Entropy of the lens's distribution, where it is asked for in this unit."""
    return lens.read("entropy") / ENTROPY_UNITS[unit] if lens.reads and lens.entropy_unit == unit else None


@metric("entropy_bits", title="Entropy", unit="bits", note="of the distribution over the vocabulary")
def entropy_bits(lens: Measured) -> Floats | None:
    """Entropy in bits."""
    return _entropy(lens, "bits")


@metric("entropy_nats", title="Entropy", unit="nats", note="of the distribution over the vocabulary")
def entropy_nats(lens: Measured) -> Floats | None:
    """Entropy in nats."""
    return _entropy(lens, "nats")


@metric("kl_nats", title="KL divergence", unit="nats", note="from the distribution at layer {last} to this layer’s")
def kl_nats(lens: Measured) -> Floats | None:
    """KL(reference, this layer); the reference is the lens's own (`interp.lenses`)."""
    return lens.read("kl") if lens.reads else None


@metric(
    "precision_at_1", title="Precision@1", note="share of examples whose top token is the model’s own",
    patched_note="share of examples whose top token is what the model itself says after the source token",
    more_is_better=True, is_share=True, is_compared=True, headline="precision at 1",
)  # fmt: skip
def precision_at_1(lens: Measured) -> Floats | None:
    """1 where the lens's top token is the model's own (Ghandeharioun et al. 2024, section 4.1)."""
    if not lens.reads:
        return None
    model_top = lens.read("model_top_id").reshape(-1, *(1 for _ in lens.axes))
    return np.where(model_top < 0, np.nan, lens.read("top_ids", top=0) == model_top)


@metric(
    "surprisal_nats", title="Surprisal", unit="nats", note="−ln of the model’s own probability of the top token",
    patched_note="−ln of the model’s own probability, after the source token, of the top token", is_compared=True,
)  # fmt: skip
def surprisal_nats(lens: Measured) -> Floats | None:
    """-ln of the model's own probability of the lens's top token (Ghandeharioun et al. 2024, section 4.1)."""
    return lens.read("surprisal") if lens.reads else None


def _baseline(lens: Measured, prompt: str) -> Floats | None:
    """The groups' probability in an unpatched run, (example, group)."""
    array = f"baseline_{prompt}_log_prob"
    return np.exp(lens.read(array)) if lens.reads and lens.groups and lens.has(array) else None


@metric(
    "baseline_target_probability", title="Probability, unpatched target prompt", of_groups=True, is_share=True,
    is_baseline=True,
)  # fmt: skip
def baseline_target_probability(lens: Measured) -> Floats | None:
    """`probability` in the target prompt's unpatched run."""
    return _baseline(lens, "target")


@metric(
    "baseline_source_probability", title="Probability, unpatched source prompt", of_groups=True, is_share=True,
    is_baseline=True,
)  # fmt: skip
def baseline_source_probability(lens: Measured) -> Floats | None:
    """`probability` in the source prompt's unpatched run."""
    return _baseline(lens, "source")


@metric(
    "generation_accuracy", title="Answers in the text", more_is_better=True, of_groups=True, is_share=True,
    note="share of generated texts that hold one of the group’s words, spaces removed and case folded",
    headline="{} in the text",
)  # fmt: skip
def generation_accuracy(lens: Measured) -> Floats | None:
    """1 where the generated text holds one of the group's words."""
    if not lens.has("token_ids"):
        return None
    found = lens.read("answer_found")
    return np.where(found < 0, np.nan, found)


@metric("generated_tokens", title="Generated tokens", note="until the model ended its text, or the limit")
def generated_tokens(lens: Measured) -> Floats | None:
    """How many tokens were generated."""
    return lens.read("num_tokens") if lens.has("token_ids") else None
