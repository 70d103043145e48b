"""Trains a tuned lens; a training that was killed goes on to the same bytes.

Belrose et al. (2023), arXiv 2303.08112, section 3. As there, a translator learns to make the model's own readout say
what the model says in the end. Layers know nothing of each other: each has its own loss, and its gradient is clipped by
itself, so that the lens of a layer does not depend on which other layers are trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from interp.errors import InterpError, nearest
from interp.readout import log_probabilities
from interp.tensor_files import write_tensors
from interp.translators.data import TokenSequence, TokenStream
from interp.translators.layer_translators import TunedLens
from interp.translators.states import TextSize, TokenStates, batches_of_tokens, token_chunks, token_states

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Loss",
    "OptimizerName",
    "TuningSettings",
    "TuningStep",
    "accumulate_gradients",
    "differences",
    "identity_of",
    "optimizer_tensors",
    "read_checkpoint",
    "restore_optimizer",
    "train_tuned_lens",
    "write_checkpoint",
]

Loss = Literal["kl", "cross_entropy"]
OptimizerName = Literal["sgd", "adam"]


@dataclass(frozen=True)
class TuningSettings:
    """How a tuned lens is trained. What is not given is as in the paper's library.

    Arguments:
        steps: optimizer steps.
        tokens_per_step: a step takes sequences until they have this many tokens.
        loss: `kl`, KL(the model's final distribution || the lens's); or `cross_entropy` with the token that follows.
        optimizer: `sgd` (Nesterov) or `adam` (with AMSGrad).
        learning_rate: at its highest; None: 1.0 for sgd (times 1 - momentum, as its momentum adds up), 1e-3 for adam.
        momentum: of sgd; the first beta of adam.
        weight_decay: pulls translators to the identity.
        warmup_steps: steps over which the learning rate rises; None: none for sgd, a fifth (at most 1000) for adam.
            Then it falls linearly to zero.
        clip: largest norm of a layer's gradient.
        layers: the layers that are trained, ascending; None: all but the last.
        bias_only: train no matrices.
        batch_tokens: tokens in a forward pass at most, padding counted; memory goes with it.

    Raises:
        InterpError: a setting that makes no sense.
    """

    steps: int = 250
    tokens_per_step: int = 1 << 15
    loss: Loss = "kl"
    optimizer: OptimizerName = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-3
    warmup_steps: int | None = None
    clip: float = 1.0
    layers: tuple[int, ...] | None = None
    bias_only: bool = False
    batch_tokens: int = 1 << 12

    def __post_init__(self) -> None:
        for name, known in (("loss", get_args(Loss)), ("optimizer", get_args(OptimizerName))):
            if getattr(self, name) not in known:
                raise InterpError(f"{name}: unknown {getattr(self, name)!r}.{nearest(getattr(self, name), known)}")
        for name in ("steps", "tokens_per_step", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InterpError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 <= self.warmup < self.steps:
            raise InterpError(f"warmup_steps: expected fewer than the {self.steps} steps, got {self.warmup}.")
        if not 0 <= self.momentum < 1 or self.clip <= 0 or self.weight_decay < 0 or self.highest_rate <= 0:
            raise InterpError(
                "expected 0 <= momentum < 1, clip > 0, weight_decay >= 0 and learning_rate > 0, got "
                f"{self.momentum}, {self.clip}, {self.weight_decay} and {self.highest_rate}."
            )

    @property
    def warmup(self) -> int:
        """Steps of warmup."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(1000, self.steps // 5) if self.optimizer == "adam" else 0

    @property
    def highest_rate(self) -> float:
        """The learning rate after warmup."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimizer == "sgd" else 1e-3

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: linear up, then linear down, never zero."""
        if step < self.warmup:
            return self.highest_rate * (step + 1) / (self.warmup + 1)
        return self.highest_rate * (self.steps - step) / (self.steps - self.warmup)

    def make_optimizer(self, lens: TunedLens) -> torch.optim.Optimizer:
        """An optimizer of a lens's translators."""
        parameters = [parameter for layer in lens.layers for parameter in lens.parameters_of(layer)]
        if self.optimizer == "adam":
            return torch.optim.Adam(
                parameters, betas=(self.momentum, 0.999), amsgrad=True, weight_decay=self.weight_decay
            )
        return torch.optim.SGD(
            parameters, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
        )

    def apply_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of a step."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * (1 - self.momentum if self.optimizer == "sgd" else 1)


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


def accumulate_gradients(
    model: StandardizedTransformer, lens: TunedLens, states: TokenStates, loss: Loss, totals: dict[int, Tensor]
) -> int:
    """Add the gradients of summed losses to a lens's translators, one layer's logits at a time.

    Losses are summed, not averaged: small gradients of many tokens would underflow in float16.

    Arguments:
        model: the model; its own weights get no gradients.
        lens: `grad` of its parameters is added to.
        states: the model's residual streams.
        loss: which.
        totals: layer -> summed loss in nats, which is added to.

    Returns:
        How many tokens the sums go over.
    """
    states = states.followed() if loss == "cross_entropy" else states
    for chunk in token_chunks(states, model.vocab_size):
        with torch.no_grad():
            final = log_probabilities(model.readout(chunk.final)) if loss == "kl" else None
            probability = None if final is None else final.exp()
        for layer in lens.layers:
            with torch.enable_grad():
                hidden = lens.translated(chunk.by_layer[layer].to(lens.device), layer)
                log_probs = torch.log_softmax(model.readout(hidden).float(), dim=-1)
                total = _summed(log_probs, final, probability, chunk.next_ids)
                total.backward(inputs=lens.parameters_of(layer))  # not the model's own weights
            totals[layer] = totals.get(layer, 0) + total.detach()
    return len(states)


def _summed(log_probs: Tensor, final: Tensor | None, probability: Tensor | None, next_ids: Tensor) -> Tensor:
    """Summed KL to the final distribution where there is one, else summed cross-entropy; nats."""
    if final is None or probability is None:
        return functional.nll_loss(log_probs, next_ids.to(log_probs.device), reduction="sum")
    # A model may exclude tokens outright, with logits of minus infinity: 0 x infinity is nothing here.
    return torch.where(probability > 0, probability * (final - log_probs), 0.0).sum()


_KEY = "interpipe"
_OPTIMIZER = "optimizer"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON into one file, under its name only when it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {_KEY: json.dumps(state, sort_keys=True)})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_checkpoint` wrote.

    Raises:
        InterpError: it is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise InterpError(
            f"{path} is no checkpoint of a tuned lens ({type(error).__name__}). Remove it to begin anew."
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory by name, `optimizer.PARAMETER.KIND`, on the CPU."""
    return {
        f"{_OPTIMIZER}.{index}.{kind}": value.detach().cpu().contiguous()
        for index, kinds in optimizer.state_dict()["state"].items()
        for kind, value in kinds.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the memory that `optimizer_tensors` took; other tensors are passed over."""
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith(f"{_OPTIMIZER}."):
            _, index, kind = name.split(".")
            whole["state"].setdefault(int(index), {})[kind] = value
    optimizer.load_state_dict(whole)
