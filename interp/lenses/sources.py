"""What patchscopes are given: latents, from source prompts or as they are, and the target prompts they are written into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from interp.activations import collect
from interp.errors import InterpError
from interp.lenses.prompted import LensPrompt, Targets, check_policy_unused, encode_prompts
from interp.lenses.reading import surprisal_of
from interp.model.fed import check_fed
from interp.patching import check_number
from interp.positions import Position
from interp.prompts import Prompt
from interp.prompts.given import is_ids, listed
from interp.prompts.named_targets import as_target_prompt
from interp.prompts.target_prompt import TargetPrompt
from interp.readout import Groups, reduce_hidden
from interp.results import LensResult
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Given",
    "Latents",
    "Positions",
    "SourcePrompts",
    "Sources",
    "TargetPositions",
    "TargetPrompts",
    "Writing",
    "Written",
    "groups_of",
    "written_into",
]

SourcePrompts = LensPrompt | Sequence[LensPrompt | Sequence[LensPrompt]]
"""A source prompt; or one an example; or, for an example, several, whose mean is written."""
TargetPrompts = LensPrompt | TargetPrompt | Sequence[LensPrompt | TargetPrompt]
"""A target prompt for all examples, or one each; names of `interp.prompts.TARGET_NAMES` too."""
Positions = str | int | Sequence[str | int]
"""One of the vocabulary of `interp.positions`, or several."""
TargetPositions = Positions | Sequence[Sequence[int]]
"""The same for all target prompts; or for each a list of its own tokens, counted from 0 without padding."""

_AT_ONCE = 256  # examples whose latents are held together
_POLICY = "first_token"  # the default of all lenses


@dataclass(frozen=True)
class Latents:
    """Hidden states that a lens is given in place of prompts; any device and float dtype.

    Arguments:
        tensor: (layer, example, hidden_size); or (layer, example, position, hidden_size) where several tokens of each
            example are written at once. They may be another model's, of another width where a lens has a `mapping`.
        layers: what the axis `layer` stands for, ascending; None: the layers that the lens is asked for.
        own: (example, hidden_size), the residual stream after the model's last layer at the source token, which gives
            `surprisal` and `model_top_id`; None: not known.
    """

    tensor: Tensor
    layers: Sequence[int] | None = None
    own: Tensor | None = None

    def __len__(self) -> int:
        return self.tensor.shape[1] if self.tensor.dim() > 1 else 0

    @property
    def width(self) -> int | None:
        """How many tokens of each example are written; None: any number that the tensor turns out to have."""
        return None

    firsts: ClassVar[list[LensPrompt]] = []

    def held(self, layers: Sequence[int], needed: Sequence[int]) -> Sequence[int]:
        """The layers that there are latents of."""
        return layers if self.layers is None else self.layers

    def read(self, site: str, layers: Sequence[int]) -> Iterator[Writing]:
        """All of them at once, as they are."""
        yield Writing(slice(0, len(self)), self.tensor, self.own)

    def check_vocabulary(self, model: StandardizedTransformer, prompts: Sequence[Prompt]) -> None:
        """They have no targets of their own."""

    def compared(self, result: LensResult, own: Tensor, model: StandardizedTransformer) -> LensResult:
        """The result as it is."""
        return result

    def is_of(self, model: StandardizedTransformer) -> bool:
        """Whether `own` is the model's."""
        return True

    def every_layer(self, num_layers: int | None) -> tuple[int, ...]:
        """The layers that a lens is asked for by default."""
        if self.layers is not None:
            return tuple(map(int, self.layers))
        return tuple(range(len(self.tensor) if num_layers is None else num_layers))


@dataclass(frozen=True)
class Writing:
    """What is written into some examples.

    Arguments:
        examples: which.
        latents: (layer, example, hidden), or (layer, example, position, hidden) where several tokens are read.
        own: (example, hidden), the residual stream after the source model's last layer at the source's (last) position;
            None: an example has several sources.
    """

    examples: slice
    latents: Tensor
    own: Tensor | None


@dataclass(frozen=True)
class Sources:
    """The source prompts of all examples, each prompt by itself.

    Arguments:
        model: the model that reads them.
        input_ids: per prompt: token ids, unpadded.
        positions: per prompt: the tokens that are read.
        counts: per example: how many of the prompts are its own, in order.
        single: whether one token is read, so that latents have no axis `position`.
        firsts: per example: its first source prompt, as given.
    """

    model: StandardizedTransformer
    input_ids: list[list[int]]
    positions: list[list[int]]
    counts: list[int]
    single: bool
    firsts: list[LensPrompt]

    @classmethod
    def of(cls, model: StandardizedTransformer, prompts: SourcePrompts, positions: Positions) -> Sources:
        """Tokenize the source prompts and find their positions.

        Raises:
            InterpError: no prompt, an example without one, or a position that a prompt does not have.
        """
        examples = [_several(example) for example in _examples(prompts)]
        if not examples or not all(examples):
            raise InterpError("source_prompts: expected at least one example, and at least one prompt in each.")
        several = [prompt for example in examples for prompt in example]
        encoded = encode_prompts(model, several, positions, name="source_prompts")
        for prompt, own in enumerate(encoded.positions):
            if -1 in own:
                raise InterpError(
                    f"source_positions: source prompt {prompt} has {sum(at >= 0 for at in own)} such tokens, others "
                    f"have {len(own)}. Every latent needs a token, e.g. `last` or `subject.last`."
                )
        return cls(
            model,
            encoded.input_ids,
            encoded.positions,
            [len(example) for example in examples],
            encoded.single,
            [example[0] for example in examples],
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def width(self) -> int | None:
        """How many tokens of each example are written."""
        return len(self.positions[0])

    def held(self, layers: Sequence[int], needed: Sequence[int]) -> Sequence[int]:
        """The layers that are read.

        Arguments:
            layers: that the lens is asked for.
            needed: that it writes.

        Raises:
            InterpError: the source model does not have one of these.
        """
        outside = [layer for layer in needed if not 0 <= layer < self.model.num_layers]
        if outside:
            raise InterpError(
                f"layers: the source model has layers 0 to {self.model.num_layers - 1}, latents of {outside} are "
                "needed."
            )
        return needed

    def check_vocabulary(self, model: StandardizedTransformer, prompts: Sequence[Prompt]) -> None:
        """Refuse targets that were found with another tokenizer than that of the model whose logits are read."""
        other = self.model is not model and self.model.tokenizer.get_vocab() != model.tokenizer.get_vocab()
        if other and any(prompt.targets for prompt in prompts):
            raise InterpError(
                "targets: those of the source prompts are tokens of the source model, whose vocabulary is another. "
                "Give targets= as words, or target prompts that are `Prompt`s with targets of their own."
            )

    def is_of(self, model: StandardizedTransformer) -> bool:
        """Whether the sources are read by the model that the target prompts are run by."""
        return self.model is model

    def every_layer(self, num_layers: int | None) -> tuple[int, ...]:
        """The layers that a lens is asked for by default."""
        own = self.model.num_layers
        return tuple(range(own if num_layers is None else min(num_layers, own)))

    def compared(self, result: LensResult, own: Tensor, model: StandardizedTransformer) -> LensResult:
        """The result with what a source model says at its own position, where both models have one vocabulary."""
        if self.model.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            return result
        read = reduce_hidden(self.model, own, [[]] * len(own), 1)
        ids = torch.from_numpy(result.top_ids[..., 0].astype(np.int64)).flatten(1)  # (example, cell)
        known = ids < self.model.vocab_size  # a head may be wider than its vocabulary
        surprisal = surprisal_of(self.model, own, ids.where(known, 0), read).cpu().where(known, torch.nan)
        return replace(
            result,
            surprisal=surprisal.view(result.surprisal.shape).numpy(),
            model_top_id=read.top_ids[:, 0].cpu().numpy(),
        )

    def read(self, site: str, layers: Sequence[int]) -> Iterator[Writing]:
        """Run the sources, some hundred examples at a time, so that memory does not depend on how many there are.

        Arguments:
            site: the kind of site that is read.
            layers: at which layers, ascending.
        """
        last = Site("resid_post", self.model.num_layers - 1)
        sites = [Site(site, layer) for layer in layers]
        asked = sites if last in sites else [*sites, last]
        first = 0
        for start in range(0, len(self), _AT_ONCE):
            counts = self.counts[start : start + _AT_ONCE]
            prompts = slice(first, first + sum(counts))
            first = prompts.stop
            read = collect(self.model, self.input_ids[prompts], asked, self.positions[prompts])
            latents = read[site][: len(layers)]  # (layer, prompt, position, hidden)
            alone = max(counts) == 1
            if not alone:
                latents = torch.stack([own.float().mean(1) for own in latents.split(counts, dim=1)], dim=1)
            yield Writing(
                slice(start, start + len(counts)),
                latents[:, :, 0] if self.single else latents,
                read["resid_post"][-1, :, -1] if alone else None,
            )


@dataclass(frozen=True)
class Written:
    """The target prompts of all examples, tokenized.

    Arguments:
        input_ids: per example: token ids, unpadded.
        positions: per example: the tokens that are written over.
        given: the prompts as the user gave them, read once: one for all examples, or one each.
    """

    input_ids: list[list[int]]
    positions: list[list[int]]
    given: list[Any]


def written_into(
    model: StandardizedTransformer,
    prompts: TargetPrompts,
    positions: TargetPositions | None,
    sources: Sources | Latents,
) -> Written:
    """Tokenize the target prompts and find what is written over.

    Arguments:
        model: the model that runs them.
        prompts: one for all examples, or one each.
        positions: of each, one or several; or for each its own; None: its placeholder.
        sources: the examples, and how many tokens of each are written.

    Raises:
        InterpError: other numbers of prompts, or of positions, than the sources have.
    """
    each = _targets(prompts)
    if len(each) not in (1, len(sources)):
        raise InterpError(f"target_prompts: expected one, or one for each of {len(sources)} examples, got {len(each)}.")
    several: list[Any] = [positions] if positions is None or isinstance(positions, str | int) else list(positions)
    own = _by_prompt(several)
    widths = {len(tokens) for tokens in own} if own else {len(several)}
    if sources.width is not None and widths != {sources.width}:
        raise InterpError(
            f"target_positions: expected {sources.width}, as many as tokens of a source are read, got "
            f"{sorted(widths)[0]}: {several}."
        )
    if own:
        several = [None]
        check_number("target_positions", own, len(each) if len(each) > 1 else len(sources))
    resolved = [[_resolved(model, given, at, index) for at in several] for index, given in enumerate(each)]
    check_fed(model, [found[0][0] for found in resolved], "target_prompts")
    repeated = resolved * (len(sources) if len(resolved) < len(sources) else 1)
    return Written([found[0][0] for found in repeated], own or [[at for _, at in found] for found in repeated], each)


def _are_groups(targets: Any) -> bool:
    """Whether these are, per example and group, token ids: no names with words."""
    return not isinstance(targets, Mapping | str) and all(
        not isinstance(own, Mapping | str) and not any(isinstance(group, str) for group in own) for own in targets
    )


def _by_prompt(positions: Sequence[Any]) -> list[list[int]]:
    """The tokens of each target prompt, where they are given so; else none."""
    return [[int(at) for at in own] for own in positions if not isinstance(own, str | int | None)]


def groups_of(
    model: StandardizedTransformer,
    targets: Targets | Sequence[Targets] | Groups | None,
    policy: str,
    into: Written,
    sources: Sources | Latents,
) -> tuple[Groups, tuple[str, ...]]:
    """The tokens whose probability is read, by example and group, and the names of the groups.

    Arguments:
        model: the model that runs the target prompts.
        targets: for all examples, or for each its own, as words by name; or per example, per group: token ids; None: those of the target prompts that are `Prompt`s, or where
            none has any, of the (first) source prompts.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.

    Raises:
        InterpError: targets of source prompts of another vocabulary, or a policy without words that it is for.
    """
    count = len(sources)
    if targets is not None and _are_groups(targets):
        check_policy_unused(policy)
        check_number("targets", targets, count)
        return cast(Groups, targets), ()
    if targets is not None:
        found = encode_prompts(model, [[0]] * count, "last", targets, policy)
        return found.groups, found.group_names
    check_policy_unused(policy)
    own = [given.prompt if isinstance(given, TargetPrompt) else given for given in into.given]
    asked: list[Prompt] = [given if isinstance(given, Prompt) else Prompt("") for given in own]
    if not any(prompt.targets for prompt in asked) and sources.firsts:
        asked = [given if isinstance(given, Prompt) else Prompt("") for given in sources.firsts]
        sources.check_vocabulary(model, asked)
    asked = asked * (count if len(asked) < count else 1)
    names = tuple(dict.fromkeys(name for prompt in asked for name in prompt.targets))
    return [[prompt.target_tokens.get(name, ()) for name in names] for prompt in asked], names


def _examples(prompts: SourcePrompts) -> list[LensPrompt | Sequence[LensPrompt]]:
    """The examples: token ids by themselves are one, as a text and a prompt are."""
    examples = listed(prompts, "source_prompts")
    return [examples] if is_ids(examples) else examples


def _several(example: LensPrompt | Sequence[LensPrompt]) -> list[LensPrompt]:
    """The source prompts of an example: a text, a prompt and token ids are one."""
    given = listed(example, "source_prompts")
    return [given] if is_ids(given) else given


def _targets(prompts: TargetPrompts) -> list[Any]:
    """The target prompts: token ids by themselves are one."""
    given = [prompts] if isinstance(prompts, TargetPrompt) else listed(prompts, "target_prompts")
    return [given] if is_ids(given) else given


def _resolved(
    model: StandardizedTransformer, given: Any, position: str | int | None, index: int
) -> tuple[list[int], int]:
    """The token ids of a target prompt, and which of them is written over."""
    if not is_ids(given):
        return as_target_prompt(given, model.tokenizer, position).resolve(model.tokenizer)
    ids = [int(token) for token in given]
    found = Position.parse("last" if position is None else position).resolve(len(ids), {})
    if len(found) != 1:
        raise InterpError(
            f"target_positions: {position!r} is {len(found)} tokens of target prompt {index}, expected one."
        )
    return ids, found[0]


@dataclass(frozen=True)
class Part:
    """What is written into some examples.

    Arguments:
        examples: which.
        written: the latents; token ids of each target prompt; the tokens of each that are written.
        own: as in `Writing`.
    """

    examples: slice
    written: tuple[Tensor, list[list[int]], list[list[int]]]
    own: Tensor | None


@dataclass(frozen=True)
class Given:
    """What a patchscope is given, tokenized and found.

    Arguments:
        source: latents, or prompts to read them of.
        into: the target prompts.
        groups: per example, per group: the token ids whose probability is read.
        names: of the groups.
    """

    source: Sources | Latents
    into: Written
    groups: Groups
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        source: SourcePrompts | Latents,
        target_prompts: TargetPrompts,
        target_positions: TargetPositions | None,
        *,
        source_model: StandardizedTransformer | None,
        source_positions: Positions,
        targets: Targets | Sequence[Targets] | Groups | None = None,
        policy: str = _POLICY,
    ) -> Given:
        """The same, from what the user gives.

        Raises:
            InterpError: numbers of prompts or positions that do not fit, or latents with what is for source prompts.
        """
        if isinstance(source, Latents):
            if source_model is not None or source_positions != "last":
                raise InterpError("source_model, source_positions: are for source prompts, and latents are given.")
            found: Sources | Latents = source
        else:
            found = Sources.of(model if source_model is None else source_model, source, source_positions)
        into = written_into(model, target_prompts, target_positions, found)
        return cls(found, into, *groups_of(model, targets, policy, into, found))

    def layers(self, layers: Sequence[int] | None, num_layers: int | None) -> tuple[int, ...]:
        """The layers that a lens is asked for.

        Arguments:
            layers: as given; None: all that there are latents of, or that both models have.
            num_layers: of the model that they are written into; None: they are not.
        """
        chosen = self.source.every_layer(num_layers) if layers is None else tuple(int(layer) for layer in layers)
        if not chosen:
            raise InterpError("layers: expected at least one, got none.")
        return chosen

    def read(self, site: str, held: Sequence[int]) -> Iterator[Part]:
        """The latents, some hundred examples at a time, with the target prompts that they are written into.

        Arguments:
            site: the kind of site that is read.
            held: at which layers, ascending.
        """
        for writing in self.source.read(site, held):
            rows = writing.examples
            yield Part(rows, (writing.latents, self.into.input_ids[rows], self.into.positions[rows]), writing.own)

    def reference(self, part: Part, model: StandardizedTransformer) -> Tensor | None:
        """(example, hidden_size), what gives p_model; None where it is not known, or another model's."""
        return part.own if self.source.is_of(model) else None

    def compared(self, result: LensResult, part: Part, model: StandardizedTransformer) -> LensResult:
        """The result with what another source model says at its own position."""
        return result if self.source.is_of(model) or part.own is None else self.source.compared(result, part.own, model)

    def check_here(self, remote: bool | str) -> None:
        """Raises InterpError where source prompts are to be read elsewhere."""
        if remote and not isinstance(self.source, Latents):
            raise InterpError(
                "remote: source prompts are read here. Collect their states with `collect(..., remote=...)`, and give "
                "them as `Latents`."
            )
