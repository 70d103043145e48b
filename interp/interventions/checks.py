"""Interventions checked against a model and the examples that it is to run, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.errors import InterpError
from interp.interventions.edits import Edit, Source, Tokens
from interp.interventions.intervention import Intervention
from interp.interventions.perform import OPERATIONS, orthonormal
from interp.interventions.shapes import SiteShape, as_entries, site_shapes
from interp.interventions.values import AnotherRun, SavedTensor, Value
from interp.interventions.where import is_of_the_end, resolve_where
from interp.model.resolve import place_of
from interp.prompts import Encoded
from interp.prompts.images import same_prompt
from interp.sites import MAP_KINDS, Site, parse_sites

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["plan_edits"]

Encode = Callable[[Any], list[Encoded]]
"""From the prompts of another run to their tokens, checked against the model's vocabulary."""


def plan_edits(
    model: StandardizedTransformer,
    interventions: Intervention | Iterable[Intervention],
    encoded: Sequence[Encoded],
    encode: Encode,
    whole: Sequence[Encoded] | None = None,
) -> list[Edit]:
    """The changes of a run of given examples, in the order in which they are listed.

    Arguments:
        model: the model.
        interventions: one or several.
        encoded: the examples; positions count their tokens.
        encode: encodes the prompts of other runs.
        whole: each example with what is before it and not in a pass any more; None: nothing is.

    Returns:
        An edit for each site of each intervention, at tokens of the whole prompts, prefix and example; those with a
        `source` have no value yet.

    Raises:
        InterpError: a site that the model lacks, a position that an example lacks, a value that does not fit, two
            interventions that contradict each other; says what would fit.
    """
    alone = isinstance(interventions, Intervention | Mapping) or not isinstance(interventions, Iterable)
    listed: list[Any] = [interventions] if alone else list(interventions)  # type: ignore[arg-type]
    planners = []
    for index, one in enumerate(listed):
        if not isinstance(one, Intervention):
            raise InterpError(
                f"interventions[{index}]: expected an Intervention, got {one!r:.80}. Intervention.from_dict reads a "
                "mapping."
            )
        name = f"interventions[{index}]" if len(listed) > 1 else "intervention"
        said = f"{name} ({one.operation} at {one.site})"
        planners.append(_Planner(model, one, encoded, encode, said, encoded if whole is None else whole))
    site_shapes(model, [site for planner in planners for site in planner.sites])  # measured together
    edits = [edit for planner in planners for edit in planner.edits()]
    check_contradictions(edits)
    return edits


class _Planner:
    """Makes the edits of one intervention."""

    def __init__(
        self,
        model: StandardizedTransformer,
        intervention: Intervention,
        encoded: Sequence[Encoded],
        encode: Encode,
        name: str,
        whole: Sequence[Encoded],
    ) -> None:
        self.model, self.intervention, self.encoded, self.name = model, intervention, encoded, name
        self.encode = encode
        self.whole = whole
        self.ids = [one.input_ids for one in whole]
        self.lengths = [len(ids) for ids in self.ids]
        self.before = [len(ids) - len(one.input_ids) for ids, one in zip(self.ids, encoded, strict=True)]
        self.sites = self._sites()
        self.positions = self._own(intervention.positions, "positions")
        self.keys: Tokens | None = None
        if intervention.from_positions is not None:
            self.keys = self._own(intervention.from_positions, "from_positions")
            self._check_something_is_left(self.positions, self.keys)
        self.run = self._other_run(self.positions)

    def edits(self) -> list[Edit]:
        given = self.intervention
        shapes = site_shapes(self.model, self.sites)
        made = []
        for site, heads in self.sites.items():
            shape = shapes[site]
            for head in heads or ():
                if shape.heads is not None and head >= shape.heads:
                    raise InterpError(
                        f"{self.name}: layer {site.layer} has {shape.heads} heads at {site.kind}, from 0."
                    )
            edit = Edit(self.name, given, site, heads, shape, self.positions, self.ids, self.keys)
            projects = given.operation in ("project_out", "project_onto")
            if projects or given.basis is not None:
                edit.basis = self._basis(site, shape)
            if self.run is None and given.value is not None and not projects:
                edit.value = self._value(edit)
            if self.run is not None:
                edit.source = self._source(edit, *self.run)
            made.append(edit)
        return made

    def _sites(self) -> dict[Site, list[int] | None]:
        """The sites without heads, and the heads of each (None: all of them, or it has none)."""
        model, given = self.model, self.intervention
        try:
            sites = parse_sites(given.site, model.num_layers, model.num_heads, model.num_kv_heads)
        except InterpError as error:
            raise InterpError(f"{self.name}: {error}") from None
        whole: dict[Site, list[int] | None] = {}
        for site in sites:
            try:
                place_of(model, site)
            except InterpError as error:
                raise InterpError(f"{self.name}: {error}") from None
            if site.kind not in OPERATIONS[given.operation].sites:  # of a spelling that depends on the depth
                raise InterpError(f"{self.name}: {given.operation} is not for {site.kind}.")
            every = replace(site, head=None)
            known = whole.setdefault(every, None if site.head is None else [])
            if (known is None) != (site.head is None):
                raise InterpError(f"{self.name}: names all heads of {every}, and one of them. Name each once.")
            if known is not None and site.head is not None:
                known.append(site.head)
        return whole

    def _resolved(self, where: Any, encoded: Sequence[Encoded], field: str) -> Tokens:
        lengths = [len(one.input_ids) for one in encoded]
        return resolve_where(where, lengths, [one.spans for one in encoded], f"{self.name}: {field}")

    def _own(self, where: Any, field: str) -> Tokens:
        """Tokens of the examples, counted with those of their prefixes."""
        try:
            found = self._resolved(where, self.encoded, field)
        except InterpError as error:
            raise InterpError(
                f"{error} Positions count what follows the prefix, which is as it was computed."
                if any(self.before)
                else str(error)
            ) from None
        return [[before + token for token in tokens] for before, tokens in zip(self.before, found, strict=True)]

    def _check_something_is_left(self, queries: Tokens, keys: Tokens) -> None:
        """Refuse a softmax over nothing, as far as tokens before a query tell; layers with windows see fewer.

        Those of images may see later ones too: the run itself tells.
        """
        if self.intervention.operation != "knockout" or "scores" not in self.intervention.kinds:
            return
        for example, (rows, cut) in enumerate(zip(queries, keys, strict=True)):
            for query in rows if self.whole[example].media is None else ():
                if set(range(query + 1)) <= set(cut):
                    raise InterpError(
                        f"{self.name}: example {example}: it cuts everything that token {query} sees, and a softmax "
                        "over nothing is not defined. Leave one of the keys, or cut behind the softmax, at "
                        f"{self.intervention.site.replace('scores', 'pattern')}."
                    )

    # Values -------------------------------------------------------------------------------------------------------

    def _loaded(self, value: Value, site: Site) -> Tensor:
        assert isinstance(value, Tensor | SavedTensor)
        if isinstance(value, Tensor):
            return value
        try:
            loaded = value.load(str(site))
        except InterpError as error:
            raise InterpError(f"{self.name}: {error}") from None
        return loaded if loaded.is_floating_point() else loaded.float()

    def _basis(self, site: Site, shape: SiteShape) -> Tensor:
        field = "value" if self.intervention.basis is None else "basis"
        given = self._loaded(getattr(self.intervention, field), site)
        if given.dim() not in (1, 2) or given.shape[-1] != shape.width:
            raise InterpError(
                f"{self.name}: {field}: expected a direction ({shape.width},) or a subspace (direction, {shape.width}) "
                f"of {site}, got shape {tuple(given.shape)}."
            )
        return orthonormal(given, f"{self.name}: {field}")

    def _value(self, edit: Edit) -> Tensor:
        given = self._loaded(self.intervention.value, edit.site)
        heads = head_axis(edit.shape, edit.heads)
        counts = [len(tokens) for tokens in edit.positions]
        kind, width = edit.site.kind, edit.shape.width
        value = as_entries(given, kind, heads, width, counts, self.lengths, f"{self.name}: {edit.site}")
        if edit.at_every_step and (value.shape[1] > 1 or (width is None and value.shape[-1] > 1)):
            raise InterpError(
                f"{self.name}: steps='every' goes on to tokens that are yet to come, and the value has one for each of "
                f"{'the keys' if value.shape[1] == 1 else 'its positions'}. Give one for all of them, or "
                "steps='prompt'."
            )
        return value

    # Another run --------------------------------------------------------------------------------------------------

    def _other_run(self, positions: Tokens) -> tuple[AnotherRun, list[Encoded], Tokens] | None:
        """The prompts that a value is read from, and the tokens of each; None where it is of no run."""
        given, value = self.intervention, self.intervention.value
        if given.operation == "resample" and value is None:  # from the others of this run
            self._others(self.whole)
            return AnotherRun(list(self.ids)), list(self.whole), positions
        if not isinstance(value, AnotherRun):
            return None
        try:
            encoded = self.encode(list(value.prompt))
        except InterpError as error:
            raise InterpError(f"{self.name}: value: {error}") from None
        is_set = given.operation in ("mean", "resample")
        if not is_set and len(encoded) not in (1, len(self.encoded)):
            raise InterpError(
                f"{self.name}: value: expected one prompt, or one for each of {len(self.encoded)} examples, got "
                f"{len(encoded)}."
            )
        if given.operation == "resample":
            self._others(encoded)
        asked = value.position
        if asked is None and given.operation == "mean" and given.mean_over == "tokens":
            asked = "all"
        where = given.positions if asked is None else asked
        if not isinstance(where, str) and asked is None and not is_set and len(encoded) == 1:
            encoded = encoded * len(self.encoded)  # each example's own positions, in the one prompt
        if not isinstance(where, str) and asked is None and is_set:
            raise InterpError(
                f"{self.name}: value: its positions are of each example; say where the reference prompts are read, "
                "e.g. value={'prompt': [...], 'position': 'last'}."
            )
        if asked is None and any(self.before) and not is_of_the_end(where):
            raise InterpError(
                f"{self.name}: value: its prompts are whole ones, and its positions count what follows the prefix; say "
                "where the prompts are read, e.g. value={'prompt': ..., 'position': 'last'}."
            )
        return value, encoded, self._resolved(where, encoded, "value: position")

    def _others(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """For each example the prompts that it is resampled from: none is the example itself."""
        found = [[index for index, one in enumerate(encoded) if not same_prompt(one, own)] for own in self.whole]
        for example, others in enumerate(found):
            if not others:
                raise InterpError(
                    f"{self.name}: example {example}: there is no other example to resample from. Give prompts to draw "
                    "from, value={'prompt': [...]}."
                )
        return found

    def _source(self, edit: Edit, run: AnotherRun, encoded: list[Encoded], found: Tokens) -> Source:
        """Where the value of one site is read, checked to fit it."""
        model, site = self.model, edit.site
        heads = edit.heads  # as at the site that is written
        if run.site is not None:
            try:
                named = parse_sites(run.site, model.num_layers, model.num_heads, model.num_kv_heads)
                for one in named:
                    place_of(model, one)
            except InterpError as error:
                raise InterpError(f"{self.name}: value: {error}") from None
            if len(named) > 1:
                raise InterpError(f"{self.name}: value: expected one site, or that of a head, got {run.site!r}.")
            site, head = replace(named[0], head=None), named[0].head
            heads = None if head is None else [head]
        shape = site_shapes(model, [site])[site]
        read = replace(site, head=heads[0]) if heads is not None and len(heads) == 1 else site
        several = heads if heads is not None and len(heads) > 1 else None
        own, theirs = head_axis(edit.shape, edit.heads), head_axis(shape, heads)
        if shape.width != edit.shape.width or theirs not in (own, None):
            raise InterpError(
                f"{self.name}: value: {read} has {_described(theirs, shape.width)}, {self.intervention.site} takes "
                f"{_described(own, edit.shape.width)}."
            )
        self._check_counts(edit, encoded, found)
        others = self._others(encoded) if self.intervention.operation == "resample" else None
        return Source(encoded, read, several, found, others)

    def _check_counts(self, edit: Edit, encoded: list[Encoded], found: Tokens) -> None:
        """Refuse other runs that have values for more or fewer positions than are written."""
        given, operation = self.intervention, self.intervention.operation
        counts = [len(tokens) for tokens in edit.positions]
        theirs = [len(tokens) for tokens in found]
        if operation == "mean" and given.mean_over == "tokens":
            return
        if operation in ("mean", "resample"):
            pairs = [(example, count, own) for example, count in enumerate(counts) for own in sorted(set(theirs))]
        else:
            several = theirs * len(counts) if len(theirs) == 1 else theirs
            pairs = [(example, *both) for example, both in enumerate(zip(counts, several, strict=True))]
        pairs = [pair for pair in pairs if pair[1]]
        single = all(own == 1 for _, _, own in pairs)
        for example, count, own in pairs:
            if count != own and not single:
                advice = "Name one position of theirs for all, e.g. 'position': 'last', or equally many"
                over = ", or take mean_over='tokens'" if operation == "mean" else ""
                raise InterpError(
                    f"{self.name}: example {example} is written at {count} positions, and the other run is read at "
                    f"{own}. {advice}{over}."
                )
            if edit.at_every_step and own > 1:
                raise InterpError(
                    f"{self.name}: steps='every' goes on to tokens that are yet to come: read the other run at one "
                    "position, e.g. 'position': 'last', or take steps='prompt'."
                )
        if edit.site.kind in MAP_KINDS:
            lengths = [len(one.input_ids) for one in encoded]
            several = lengths * len(self.lengths) if len(lengths) == 1 else lengths
            for example, (own_length, other) in enumerate(zip(self.lengths, several, strict=True)):
                if own_length != other:
                    raise InterpError(
                        f"{self.name}: example {example} has {own_length} keys, the other run {other}: at "
                        f"{edit.site.kind}, prompts must be equally long."
                    )


def head_axis(shape: SiteShape, heads: list[int] | None) -> int | None:
    """How many heads a value has an axis for; None: no axis, as of one head."""
    if shape.heads is None or (heads is not None and len(heads) == 1):
        return None
    return shape.heads if heads is None else len(heads)


def _described(heads: int | None, width: int | None) -> str:
    numbers = "a number for each key" if width is None else f"{width} numbers"
    return numbers if heads is None else f"{numbers} in each of {heads} heads"


def check_contradictions(edits: Sequence[Edit]) -> None:
    """Refuse two interventions that overwrite one value: the first would be of no effect.

    Raises:
        InterpError: there are such two.
    """
    known: dict[tuple[str, int | None, int], dict[int, list[tuple[set[int], Edit]]]] = {}
    for edit in edits:
        if not OPERATIONS[edit.intervention.operation].overwrites:
            continue
        heads = edit.heads if edit.heads is not None else range(edit.shape.heads or 1)
        for example, tokens in enumerate(edit.positions):
            for head in heads:
                there = known.setdefault((*_stream(edit.site), head), {}).setdefault(example, [])
                for others, other in there:
                    if edit.keys and other.keys and not set(edit.keys[example]) & set(other.keys[example]):
                        continue
                    both = sorted(others & set(tokens))
                    if both or (tokens and others and edit.at_every_step and other.at_every_step):
                        at = f"token {both[0]}" if both else "new tokens"
                        raise InterpError(
                            f"{edit.name} contradicts {other.name}: both overwrite {edit.site} at {at} of example "
                            f"{example}. Leave one of them out."
                        )
                there.append((set(tokens), edit))


def _stream(site: Site) -> tuple[str, int | None]:
    """One name for the places between layers that have two."""
    if site.kind == "embed":
        return "resid_pre", 0
    if site.kind == "resid_post":
        assert site.layer is not None
        return "resid_pre", site.layer + 1
    return site.kind, site.layer
