"""What a patchscope is given, tokenized and found: latents, target prompts, the tokens written over, the groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.reading import LensPrompt, Positions, Targets, groups_of, surprisal_of
from interp.lenses.sources import Latents, Source, SourcePrompts, Sources, check_no_images_of_latents
from interp.model.fed import check_fed
from interp.patching import PatchedPrompts, check_number
from interp.positions import Position, Span
from interp.prompts import Prompt
from interp.prompts.given import is_ids, listed
from interp.prompts.images import check_no_images
from interp.prompts.target_prompt import TargetPrompt, as_target_prompt
from interp.readout import Groups, reduce_hidden
from interp.results import LensResult

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Part", "PatchscopeInputs", "TargetPositions", "TargetPrompts"]

TargetPrompts = LensPrompt | TargetPrompt | Sequence[LensPrompt | TargetPrompt]
"""A target prompt for all examples, or one each; names of `interp.prompts.TARGET_NAMES` too."""
TargetPositions = Positions | Sequence[Sequence[int]]
"""The same positions of all target prompts; or for each a list of its own tokens, counted from 0 without padding."""


@dataclass(frozen=True)
class Part:
    """Some examples of a patchscope, with their latents.

    Arguments:
        examples: which.
        layers: what the axis `layer` of the latents stands for, ascending.
        latents, reference: as in `Latents`; no reference where another model reads the source prompts.
        of_source: then the reference by that model.
        input_ids: per example: token ids of its target prompt.
        positions: per example: the tokens of it that are written over.
        groups: per example, per group: the token ids whose probability is read.
    """

    examples: slice
    layers: tuple[int, ...]
    latents: Tensor
    reference: Tensor | None
    of_source: Tensor | None
    input_ids: list[list[int]]
    positions: list[list[int]]
    groups: Groups

    def prompts(self, model: StandardizedTransformer, *, mapped: bool = False) -> PatchedPrompts:
        """The target prompts with what is written into them, checked; see `PatchedPrompts.of`."""
        return PatchedPrompts.of(model, self.latents, self.layers, self.input_ids, self.positions, mapped=mapped)

    def known(self, rows: Tensor) -> Tensor | None:
        """(row, hidden), the reference of some of the examples."""
        return None if self.reference is None else self.reference[rows.to(self.reference.device)]


@dataclass(frozen=True)
class PatchscopeInputs:
    """What a patchscope is given, tokenized and found.

    Arguments:
        model: the model that runs the target prompts.
        source: of what is written.
        input_ids, positions, groups: as in `Part`, of all examples.
        group_names: names of the groups.
    """

    model: StandardizedTransformer
    source: Source
    input_ids: list[list[int]]
    positions: list[list[int]]
    groups: Groups
    group_names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        source: SourcePrompts | Latents,
        target_prompts: TargetPrompts,
        target_positions: TargetPositions | None,
        *,
        images: Any,
        source_positions: Positions,
        source_model: StandardizedTransformer | None = None,
        targets: Targets | None = None,
        policy: str = "first_token",
        batch_tokens: int | None = None,
    ) -> PatchscopeInputs:
        """The same, from what the user gives.

        Raises:
            InterpError: numbers of prompts or positions that do not fit, a position that a prompt does not have,
                targets that do not fit, or latents with what is for source prompts.
        """
        if isinstance(source, Latents):
            check_no_images_of_latents(images)
            if source_positions != "last" or source_model is not None or batch_tokens is not None:
                raise InterpError(
                    "source_positions, source_model, batch_tokens: they say how source prompts are read, and `Latents` "
                    "are given."
                )
            found: Source = source
        else:
            reader = model if source_model is None else source_model
            found = Sources.of(reader, source, source_positions, batch_tokens, images)
        given = (
            [target_prompts] if isinstance(target_prompts, TargetPrompt) else listed(target_prompts, "target_prompts")
        )
        given = [given] if is_ids(given) else given  # one prompt
        into = [one.prompt if isinstance(one, TargetPrompt) else one for one in given]
        check_no_images(into, "target_prompts", "states are written into texts. Source prompts may have images")
        if len(found) == 1 and len(given) > 1:
            found = found.for_examples(len(given))
        if len(given) not in (1, len(found)):
            raise InterpError(
                f"target_prompts: expected one, or one for each of {len(found)} examples, got {len(given)}."
            )
        input_ids, positions = _written_over(model, given, target_positions, found)
        groups, names = _groups(model, targets, policy, given, found)
        return cls(model, found, input_ids, positions, groups, names)

    def parts(self, site: str, layers: Sequence[int]) -> Iterator[Part]:
        """The examples with their latents, some at a time.

        Arguments:
            site: the kind of site that is read.
            layers: those that latents are needed of.
        """
        own = self.source.reader is None or self.source.reader is self.model
        for writing in self.source.read(site, layers):
            rows = writing.examples
            yield Part(
                rows,
                writing.layers,
                writing.latents,
                writing.reference if own else None,
                None if own else writing.reference,
                self.input_ids[rows],
                self.positions[rows],
                self.groups[rows],
            )

    def results(self, site: str, layers: Sequence[int], lens: Callable[[Part], LensResult]) -> LensResult:
        """A lens over all examples.

        Arguments:
            site, layers: as in `parts`.
            lens: gives the lens of some examples.
        """
        results = [self._compared(lens(part), part.of_source) for part in self.parts(site, layers)]
        return replace(LensResult.concatenate(results), group_names=self.group_names)

    def _compared(self, result: LensResult, states: Tensor | None) -> LensResult:
        """The result with what another source model says at its own position, where both have one vocabulary."""
        reader = self.source.reader
        if states is None or reader is None or reader.tokenizer.get_vocab() != self.model.tokenizer.get_vocab():
            return result
        read = reduce_hidden(reader, states, [[]] * len(states), 1)
        ids = torch.from_numpy(result.top_ids[..., 0].astype(np.int64)).flatten(1)  # (example, cell)
        known = ids < reader.vocab_size  # a head may be wider than its vocabulary
        surprisal = surprisal_of(reader, states, ids.where(known, 0), read).cpu().where(known, torch.nan)
        return replace(
            result,
            surprisal=surprisal.view(result.surprisal.shape).numpy(),
            model_top_id=read.top_ids[:, 0].cpu().numpy(),
        )


def _written_over(
    model: StandardizedTransformer, prompts: Sequence[Any], positions: TargetPositions | None, source: Source
) -> tuple[list[list[int]], list[list[int]]]:
    """Per example, the token ids of its target prompt, and the tokens that are written over.

    Arguments:
        model: the model that runs them.
        prompts: one for all examples, or one each.
        positions: of each, one or several; or for each its own; None: its placeholder.
        source: how many tokens of each example are written.

    Raises:
        InterpError: other numbers of positions than the source has.
    """
    several: list[Any] = [positions] if positions is None or isinstance(positions, str | int) else list(positions)
    own = [[int(at) for at in each] for each in several if not isinstance(each, str | int | None)]
    if own:
        check_number("target_positions", several, len(prompts) if len(prompts) > 1 else len(source))
    resolved = [_resolved(model, given, [None] if own else several) for given in prompts]
    check_fed(model, [ids for ids, _ in resolved], "target_prompts")
    each = resolved * (len(source) if len(resolved) < len(source) else 1)
    found = own or [at for _, at in each]
    for example, at in enumerate(found):
        if source.num_positions not in (None, len(at)):
            raise InterpError(
                f"target_positions: expected {source.num_positions} of each target prompt, as many as tokens of a "
                f"source are read, got {len(at)} of target prompt {example}, {positions!r:.80}."
            )
    return [ids for ids, _ in each], found


def _resolved(
    model: StandardizedTransformer, given: Any, positions: Sequence[str | int | None]
) -> tuple[list[int], list[int]]:
    """The token ids of a target prompt, and those of its tokens that are written over."""
    spans: Mapping[str, Span] = {}
    if is_ids(given):
        ids = [int(token) for token in given]
        chosen = [Position.parse("last" if at is None else at) for at in positions]
    else:
        written = [as_target_prompt(given, model.tokenizer, at) for at in positions]
        encoded = written[0].prompt.encode(model.tokenizer)
        ids, spans = encoded.input_ids, encoded.spans
        chosen = [target.position for target in written]
    return ids, [token for position in chosen for token in position.resolve(len(ids), spans)]


def _groups(
    model: StandardizedTransformer, targets: Targets | None, policy: str, into: Sequence[Any], source: Source
) -> tuple[Groups, tuple[str, ...]]:
    """The groups of all examples: those of `targets`, else of the target prompts, else of the (first) source prompts.

    Raises:
        InterpError: as `groups_of`; or the source prompts' are of another vocabulary.
    """
    own = [given.prompt if isinstance(given, TargetPrompt) else given for given in into]
    if targets is None and source.firsts and not any(isinstance(given, Prompt) and given.targets for given in own):
        own, reader = list(source.firsts), source.reader
        named = any(isinstance(prompt, Prompt) and prompt.targets for prompt in own)
        if named and reader is not None and reader.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise InterpError(
                "targets: those of the source prompts are tokens of the source model, whose vocabulary is another. "
                "Give targets= as words, or target prompts that are `Prompt`s with targets of their own."
            )
    return groups_of(model, own * (len(source) if len(own) < len(source) else 1), targets, policy)
