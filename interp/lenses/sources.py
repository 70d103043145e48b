"""What a lens reads: latents, or prompts that they are read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations import collect
from interp.errors import InterpError
from interp.lenses.reading import LensPrompt, Positions, encode_prompts
from interp.prompts import Media, Prompt, with_images
from interp.prompts.given import is_ids, listed
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Latents", "Source", "SourcePrompts", "Sources", "check_no_images_of_latents"]

SourcePrompts = LensPrompt | Sequence[LensPrompt | Sequence[LensPrompt]]
"""A source prompt; or one an example; or, for an example, several, whose mean is written."""
_AT_ONCE = 256  # examples whose latents are held together


@dataclass(frozen=True)
class Writing:
    """What is written into some examples.

    Arguments:
        examples: which.
        layers: what the axis `layer` of the latents stands for, ascending.
        latents: (layer, example, hidden), or (layer, example, position, hidden) where several tokens are read.
        reference: (example, hidden), the residual stream after the source model's last layer at the source's (last)
            position; None: not known, or an example has several sources.
    """

    examples: slice
    layers: tuple[int, ...]
    latents: Tensor
    reference: Tensor | None


class Source(ABC):
    """Where what is written comes from."""

    @property
    def reader(self) -> StandardizedTransformer | None:
        """The model that reads the source prompts; None: there are none."""
        return None

    @property
    def firsts(self) -> Sequence[LensPrompt]:
        """Per example, its (first) source prompt."""
        return ()

    @property
    def num_positions(self) -> int | None:
        """How many tokens of each example are written; None: as the latents' shape says."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def for_examples(self, examples: int) -> Source:
        """The one example that there is, as often as this."""

    @abstractmethod
    def all_layers(self, num_layers: int | None = None) -> tuple[int, ...]:
        """The layers that a lens goes through where none are named.

        Arguments:
            num_layers: of the model that they are written into, layer by layer; None: they are not.
        """

    @abstractmethod
    def read(self, site: str, needed: Sequence[int]) -> Iterator[Writing]:
        """The latents, some examples at a time.

        Arguments:
            site: the kind of site that is read.
            needed: the layers that latents are needed of; there may be more.
        """


@dataclass(frozen=True)
class Latents(Source):
    """Hidden states that a lens is given in place of prompts; any device and float dtype.

        Latents(hidden, layers=[3, 5])

    Arguments:
        tensor: (layer, example, hidden_size); or, for a lens that writes them, (layer, example, position, hidden_size)
            where several tokens of each example are written at once. They may be another model's, of another width
            where a lens has a `mapping`.
        layers: what the axis `layer` stands for; None: the layers that the lens needs, all by default.
        reference: (example, hidden_size), the residual stream after the model's last layer at the same token (at the
            source token), which gives `surprisal` and `model_top_id`; None: not known.
    """

    tensor: Tensor
    layers: Sequence[int] | None = None
    reference: Tensor | None = None

    def __len__(self) -> int:
        return self.tensor.shape[1] if self.tensor.dim() > 1 else 0

    def at(self, layers: Sequence[int] | None) -> Latents:
        """The same of some layers, in their order; None: of all.

        Raises:
            InterpError: there are none of a layer.
        """
        if layers is None:
            return self
        asked = tuple(int(layer) for layer in layers)
        held = asked if self.layers is None else tuple(int(layer) for layer in self.layers)
        missing = [layer for layer in asked if layer not in held]
        if missing:
            raise InterpError(f"layers: there are latents of layers {list(held)}, none of {missing}.")
        if asked == held or len(self.tensor) != len(held):  # a lens refuses what does not fit
            return replace(self, layers=held)
        return replace(self, tensor=self.tensor[[held.index(layer) for layer in asked]], layers=asked)

    def for_examples(self, examples: int) -> Latents:
        """The one example that there is, as often as this."""
        shape = (-1, examples, *(-1 for _ in self.tensor.shape[2:]))
        reference = None if self.reference is None else self.reference.expand(examples, -1)
        return replace(self, tensor=self.tensor.expand(*shape), reference=reference)

    def all_layers(self, num_layers: int | None = None) -> tuple[int, ...]:
        """All that there are latents of; where it is not said which these are, all of the model."""
        if self.layers is not None:
            return tuple(int(layer) for layer in self.layers)
        return tuple(range(len(self.tensor) if num_layers is None else num_layers))

    def read(self, site: str, needed: Sequence[int]) -> Iterator[Writing]:
        """All of them at once; a lens says which layers are missing."""
        own = replace(self, layers=needed) if self.layers is None else self
        layers = tuple(sorted(own.all_layers()))
        yield Writing(slice(0, len(self)), layers, own.at(layers).tensor, self.reference)


def check_no_images_of_latents(images: Any) -> None:
    """Raises InterpError where there are images beside `Latents`."""
    if images is not None:
        raise InterpError("images: they are of prompts, and `Latents` are given, which were read before.")


@dataclass(frozen=True)
class Sources(Source):
    """The source prompts of all examples, each prompt by itself.

    Arguments:
        model: the model that reads them.
        input_ids: per prompt: token ids, unpadded.
        media: per prompt: what it is fed beside them, or None.
        positions: per prompt: the tokens that are read.
        counts: per example: how many of the prompts are its own, in order.
        single: whether one token is read, so that latents have no axis `position`.
        given: per example: its first source prompt, as given.
        batch_tokens: tokens in a forward pass at most; see `interp.activations.collect`.
        copies: how many examples the prompts stand for each.
    """

    model: StandardizedTransformer
    input_ids: list[list[int]]
    media: list[Media | None]
    positions: list[list[int]]
    counts: list[int]
    single: bool
    given: list[LensPrompt]
    batch_tokens: int | None
    copies: int = 1

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        prompts: SourcePrompts,
        positions: Positions,
        batch_tokens: int | None,
        images: Any = None,
    ) -> Sources:
        """Tokenize the source prompts and find their positions.

        Arguments:
            model: the model that reads them.
            prompts, positions, batch_tokens: as of `patchscope_lens`.
            images: of the prompts, an entry for each example; of an example with several, an entry each in that.

        Raises:
            InterpError: no prompt, an example without one, or a position that a prompt does not have.
        """
        examples = [_several(example) for example in _examples(_seeing(prompts, images))]
        if not examples or not all(examples):
            raise InterpError("source: expected at least one example, and at least one source prompt in each.")
        several = [prompt for example in examples for prompt in example]
        encoded = encode_prompts(model, several, positions, name="source")
        for prompt, own in enumerate(encoded.positions):
            if -1 in own:
                raise InterpError(
                    f"source_positions: source prompt {prompt} has {sum(at >= 0 for at in own)} such tokens, others "
                    f"have {len(own)}. Every latent needs a token, e.g. `last` or `subject.last`."
                )
        return cls(
            model,
            encoded.input_ids,
            encoded.media,
            encoded.positions,
            [len(example) for example in examples],
            encoded.single,
            [example[0] for example in examples],
            batch_tokens,
        )

    def __len__(self) -> int:
        return len(self.counts) * self.copies

    @property
    def reader(self) -> StandardizedTransformer:
        """The model that reads the source prompts."""
        return self.model

    @property
    def firsts(self) -> Sequence[LensPrompt]:
        """Per example, its (first) source prompt."""
        return self.given

    @property
    def num_positions(self) -> int:
        """How many tokens of each example are written."""
        return len(self.positions[0])

    def for_examples(self, examples: int) -> Sources:
        """The one example that there is, as often as this."""
        return replace(self, copies=examples, given=self.given * examples)

    def all_layers(self, num_layers: int | None = None) -> tuple[int, ...]:
        """All that both models have."""
        own = self.model.num_layers
        return tuple(range(own if num_layers is None else min(num_layers, own)))

    def read(self, site: str, needed: Sequence[int]) -> Iterator[Writing]:
        """Run the sources, some hundred examples at a time, so that memory does not depend on how many there are.

        Raises:
            InterpError: the source model does not have one of the layers.
        """
        layers = tuple(sorted(needed))
        outside = [layer for layer in layers if not 0 <= layer < self.model.num_layers]
        if outside:
            raise InterpError(
                f"layers: the source model has layers 0 to {self.model.num_layers - 1}, latents of {outside} are "
                "needed."
            )
        last = Site("resid_post", self.model.num_layers - 1)
        sites = [Site(site, layer) for layer in layers]
        asked = sites if last in sites else [*sites, last]
        first = 0
        for start in range(0, len(self.counts), _AT_ONCE):
            counts = self.counts[start : start + _AT_ONCE]
            prompts = slice(first, first + sum(counts))
            first = prompts.stop
            read = collect(
                self.model, self.input_ids[prompts], asked, self.positions[prompts], media=self.media[prompts],
                batch_tokens=self.batch_tokens,
            )  # fmt: skip
            latents = read[site][: len(layers)]  # (layer, prompt, position, hidden)
            alone = max(counts) == 1
            if not alone:
                latents = torch.stack([own.float().mean(1) for own in latents.split(counts, dim=1)], dim=1)
            latents = latents[:, :, 0] if self.single else latents
            reference = read["resid_post"][-1, :, -1] if alone else None
            if self.copies == 1:
                yield Writing(slice(start, start + len(counts)), layers, latents, reference)
                continue
            for copy in range(0, self.copies, _AT_ONCE):
                part = Latents(latents, reference=reference).for_examples(min(_AT_ONCE, self.copies - copy))
                yield Writing(slice(copy, copy + len(part)), layers, part.tensor, part.reference)


def _examples(prompts: SourcePrompts) -> list[LensPrompt | Sequence[LensPrompt]]:
    """The examples: token ids by themselves are one, as a text and a prompt are."""
    examples = listed(prompts, "source")
    return [examples] if is_ids(examples) else examples


def _seeing(prompts: SourcePrompts, images: Any) -> SourcePrompts:
    """The prompts with their images, also where an example has several prompts."""
    examples = [] if images is None else _examples(prompts)
    nested = [not isinstance(one, str | Prompt | Mapping) and not is_ids(one) for one in examples]
    if not any(nested):
        return with_images(prompts, images, "source")
    if not isinstance(images, list | tuple) or len(images) != len(examples):
        raise InterpError(
            f"images: expected an entry for each of {len(examples)} examples, and in one of several prompts an entry "
            f"for each of these, got {images!r:.80}."
        )
    return [
        with_images(example, own, "source") if several else with_images([example], [own], "source")[0]
        for example, own, several in zip(examples, images, nested, strict=True)
    ]


def _several(example: LensPrompt | Sequence[LensPrompt]) -> list[LensPrompt]:
    """The source prompts of an example: a text, a prompt and token ids are one."""
    given = listed(example, "source")
    return [given] if is_ids(given) else given
