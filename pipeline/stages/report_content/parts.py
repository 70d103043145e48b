"""What a section of the report consists of: plain data, no drawing and no markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Baseline",
    "Cell",
    "Comparison",
    "Example",
    "Finding",
    "Group",
    "HeatMap",
    "LensSection",
    "Panel",
    "Series",
    "Table",
    "Text",
]


@dataclass(frozen=True)
class Group:
    """What a colour stands for, a group of answers, a block or a lens: its key, its label for people, its colour."""

    key: str
    label: str
    color: int


@dataclass(frozen=True)
class Series:
    """One curve; every list is by layer, NaN where unknown. `group` is None for a metric without groups."""

    group: Group | None
    layers: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: Sequence[int]


@dataclass(frozen=True)
class Baseline:
    """A dashed horizontal line; in ink where no group is named."""

    label: str
    group: Group | None
    value: float


@dataclass(frozen=True)
class Panel:
    """One chart over layers.

    Arguments:
        metric: as in `curves.parquet`.
        title, unit, note: for people.
        top: where the axis ends, for values between 0 and 1; None: at a round number above the values.
        series, baselines: what is drawn.
        caption: what the curves are, in a few words, under the chart; for a main panel.
        layer_label: what stands along the axis of layers.
    """

    metric: str
    title: str
    unit: str
    note: str
    top: float | None
    series: Sequence[Series]
    baselines: Sequence[Baseline] = ()
    caption: str = ""
    layer_label: str = "Layer"


@dataclass(frozen=True)
class Comparison:
    """Lenses whose curves stand in the same charts.

    Arguments:
        lenses: what the colours stand for.
        position: the source token that all of them read, for people.
        n_text: how many examples count.
        panels: one a metric; the group of a series is its lens.
    """

    lenses: Sequence[Group]
    position: str
    n_text: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class HeatMap:
    """One grid over source and target layers.

    Arguments:
        metric: as in `grids.parquet`.
        title, unit, note: for people.
        group: the group that it is about; None: none.
        sources, targets: the layers, ascending.
        mean, low, high: [source][target], NaN where unknown.
        n: [source][target], examples that count.
        top: the value of the strongest colour; the faintest is 0.
    """

    metric: str
    title: str
    unit: str
    note: str
    group: Group | None
    sources: Sequence[int]
    targets: Sequence[int]
    mean: Sequence[Sequence[float]]
    low: Sequence[Sequence[float]]
    high: Sequence[Sequence[float]]
    n: Sequence[Sequence[int]]
    top: float


@dataclass(frozen=True)
class Cell:
    """A likely token of one example somewhere; `groups` are those that the token is an answer of.

    Arguments:
        text, token_id, probability, log_prob, groups: of the token.
        place: where it was read, for people.
    """

    text: str
    token_id: int
    probability: float
    log_prob: float
    groups: Sequence[Group]
    place: str


@dataclass(frozen=True)
class Text:
    """What a model wrote at one layer; `groups` are those that have a word in it."""

    layer: int
    text: str
    num_tokens: int
    groups: Sequence[Group]


@dataclass(frozen=True)
class Example:
    """One example of a lens.

    Arguments:
        title: for people.
        labels: what the example is about.
        prompts: (caption, text) of what the model was fed.
        answers: each group with its accepted words.
        corner: what the rows are.
        columns: what each cell of a row is.
        rows: (layer, one cell a column), from the last layer to the first.
        texts: what was generated, from the last layer to the first; then there are no rows.
    """

    title: str
    labels: Mapping[str, str]
    prompts: Sequence[tuple[str, str]]
    answers: Sequence[tuple[Group, Sequence[str]]]
    corner: str = "Layer"
    columns: Sequence[str] = ()
    rows: Sequence[tuple[int, Sequence[Cell]]] = ()
    texts: Sequence[Text] = ()


@dataclass(frozen=True)
class Finding:
    """A stretch of layers that one group leads (`pipeline.stages.statistics.leads`), and its highest mean there."""

    group: Group
    first_layer: int
    last_layer: int
    taken_at: float | None
    highest: float


@dataclass(frozen=True)
class Table:
    """Numbers of each group or block, ready to show.

    Arguments:
        title: what it holds, in words.
        head: heading of the first column.
        columns: headings of the others.
        rows: the group and its numbers, one a column.
    """

    title: str
    head: str
    columns: Sequence[str]
    rows: Sequence[tuple[Group, Sequence[str]]]


@dataclass(frozen=True)
class LensSection:
    """One lens of the run.

    Arguments:
        name, title, method, paper: which lens, for people.
        unit: what its examples are, in the plural.
        num_examples: how many.
        n_text: how many count.
        layers_text: how many layers were measured.
        findings: who leads where; for a lens that reads groups by layer.
        remarks: (group, sentence) at a glance; for the others.
        groups: of answer tokens.
        main: the large chart; None: none.
        panels: the small ones.
        heat_maps: over source and target layers.
        summary: the few numbers of each group.
        examples: what is shown of single examples.
        examples_title: heading above them.
    """

    name: str
    title: str
    method: str
    paper: str
    unit: str
    num_examples: int
    n_text: str
    layers_text: str
    groups: Sequence[Group]
    main: Panel | None = None
    panels: Sequence[Panel] = ()
    heat_maps: Sequence[HeatMap] = ()
    findings: Sequence[Finding] = ()
    remarks: Sequence[tuple[Group | None, str]] = ()
    summary: Table | None = None
    examples: Sequence[Example] = field(default_factory=tuple)
    examples_title: str = "Top tokens by layer"
