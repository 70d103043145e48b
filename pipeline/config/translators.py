"""Section `tune`: the source of a run's tuned lens, and its affine maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interp.sites import parse_layers
from pipeline.config.section import LARGEST_COUNT, LARGEST_SEED, bounded, chosen

__all__ = [
    "TEXT_FILES",
    "TuneConfig",
    "tuned_layers",
]


TEXT_FILES = (".jsonl", ".json", ".parquet", ".csv", ".txt")


@dataclass(frozen=True)
class TuneConfig:
    """A tuned lens (Belrose et al. 2023), none, one that is trained or one that exists; and affine maps between layers.

    Arguments:
        kind: `off` makes none, `prompts` trains on the run's own prompts, `text` on a file or a hub data set, `lens`
            takes one that exists.
        train: whether `prompts` and `text` train a tuned lens; without it they fit affine maps alone.
        source: of `text`: a file or a hub id; of `lens`: a folder, ours or of the tuned-lens library.
        name, split, column, revision: of a hub data set: its configuration, part, column with the text, and version.
        sequence_length: tokens in a sequence, of `text`.
        shuffle_buffer: documents of `text` that are mixed at a time; 0: the order of the source.
        seed: of the mixing.
        repeat: begin the text again when it ends; prompts always do.
        steps: optimizer steps.
        tokens_per_step: a step takes sequences until they have this many tokens.
        loss: `kl`, to the model's final distribution, or `cross_entropy` with the token that follows.
        optimizer: `sgd` or `adam`.
        learning_rate: at its highest; null: 1.0 for sgd, 1e-3 for adam.
        momentum: of sgd; the first beta of adam.
        weight_decay: pulls translators to the identity.
        warmup_steps: null: none for sgd, a fifth of the steps for adam.
        clip: largest norm of a layer's gradient.
        layers: the layers that get a translator, as in `LogitLensConfig`; `*`: all but the last, which needs none.
        bias_only: train no matrices.
        batch_tokens: tokens in a forward pass at most.
        checkpoint_every: steps after which training can go on after a crash.
        evaluate_tokens: how many of the tokens that come next in the text both lenses are measured on; 0: none.
        affine: maps that are fitted by least squares to the same text, each by itself (Ghandeharioun et al. 2024):
            `off`, none; `last`, from each layer to the model's last; `pairs`, from each to each, whose size grows with
            the square of the number of layers.
        affine_layers: the layers that `affine` is about, as in `LogitLensConfig`; the last one always is.
        affine_tokens: tokens that they are fitted to at most; the first of each sequence does not count, for its state
            is often hundreds of times as long as all others and would decide the squares.
        affine_ridge: weight of the penalty on their size.
        depends_on: file or folder whose content the stage depends on: the source, `tokens/prompts`, or this project's
            own marker file where there is none or it is on the hub.
    """

    section: ClassVar[str] = "tune"
    kind: str = chosen("off", "off", "prompts", "text", "lens")
    train: bool = True
    source: str | None = None
    name: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    sequence_length: int = bounded(256, 3, LARGEST_COUNT)
    shuffle_buffer: int = bounded(0, 0, LARGEST_COUNT)
    seed: int = bounded(0, 0, LARGEST_SEED)
    repeat: bool = True
    steps: int = bounded(30, 1, LARGEST_COUNT)
    tokens_per_step: int = bounded(2048, 1, LARGEST_COUNT)
    loss: str = chosen("kl", "kl", "cross_entropy")
    optimizer: str = chosen("sgd", "sgd", "adam")
    learning_rate: float | None = bounded(None, 0, 1_000_000, above=True)
    momentum: float = bounded(0.9, 0, 1, below=True)
    weight_decay: float = bounded(1e-3, 0, 1_000_000)
    warmup_steps: int | None = bounded(None, 0, LARGEST_COUNT)
    clip: float = bounded(1.0, 0, 1e30, above=True)
    layers: str = "*"
    bias_only: bool = False
    batch_tokens: int = bounded(4096, 1, LARGEST_COUNT)
    checkpoint_every: int = bounded(5, 1, LARGEST_COUNT)
    evaluate_tokens: int = bounded(2048, 0, LARGEST_COUNT)
    affine: str = chosen("off", "off", "last", "pairs")
    affine_layers: str = "*"
    affine_tokens: int = bounded(65536, 1, LARGEST_COUNT)
    affine_ridge: float = bounded(0.0, 0, 1e30)
    depends_on: str | None = None

    @property
    def has_text(self) -> bool:
        """Whether there is something to train on and to fit to."""
        return self.kind in ("prompts", "text")

    @property
    def has_lens(self) -> bool:
        """Whether there is a tuned lens in the end."""
        return self.kind == "lens" or (self.has_text and self.train)


def tuned_layers(text: str, num_layers: int) -> list[int]:
    """The layers that get a translator: `*` is all but the last.

    Arguments:
        text: `*`, a range, a list.
        num_layers: of the model.

    Raises:
        InterpError: it cannot be read, or the model has no such layers.
    """
    return list(range(num_layers - 1)) if text.strip() == "*" else parse_layers(text, num_layers)
