"""What patchscopes on prompts share: latents of source prompts, and the target prompts that they are written into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations import collect
from interp.errors import InterpError
from interp.lenses.on_prompts import LensPrompt, Targets, check_policy_unused, encode_prompts
from interp.model.fed import check_fed
from interp.positions import Position
from interp.prompts import Prompt
from interp.prompts.given import is_ids, listed
from interp.prompts.target_prompt import TargetPrompt, as_target_prompt
from interp.readout import Groups
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Positions", "SourcePrompts", "Sources", "TargetPrompts", "Writing", "Written", "groups_of", "written_into"]

SourcePrompts = LensPrompt | Sequence[LensPrompt | Sequence[LensPrompt]]
"""A source prompt; or one an example; or, for an example, several, whose mean is written."""
TargetPrompts = LensPrompt | TargetPrompt | Sequence[LensPrompt | TargetPrompt]
"""A target prompt for all examples, or one each; names of `interp.prompts.TARGET_NAMES` too."""
Positions = str | int | Sequence[str | int]
"""One of the vocabulary of `interp.positions`, or several."""

_AT_ONCE = 256  # examples whose latents are held together


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
        positions: per example: the token that is written over, or the tokens.
        given: the prompts as the user gave them, read once: one for all examples, or one each.
    """

    input_ids: list[list[int]]
    positions: list[int] | list[list[int]]
    given: list[Any]


def written_into(
    model: StandardizedTransformer, prompts: TargetPrompts, positions: Positions | None, sources: Sources
) -> Written:
    """Tokenize the target prompts and find what is written over.

    Arguments:
        model: the model that runs them.
        prompts: one for all examples, or one each.
        positions: of each, one or several; None: its placeholder.
        sources: the examples, and how many tokens of each are written.

    Raises:
        InterpError: other numbers of prompts, or of positions, than the sources have.
    """
    each = _targets(prompts)
    if len(each) not in (1, len(sources)):
        raise InterpError(f"target_prompts: expected one, or one for each of {len(sources)} examples, got {len(each)}.")
    several: list[str | int | None] = (
        [positions] if positions is None or isinstance(positions, str | int) else list(positions)
    )
    if len(several) != len(sources.positions[0]):
        raise InterpError(
            f"target_positions: expected {len(sources.positions[0])}, as many as tokens of a source are read, got "
            f"{len(several)}: {several}."
        )
    resolved = [[_resolved(model, given, at, index) for at in several] for index, given in enumerate(each)]
    check_fed(model, [found[0][0] for found in resolved], "target_prompts")
    repeated = resolved * (len(sources) if len(resolved) < len(sources) else 1)
    ids = [found[0][0] for found in repeated]
    if sources.single:
        return Written(ids, [found[0][1] for found in repeated], each)
    return Written(ids, [[at for _, at in found] for found in repeated], each)


def groups_of(
    model: StandardizedTransformer,
    targets: Targets | Sequence[Targets] | None,
    policy: str,
    into: Written,
    sources: Sources,
) -> tuple[Groups, tuple[str, ...]]:
    """The tokens whose probability is read, by example and group, and the names of the groups.

    Arguments:
        model: the model that runs the target prompts.
        targets: for all examples, or for each its own; None: those of the target prompts that are `Prompt`s, or where
            none has any, of the (first) source prompts.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.

    Raises:
        InterpError: targets of source prompts of another vocabulary, or a policy without words that it is for.
    """
    count = len(sources)
    if targets is not None:
        found = encode_prompts(model, [[0]] * count, "last", targets, policy)
        return found.groups, found.group_names
    check_policy_unused(policy)
    own = [given.prompt if isinstance(given, TargetPrompt) else given for given in into.given]
    asked: list[Prompt] = [given if isinstance(given, Prompt) else Prompt("") for given in own]
    if not any(prompt.targets for prompt in asked):
        asked = [given if isinstance(given, Prompt) else Prompt("") for given in sources.firsts]
        _check_one_vocabulary(model, sources, asked)
    asked = asked * (count if len(asked) < count else 1)
    names = tuple(dict.fromkeys(name for prompt in asked for name in prompt.targets))
    return [[prompt.target_tokens.get(name, ()) for name in names] for prompt in asked], names


def _check_one_vocabulary(model: StandardizedTransformer, sources: Sources, prompts: Sequence[Prompt]) -> None:
    """Refuse targets that were found with another tokenizer than that of the model whose logits are read."""
    other = sources.model is not model and sources.model.tokenizer.get_vocab() != model.tokenizer.get_vocab()
    if other and any(prompt.targets for prompt in prompts):
        raise InterpError(
            "targets: those of the source prompts are tokens of the source model, whose vocabulary is another. Give "
            "targets= as words, or target prompts that are `Prompt`s with targets of their own."
        )


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
