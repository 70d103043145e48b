"""`ExtractionResult`: what an `Extraction` took, by name, with the tokens that it was taken at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.activation_cache import ActivationCache, CachedModel
from interp.activations.extracted_kinds import DERIVED, Extracted, axes_of_extracted, named
from interp.activations.extraction_pass import BatchSlots, BatchValues
from interp.activations.token_slots import TokenSlots
from interp.errors import InterpError, nearest
from interp.positions import Position
from interp.sites import Site, Spelling, parse_site
from interp.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from interp.activations.extraction import Extraction

__all__ = ["ExtractionResult", "Gathered", "aligned"]


@dataclass(frozen=True, eq=False, repr=False)
class ExtractionResult(Mapping[Spelling, Tensor]):
    """What was taken from prompts: a mapping from a name, sites in any spelling, to a tensor.

        result["resid_post.3"]        # (example, position, hidden)
        result["pattern_ratio.3.h0"]  # (example, query_name, key_name)
        result.means["pattern.3"]     # (head, query, key), over all examples

    At a slot that an example lacks there is NaN, and -1 in `input_ids`.

    Attributes:
        tensors: of each example, by name.
        means: of what was averaged over examples, by name; without the axis `example`.
        counts: over how many examples each number is a mean; it broadcasts against it.
        slots: the tokens along the axes `position`, `query` and `key`, resolved in each example.
        input_ids: of each example, all its tokens.
        saved: what a batch saver kept, by name.
        about: what is known of the model.
        extraction: what was asked for.
    """

    tensors: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    slots: BatchSlots
    input_ids: Sequence[Sequence[int]]
    saved: Mapping[str, Any]
    about: CachedModel
    extraction: Extraction
    taken: Sequence[Extracted] = field(default=())

    def name(self, spelling: Spelling) -> str:
        """The name here of a site in any spelling, or of a statistic.

        Raises:
            InterpError: it cannot be read.
        """
        sizes = (self.about.num_layers, self.about.num_heads, self.about.num_kv_heads)
        if not (isinstance(spelling, str) and spelling.split(".", 1)[0] in DERIVED):
            return str(parse_site(spelling, *sizes))
        found = named(spelling, *sizes)
        if len(found) > 1:
            raise InterpError(f"expected one name, got {spelling!r}, which names {len(found)}.")
        return str(found[0])

    def __getitem__(self, spelling: Spelling) -> Tensor:
        """The tensor of a name; of one head, a view of that of all heads.

        Raises:
            InterpError: it was not taken; with the nearest ones.
        """
        name = self.name(spelling)
        if name in self.tensors:
            return self.tensors[name]
        whole, dot, head = name.rpartition(".h")
        if dot and whole in self.tensors:
            axes = self.axes(whole)
            axis = next(index for index, axis in enumerate(axes) if axis.endswith("head"))
            return self.tensors[whole].select(axis, int(head))
        if name in self.means or whole in self.means:
            raise InterpError(f"{name!r} was averaged over examples: result.means[{name!r}].")
        raise InterpError(f"the extraction has no {name!r}.{nearest(name, self.tensors)}")

    def __contains__(self, spelling: object) -> bool:
        name = self.name(spelling)  # type: ignore[arg-type]
        return name in self.tensors or name.rpartition(".h")[0] in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        names = ", ".join([*self.tensors, *(f"mean of {name}" for name in self.means)])
        return f"{type(self).__name__}({names:.200}; {len(self.input_ids)} examples of {self.about.name})"

    __eq__, __hash__ = object.__eq__, object.__hash__

    def axes(self, spelling: Spelling) -> tuple[str, ...]:
        """Names of the axes of a tensor here, such as `example, position, hidden`; a mean lacks `example`."""
        name = self.name(spelling)
        one = next((x for x in self.taken if str(x) == name), None)
        if one is None:
            raise InterpError(f"the extraction has no {name!r}.{nearest(name, map(str, self.taken))}")
        return axes_of_extracted(one, mean_over_positions=self.extraction.mean_over_positions)

    def labels(self, axis: str) -> list[str]:
        """Names along an axis of tokens: `position`, `query`, `key`, or one of names (`position_name`)."""
        slots = self.slots.of_axis(axis)
        if slots is None:
            raise InterpError(f"axis {axis!r} has no tokens. Axes of tokens: position, query, key.")
        return slots.names if axis.endswith("_name") else slots.labels

    @property
    def positions(self) -> list[list[int]]:
        """Per example, the token at each slot of the axis `position`; -1: none."""
        return self.slots.position.table.tolist()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(ids) for ids in self.input_ids]

    def tokens(self, name: str) -> list[list[int]]:
        """Per example, the tokens that a named position is.

        Raises:
            InterpError: no such position was asked for.
        """
        for slots in (self.slots.position, self.slots.query, self.slots.key):
            if name in slots.names:
                index = slots.names.index(name)
                return [list(row[index]) for row in slots.tokens]
        raise InterpError(f"position {name!r} was not asked for.{nearest(name, self.slots.position.names)}")

    def at(self, spelling: Spelling, name: str, axis: str = "position") -> Tensor:
        """Of a tensor, what is at one named position: its slots, or its mean.

        Arguments:
            spelling: of the tensor.
            name: of the position, as it was asked for.
            axis: along which: `position`, `query` or `key`.
        """
        axes, value = self.axes(spelling), self[spelling]
        slots = self.slots.of_axis(axis)
        if slots is None or name not in slots.names:
            raise InterpError(
                f"position {name!r} is none along the axis {axis!r}.{nearest(name, slots.names if slots else ())}"
            )
        if axis in axes:
            places = slots.slots(name)
            return value.narrow(axes.index(axis), places.start, len(places))
        return value.select(axes.index(f"{axis}_name"), slots.names.index(name))

    @property
    def cache(self) -> ActivationCache:
        """The sites at tokens as an `ActivationCache`, which decomposes them, makes tables and files of them.

        Raises:
            InterpError: the extraction averaged over positions.
        """
        if self.extraction.mean_over_positions:
            raise InterpError("cache: a mean over positions is no activation of a token. Extract without it.")
        held = {one: self.tensors[str(one)] for one in self.taken if isinstance(one, Site) and str(one) in self.tensors}
        held = {site: tensor for site, tensor in held.items() if "query" not in axes_of_extracted(site)}
        return ActivationCache(
            held, self.positions, self.slots.position.labels, self.lengths, self.input_ids, self.about
        )

    # Files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the result into one safetensors file; a JSON manifest in its header describes it. No pickle.

        Arguments:
            path: of the file; its folder has to exist.

        Raises:
            InterpError: a batch saver kept something that is neither text nor numbers.
        """
        parts = {"tensor": self.tensors, "mean": self.means, "count": self.counts}
        held = {f"{part}:{name}": value for part, named in parts.items() for name, value in named.items()}
        held |= {f"saved:{name}": value for name, value in self.saved.items() if isinstance(value, Tensor)}
        first: dict[int, str] = {}
        for name, value in held.items():
            first.setdefault(id(value), name)
        model = self.about()
        manifest = {
            "kind": _KIND, "version": _VERSION, "extraction": self.extraction.to_dict(),
            "taken": [str(one) for one in self.taken], "order": list(held),
            "same": {name: first[id(value)] for name, value in held.items() if first[id(value)] != name},
            "slots": {axis: _plain_slots(getattr(self.slots, axis)) for axis in ("position", "query", "key")},
            "input_ids": [list(map(int, ids)) for ids in self.input_ids],
            "saved": {name: value for name, value in self.saved.items() if not isinstance(value, Tensor)},
            "model": {
                "name": self.about.name, "num_layers": self.about.num_layers, "num_heads": self.about.num_heads,
                "num_kv_heads": self.about.num_kv_heads,
                "digest": self.about.digest or (None if model is None else model.digest()),
            },
        }  # fmt: skip
        try:
            text = json.dumps(manifest, sort_keys=True, ensure_ascii=False)
        except TypeError as error:
            raise InterpError(f"save: a batch saver kept what is neither text nor numbers ({error}).") from None
        write_tensors(path, {name: held[name] for name in first.values()}, {_KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> ExtractionResult:
        """Read what `save` wrote.

        Raises:
            InterpError: no such file, or one that holds something else.
        """
        found, header = read_tensors(path)
        manifest = json.loads(header.get(_KEY, "{}"))
        if (manifest.get("kind"), manifest.get("version")) != (_KIND, _VERSION):
            raise InterpError(f"{str(path)!r}: expected a {_KIND} (version {_VERSION}), found {manifest.get('kind')}.")
        held = {name: found[manifest["same"].get(name, name)] for name in manifest["order"]}
        parts: dict[str, dict[str, Tensor]] = {"tensor": {}, "mean": {}, "count": {}, "saved": {}}
        for name, value in held.items():
            part, _, rest = name.partition(":")
            parts[part][rest] = value
        about = CachedModel(**manifest["model"])
        sizes = (about.num_layers, about.num_heads, about.num_kv_heads)
        return cls(
            tensors=parts["tensor"],
            means=parts["mean"],
            counts=parts["count"],
            slots=BatchSlots(**{axis: _slots_from(slots) for axis, slots in manifest["slots"].items()}),
            input_ids=manifest["input_ids"],
            saved={**manifest["saved"], **parts["saved"]},
            about=about,
            extraction=resolve_name("interp.activations.extraction:Extraction.from_dict")(manifest["extraction"]),
            taken=[one for name in manifest["taken"] for one in named(name, *sizes)],
        )


_KEY, _KIND, _VERSION = "interpipe", "ExtractionResult", 1


def _plain_slots(slots: TokenSlots) -> dict[str, Any]:
    return {"names": slots.names, "tokens": slots.tokens, "widths": slots.widths}


def _slots_from(given: Mapping[str, Any]) -> TokenSlots:
    tokens = tuple(tuple(tuple(at) for at in row) for row in given["tokens"])
    return TokenSlots(tuple(map(Position.parse, given["names"])), tokens, tuple(given["widths"]))


def aligned(value: Tensor, axes: Sequence[str], given: BatchSlots, wider: BatchSlots, fill: float) -> Tensor:
    """A value of one batch with as many slots as all batches have.

    Arguments:
        value: along `axes`.
        given, wider: the slots that it has, and that it is to have.
        fill: what is at slots that it lacks.
    """
    for index, axis in enumerate(axes):
        old, new = given.of_axis(axis), wider.of_axis(axis)
        if old is None or new is None or axis.endswith("_name") or old.widths == new.widths:
            continue
        shape = [*value.shape]
        shape[index] = sum(new.widths)
        places = old.places_in(new).to(value.device)
        value = value.new_full(shape, fill).index_copy_(index, places, value)
    return value


class Gathered:
    """Batches put together.

    Arguments:
        taken: what is taken.
        mean_over_positions: whether each named position has one value.
    """

    def __init__(self, taken: Sequence[Extracted], mean_over_positions: bool) -> None:
        self.axes = {str(x): axes_of_extracted(x, mean_over_positions=mean_over_positions) for x in taken}
        self.pieces: dict[str, list[Tensor]] = {}
        self.slots: list[BatchSlots] = []
        self.input_ids: list[list[int]] = []
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self._summed: BatchSlots | None = None

    def add(self, values: BatchValues) -> None:
        """Take a batch in."""
        self.slots.append(values.slots)
        self.input_ids += values.input_ids
        for name, tensor in values.tensors.items():
            self.pieces.setdefault(name, []).append(tensor)
        if not values.sums:
            return
        before = self._summed
        wider = values.slots if before is None else BatchSlots.together([before, values.slots])
        for name in values.sums:
            axes = self.axes[name][1:]
            for kept, new in ((self.sums, values.sums), (self.counts, values.counts)):
                added = aligned(new[name], axes, values.slots, wider, 0)
                kept[name] = added if before is None else aligned(kept[name], axes, before, wider, 0) + added
        self._summed = _without_examples(wider)

    def tensors(self) -> dict[str, Tensor]:
        """Each thing of all examples; what was one tensor in every batch is one here. It can be asked for once."""
        whole = BatchSlots.together(self.slots)
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, pieces in self.pieces.items():
            groups.setdefault(tuple(map(id, pieces)), []).append(name)
        found: dict[str, Tensor] = {}
        order = list(self.pieces)
        for names in groups.values():
            pieces = self.pieces[names[0]]
            for name in names:  # so that they are gone with the tensor that they make
                del self.pieces[name]
            fill = -1 if names == ["input_ids"] else torch.nan
            axes = self.axes[names[0]]
            parts = [aligned(piece, axes, slots, whole, fill) for piece, slots in zip(pieces, self.slots, strict=True)]
            found |= dict.fromkeys(names, parts[0] if len(parts) == 1 else torch.cat(parts))
        return {name: found[name] for name in order}

    def means(self) -> dict[str, Tensor]:
        """The means over examples, in float32."""
        return {name: (total / self.counts[name]).float() for name, total in self.sums.items()}


def _without_examples(slots: BatchSlots) -> BatchSlots:
    """The same axes, of no example."""
    of = {axis: getattr(slots, axis).rows(()) for axis in ("position", "query", "key")}
    return BatchSlots(**of)


def gathered_saves(several: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """What a batch saver gave of each batch, one behind the other.

    Arguments:
        several: prompts in the batch, and what was saved: an entry for each prompt, or one value where there is one.

    Raises:
        InterpError: batches that differ in what they save, or entries that are not one for each prompt.
    """
    found: dict[str, list[Any]] = {}
    for index, (count, saved) in enumerate(several):
        if index and set(saved) != set(found):
            raise InterpError(
                f"batch_saver: expected {', '.join(found)} of batch {index}, got {', '.join(map(str, saved))}."
            )
        for name, value in saved.items():
            found.setdefault(str(name), []).append(_entries(str(name), value, count))
    return {name: _joined(parts) for name, parts in found.items()}


def _entries(name: str, value: Any, count: int) -> Any:
    sized = (isinstance(value, Tensor) and value.dim() > 0) or (
        hasattr(value, "__len__") and not isinstance(value, str | Mapping)
    )
    if not sized and count == 1:
        return [value]
    if not sized or len(value) != count:
        raise InterpError(
            f"batch_saver: {name!r} has to have an entry for each of the {count} prompts of a batch; got {value!r:.80}."
        )
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _joined(parts: Sequence[Any]) -> Any:
    if all(isinstance(part, Tensor) and part.shape[1:] == parts[0].shape[1:] for part in parts):
        return torch.cat(list(parts))
    return [entry for part in parts for entry in part]
