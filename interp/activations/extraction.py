"""`Extraction`: what is taken from prompts, as data; run over batches, in memory or into a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import yaml
from tqdm.auto import tqdm

from interp.activations.activation_cache import CachedModel
from interp.activations.extracted_kinds import chosen, spelled
from interp.activations.extraction_blocks import ExtractionBlocks
from interp.activations.extraction_pass import BatchSlots, ExtractionPlan
from interp.activations.extraction_result import ExtractionResult, Gathered, gathered_saves
from interp.activations.given_batches import GivenBatch, given_batches
from interp.activations.prompt_batches import PaddingSide, encoded_prompts
from interp.activations.token_slots import TokenSlots
from interp.errors import InterpError, nearest
from interp.forward.layers import check_ready
from interp.interventions import Intervention
from interp.interventions.intervention import YamlLoader
from interp.model.fed import check_fed
from interp.positions import check_positions
from interp.prompts import Encoded, Prompt

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Extraction", "Spans"]

Spans = Callable[[Any, Sequence[Encoded]], Sequence[Mapping[str, Any]]]
"""From a batch as it was given and its prompts, encoded, to more spans of each prompt, by name."""


@dataclass(frozen=True)
class Extraction:
    """What is taken from prompts, at which tokens, and how it is averaged. Frozen, and plain data.

        extraction = Extraction("resid_post.* pattern_ratio.*.h*", positions="last subject.all", keys="subject.all")
        result = extraction.run(model, loader)
        result["resid_post.3"], result["pattern_ratio.3.h0"], result.tokens("subject.all")

    Arguments:
        sites: what is kept of each example: any spelling of `interp.sites`, and of the statistics of
            `interp.activations.extracted_kinds`.
        positions: at which tokens: a spelling of `interp.positions`, an integer, several with spaces between, or a
            list.
        means: what is averaged over all examples, slot by slot, as `sites`; of an average nothing else is kept. An
            example that lacks a slot counts for nothing there.
        queries: rows of maps (`scores`, `pattern`, ...), as `positions`; None: `positions`.
        keys: columns of maps, likewise.
        heads: of which heads, where `sites` and `means` name none, by layers and query heads: `2.h0,3 5.h*`. Keys and
            values are those that these heads read. None: all, as one tensor.
        mean_over_positions: one value for each named position, the mean of its tokens', in place of one for each token.

    Raises:
        InterpError: something that cannot be read.
    """

    sites: str = ""  # any spelling is taken; what is kept is one text
    positions: str = "last"
    _: KW_ONLY
    means: str = ""
    queries: str | None = None
    keys: str | None = "all"
    heads: str | None = None
    mean_over_positions: bool = False

    def __post_init__(self) -> None:
        for name in ("sites", "means"):
            self._set(name, spelled(getattr(self, name), name))
        if not (self.sites or self.means):
            raise InterpError("an extraction: expected sites, means or both, e.g. sites='resid_post.*', got none.")
        for name in ("positions", "queries", "keys"):
            given = getattr(self, name)
            if given is not None:
                words = _words(given)
                check_positions(words)
                self._set(name, " ".join(words))
        if self.keys is None:
            self._set("keys", self.positions)
        if self.heads is not None:
            self._set("heads", " ".join(_words(self.heads)))
        if not isinstance(self.mean_over_positions, bool):
            raise InterpError(f"mean_over_positions: expected true or false, got {self.mean_over_positions!r}.")
        if self.mean_over_positions and any(word.startswith("scores") for word in f"{self.sites} {self.means}".split()):
            raise InterpError("scores: hidden keys have none, so scores have no mean over positions. Take the pattern.")
        if "input_ids" in self.means.split():
            raise InterpError("means: token ids have no mean. Name input_ids in `sites`.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    # As data ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Text and booleans; fields at their defaults are left out."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Extraction:
        """Read what `to_dict` gave, or a hand wrote.

        Raises:
            InterpError: an unknown key, or a value that does not fit.
        """
        if not isinstance(given, Mapping):
            raise InterpError(f"an extraction: expected a mapping with sites and positions, got {given!r:.80}.")
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                raise InterpError(f"an extraction has no {name!r}.{nearest(str(name), known)}")
        return cls(**given)

    def to_json(self) -> str:
        """JSON text of `to_dict`."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Extraction:
        """Read what `to_json` gave."""
        return cls.from_dict(json.loads(text))

    def to_yaml(self) -> str:
        """YAML text of `to_dict`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)

    @classmethod
    def from_yaml(cls, text: str) -> Extraction:
        """Read what `to_yaml` gave.

        Raises:
            InterpError: text that is no YAML, or something else in it.
        """
        try:
            return cls.from_dict(yaml.load(text, Loader=YamlLoader))
        except yaml.YAMLError as error:
            raise InterpError(f"an extraction: expected YAML, got text that is none: {error}") from None

    # Running ------------------------------------------------------------------------------------------------------

    def plan(
        self,
        model: StandardizedTransformer,
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ExtractionPlan:
        """Check everything against a model.

        Raises:
            InterpError: a site, head or statistic that the model does not have.
        """
        check_ready(model)
        kept, averaged = (chosen(model, text, self.heads) if text else [] for text in (self.sites, self.means))
        plan = ExtractionPlan(model, kept, averaged, self.mean_over_positions, device, dtype)
        plan.check()
        return plan

    def slots(self, encoded: Sequence[Encoded], maps: bool = True) -> BatchSlots:
        """The tokens of prompts that something is taken at.

        Arguments:
            encoded: the prompts.
            maps: whether any map is taken; else rows and columns of maps are not looked for.

        Raises:
            InterpError: a prompt that has no such position.
        """
        position = TokenSlots.of(check_positions(self.positions.split()), encoded)
        if not maps:
            return BatchSlots(position, position, position)
        query = position
        if self.queries is not None:
            query = TokenSlots.of(check_positions(self.queries.split()), encoded)
        assert self.keys is not None
        return BatchSlots(position, query, TokenSlots.of(check_positions(self.keys.split()), encoded))

    def run(
        self,
        model: StandardizedTransformer,
        batches: Any,
        *,
        progress: bool = True,
        batch_saver: Callable[[Any], Mapping[str, Any] | None] | None = None,
        batch_size: int = 16,
        column: str | None = None,
        spans: Spans | None = None,
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | None = None,
        interventions: Intervention | Iterable[Intervention] = (),
        padding_side: PaddingSide = "left",
    ) -> ExtractionResult:
        """Run over batches; each is one forward pass, which ends with the last thing that is taken.

        Arguments:
            model: the model.
            batches: any iterable of batches: a `DataLoader`, a data set of rows, lists of texts, `Prompt`s or token
                ids, mappings with `input_ids` and `attention_mask`, padded on either side, or with a column of texts.
                Prompts that come one by one (rows, texts) are run `batch_size` at a time.
            progress: show a progress bar.
            batch_saver: from a batch as it was given to what is saved of it, by name, an entry for each prompt.
            batch_size: prompts in a batch where they come one by one.
            column: the column that holds the prompts; None: `input_ids`, `prompt`, `prompts`, `text` or `texts`.
            spans: more spans of each prompt, which positions may name.
            device: of what is kept; None: the model's.
            dtype: of what is kept of sites; None: as it is. Statistics and means are float32, also of a coarser model.
            interventions: what is changed in each batch; it acts before anything is taken.
            padding_side: where shorter prompts of a batch are padded.

        Raises:
            InterpError: something that the model or a prompt does not have.
        """
        plan = self.plan(model, device, dtype)
        gathered, saved = Gathered(plan.taken, self.mean_over_positions), []
        edits = interventions if isinstance(interventions, Intervention) else list(interventions)
        with _bar(batches, progress) as bar:
            for batch in given_batches(batches, batch_size, column):
                encoded = _encoded(model, batch, spans)
                values = plan.run(
                    encoded, self.slots(encoded, plan.has_maps), interventions=edits, padding_side=padding_side
                )
                gathered.add(values)
                if batch_saver is not None:
                    saved.append((len(encoded), batch_saver(batch.given) or {}))
                bar.update(batch.entries)
        return ExtractionResult(
            tensors=gathered.tensors(),
            means=gathered.means(),
            counts=gathered.counts,
            slots=BatchSlots.together(gathered.slots),
            input_ids=gathered.input_ids,
            saved=gathered_saves(saved),
            about=CachedModel.of(model),
            extraction=self,
            taken=plan.taken,
        )

    def blocks(
        self,
        model: StandardizedTransformer,
        batches: Any,
        *,
        block_size: int = 64,
        batch_size: int = 16,
        batch_saver: Callable[[Any], Mapping[str, Any] | None] | None = None,
        column: str | None = None,
        spans: Spans | None = None,
        dtype: torch.dtype | None = None,
        interventions: Intervention | Iterable[Intervention] = (),
        padding_side: PaddingSide = "left",
    ) -> ExtractionBlocks:
        """What is too large for memory, block by block: `pipeline.store.write_cache(path, extraction.blocks(...))`.

        The prompts are read and tokenized now; a block is run when it is asked for.

        Arguments:
            block_size: prompts in a block.
            batch_size: prompts in a forward pass.
            model, batches, batch_saver, column, spans, dtype, interventions, padding_side: as of `run`.

        Raises:
            InterpError: as `run`.
        """
        plan = self.plan(model, "cpu", dtype)
        edits = interventions if isinstance(interventions, Intervention) else list(interventions)
        if block_size < 1:
            raise InterpError(f"block_size: expected at least 1, got {block_size}.")
        encoded: list[Encoded] = []
        images: dict[int, tuple[Any, str]] = {}
        saved = []
        for batch in given_batches(batches, batch_size, column):
            for prompt, one in zip(batch.prompts, found := _encoded(model, batch, spans), strict=True):
                if one.media is not None:  # pixels of all prompts would not be in memory at once
                    images[len(encoded)] = (prompt, one.media.digest())
                encoded.append(replace(one, media=None))
            if batch_saver is not None:
                saved.append((len(found), batch_saver(batch.given) or {}))
        count = len(encoded)
        return ExtractionBlocks(
            plan, self.to_dict(), encoded, images, self.slots(encoded, plan.has_maps), gathered_saves(saved),
            [range(at, min(at + block_size, count)) for at in range(0, count, block_size)], batch_size, edits,
            padding_side,
        )  # fmt: skip


def _words(given: Any) -> list[str]:
    several = [given] if isinstance(given, str | int) else list(given)
    return [word for one in several for word in str(one).split()]


def _encoded(model: StandardizedTransformer, batch: GivenBatch, spans: Spans | None) -> list[Encoded]:
    """The prompts of a batch, with the spans that the caller adds."""
    plain = [one for one in batch.prompts if not isinstance(one, Encoded)]
    ready = [one for one in batch.prompts if isinstance(one, Encoded)]
    check_fed(model, [one.input_ids for one in ready], "batches", media=[one.media for one in ready])
    found = iter(encoded_prompts(model, plain, name="batches") if plain else ())
    encoded = [one if isinstance(one, Encoded) else next(found) for one in batch.prompts]
    if spans is None:
        return encoded
    more = list(spans(batch.given, encoded))
    if len(more) != len(encoded):
        raise InterpError(f"spans: expected those of each of the {len(encoded)} prompts of a batch, got {len(more)}.")
    return [replace(one, spans={**one.spans, **added}) for one, added in zip(encoded, more, strict=True)]


def _bar(batches: Any, progress: bool) -> Any:
    """A progress bar over the entries of what is iterated over, which knows their number where that does."""
    is_one = isinstance(batches, str | Prompt | Encoded | Mapping | torch.Tensor)
    total = len(batches) if isinstance(batches, Sized) and not is_one else None
    return tqdm(total=total, desc="Extracting", disable=not progress)
