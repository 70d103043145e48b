"""Trains a tuned lens; a training that was killed goes on to the same bytes.

Belrose et al. (2023), arXiv 2303.08112, section 3. As there, a translator learns to make the model's own readout say
what the model says in the end. Layers know nothing of each other: each has its own loss, and its gradient is clipped by
itself, so that the lens of a layer does not depend on which other layers are trained.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.tuned.checkpoint import optimizer_tensors, read_checkpoint, restore_optimizer, write_checkpoint
from interp.lenses.tuned.gradients import accumulate_gradients
from interp.lenses.tuned.lens import TunedLens
from interp.lenses.tuned.sequences import TokenSequence, TokenStream
from interp.lenses.tuned.settings import TuningSettings
from interp.lenses.tuned.states import TextSize, batches_of_tokens, token_states

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["TuningStep", "differences", "identity_of", "train_tuned_lens"]


@dataclass(frozen=True)
class TuningStep:
    """One step of a training, for the reader.

    Arguments:
        step: counted from 1.
        steps: how many there are.
        learning_rate: of this step.
        loss: layer -> mean loss of the step's tokens before the step, nats a token.
        bits_per_byte: layer -> the same, bits a byte of text.
    """

    step: int
    steps: int
    learning_rate: float
    loss: dict[int, float]
    bits_per_byte: dict[int, float]


def train_tuned_lens(
    model: StandardizedTransformer,
    sequences: TokenStream,
    settings: TuningSettings | None = None,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 25,
    progress: Callable[[TuningStep], None] | None = None,
) -> TunedLens:
    """Train a tuned lens (Belrose et al. 2023, arXiv 2303.08112).

    The model runs once a batch for all layers. Then the layers are gone through one by one, chunks of tokens each: at
    any time the logits of one layer at one chunk are held, and the final distribution there.

    Arguments:
        model: the model; it is not changed.
        sequences: what it is trained on, `PackedText` or `GivenSequences`; read up to where the training ends.
        settings: how; None: the paper's.
        checkpoint: a file. Where it exists the training goes on from it; it is written every `checkpoint_every` steps
            and after the last one, with the lens, the optimizer, the step and the place in the text. An interrupted
            training then ends with the same bytes as one that was not. None: no checkpoints.
        checkpoint_every: steps.
        progress: called after each step.

    Returns:
        The lens, on the model's device.

    Raises:
        InterpError: the text ends before the training, a checkpoint of another training, layers that the model does
            not have, or losses that are not finite.
    """
    if checkpoint_every < 1:
        raise InterpError(f"checkpoint_every: expected at least 1, got {checkpoint_every}.")
    settings = TuningSettings() if settings is None else settings
    run = _Run(model, sequences, settings, None if checkpoint is None else Path(checkpoint))
    run.resume()
    stream = iter(sequences)
    while run.step < settings.steps:
        told = run.advance(stream)
        if run.step % checkpoint_every == 0 or run.step == settings.steps:
            run.keep()
        if progress is not None:
            progress(told)
    run.lens.training_record = {**run.identity, "text_sha256": run.digest}
    return run.lens.requires_grad_(False)


class _Run:
    """A training: what a checkpoint keeps, and how it goes on by a step."""

    def __init__(
        self, model: StandardizedTransformer, sequences: TokenStream, settings: TuningSettings, path: Path | None
    ) -> None:
        self._model, self._sequences, self._settings, self._path = model, sequences, settings, path
        self.lens = TunedLens.of(model, settings.layers, bias_only=settings.bias_only)
        self._optimizer = settings.make_optimizer(self.lens)
        self.step = 0
        self.digest = ""  # over all sequences so far, in order
        self.identity = identity_of(settings, self.lens.layers, sequences.describe())

    def advance(self, stream: Iterator[TokenSequence]) -> TuningStep:
        """One optimizer step."""
        settings, lens = self._settings, self.lens
        sequences = self._take(stream)
        self._optimizer.zero_grad()
        totals: dict[int, Tensor] = {}
        tokens = 0
        for batch in batches_of_tokens(sequences, settings.batch_tokens):
            states = token_states(self._model, batch, lens.layers)
            tokens += accumulate_gradients(self._model, lens, states, settings.loss, totals)
        size = TextSize()
        size.add(sequences)
        loss = {layer: float(total) / max(tokens, 1) for layer, total in totals.items()}
        self._check(loss, tokens)
        for layer in lens.layers:
            parameters = lens.parameters_of(layer)
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad /= tokens
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        settings.apply_rate(self._optimizer, self.step)
        self._optimizer.step()
        self.step += 1
        return TuningStep(
            step=self.step,
            steps=settings.steps,
            learning_rate=settings.rate(self.step - 1),
            loss=loss,
            bits_per_byte={layer: size.bits_per_byte(value) for layer, value in loss.items()},
        )

    def resume(self) -> None:
        """Go to where the checkpoint is, if there is one."""
        if self._path is None or not self._path.exists():
            return
        tensors, state = read_checkpoint(self._path)
        own = {**self.identity, "unembedding_sha256": self.lens.unembedding}
        if state["identity"] != own:
            raise InterpError(
                f"{self._path} is the checkpoint of another training: {differences(state['identity'], own)}. Give the "
                "same settings to go on with it, another output, or remove it (--no-resume) to begin anew."
            )
        self.lens.take({name: value for name, value in tensors.items() if not name.startswith("optimizer.")})
        restore_optimizer(self._optimizer, tensors)
        self._sequences.restore(state["sequences"])
        self.step, self.digest = state["step"], state["digest"]

    def keep(self) -> None:
        """Write the checkpoint."""
        if self._path is None:
            return
        state = {
            "identity": {**self.identity, "unembedding_sha256": self.lens.unembedding},
            "step": self.step,
            "digest": self.digest,
            "sequences": self._sequences.state(),
        }
        write_checkpoint(self._path, self.lens.tensors() | optimizer_tensors(self._optimizer), state)

    def _take(self, stream: Iterator[TokenSequence]) -> list[TokenSequence]:
        """The sequences of the next step."""
        taken: list[TokenSequence] = []
        tokens = 0
        while tokens < self._settings.tokens_per_step:
            sequence = next(stream, None)
            if sequence is None:
                raise InterpError(
                    f"the text ended in step {self.step + 1} of {self._settings.steps}, at {tokens} of "
                    f"{self._settings.tokens_per_step} tokens. Give more text, fewer steps or tokens_per_step, or "
                    "repeat it (repeat=True, --repeat)."
                )
            taken.append(sequence)
            tokens += len(sequence.ids)
        ids = repr([sequence.ids for sequence in taken])
        self.digest = hashlib.sha256((self.digest + ids).encode()).hexdigest()
        return taken

    def _check(self, loss: dict[int, float], tokens: int) -> None:
        if not tokens:
            raise InterpError(
                f"step {self.step + 1} has no token that another follows, which cross-entropy needs. Give sequences of "
                "2 tokens or more, or loss='kl'."
            )
        broken = [layer for layer, value in loss.items() if not math.isfinite(value)]
        if broken:
            raise InterpError(
                f"step {self.step + 1}: the loss of layers {broken} is not finite. Lower the learning rate "
                f"({self._settings.highest_rate}), or load the model as bfloat16 or float32."
            )


def identity_of(settings: TuningSettings, layers: Sequence[int], text: dict[str, Any]) -> dict[str, Any]:
    """What makes two trainings of one model the same: settings and text, JSON.

    Arguments:
        settings: how it is trained.
        layers: the layers that are trained.
        text: `TokenStream.describe`.
    """
    return {"settings": asdict(settings) | {"layers": list(layers)}, "text": text}


def differences(theirs: dict[str, Any], own: dict[str, Any]) -> str:
    """The settings in which two trainings differ, for an error."""
    flat = [dict(_flattened(identity, "")) for identity in (theirs, own)]
    names = sorted(name for name in set(chain(*flat)) if flat[0].get(name) != flat[1].get(name))
    return ", ".join(f"{name} {flat[0].get(name)!r} there, {flat[1].get(name)!r} here" for name in names)


def _flattened(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flattened(inner, key)
    else:
        yield name, value
