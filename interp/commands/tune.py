"""`python -m interp tune` trains a tuned lens; `python -m interp tuned-eval` measures one beside the logit lens."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.lenses.tuned import LensEvaluation, TextSource, TuningSettings, TuningStep
    from interp.model import StandardizedTransformer

__all__ = ["add_commands"]

CHECKPOINT_FILE = "checkpoint.safetensors"
Command = Callable[[argparse.Namespace], int]


def add_commands(commands: Any) -> dict[str, Command]:
    """Declare both commands; returns what runs each, by name."""
    tune = commands.add_parser("tune", help="train a tuned lens of a model", description=_tune.__doc__)
    _add_model(tune)
    _add_text(tune)
    tune.add_argument("--output", required=True, type=Path, help="folder of the lens, and of its checkpoints")
    training = tune.add_argument_group("training")
    training.add_argument("--steps", type=int, default=250, help="optimizer steps (%(default)s)")
    training.add_argument("--tokens-per-step", type=int, default=1 << 15, help="(%(default)s)")
    training.add_argument("--loss", choices=("kl", "cross_entropy"), default="kl", help="(%(default)s)")
    training.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd", help="(%(default)s)")
    training.add_argument("--learning-rate", type=float, help="at its highest (1.0 for sgd, 1e-3 for adam)")
    training.add_argument("--momentum", type=float, default=0.9, help="(%(default)s)")
    training.add_argument("--weight-decay", type=float, default=1e-3, help="pulls to the identity (%(default)s)")
    training.add_argument("--warmup-steps", type=int, help="(0 for sgd, a fifth of the steps for adam)")
    training.add_argument("--clip", type=float, default=1.0, help="largest norm of a layer's gradient (%(default)s)")
    training.add_argument("--layers", help="which, e.g. 0-5,8 (all but the last)")
    training.add_argument("--bias-only", action="store_true", help="train no matrices")
    training.add_argument("--repeat", action="store_true", help="begin the text again when it ends")
    training.add_argument("--checkpoint-every", type=int, default=25, metavar="STEPS", help="(%(default)s)")
    training.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on from the output's checkpoint (yes)"
    )
    evaluate = commands.add_parser(
        "tuned-eval", help="measure a tuned lens beside the logit lens", description=_evaluate.__doc__
    )
    _add_model(evaluate)
    evaluate.add_argument("lens", type=Path, metavar="LENS", help="a folder, ours or of the tuned-lens library")
    _add_text(evaluate)
    evaluate.add_argument("--max-tokens", type=int, help="stop after this many (the end of the text)")
    evaluate.add_argument("--no-check", action="store_true", help="take a lens of another unembedding all the same")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    return {"tune": _saying(_tune), "tuned-eval": _saying(_evaluate)}


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a local folder or a hub id")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; the checkpoint's own where not given")
    parser.add_argument("--device-map", help="accelerate's placement, e.g. auto or cuda:0")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the hub repository carries")


def _add_text(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("text")
    text.add_argument("--text", required=True, help="a .jsonl, .json, .txt, .parquet or .csv file, or a hub data set")
    text.add_argument("--text-name", help="configuration of a hub data set")
    text.add_argument("--text-revision", help="branch, tag or commit of a hub data set")
    text.add_argument("--split", default="train", help="of a hub data set (%(default)s)")
    text.add_argument("--column", default="text", help="where the text is (%(default)s)")
    text.add_argument("--shuffle-buffer", type=int, default=0, help="documents that are mixed at a time (%(default)s)")
    text.add_argument("--seed", type=int, default=0, help="of the mixing (%(default)s)")
    text.add_argument("--sequence-length", type=int, default=2048, help="tokens (%(default)s)")
    text.add_argument("--batch-tokens", type=int, default=1 << 12, help="tokens in a forward pass (%(default)s)")


def _saying(command: Command) -> Command:
    """Errors that a user can mend are one message, and exit status 1."""

    def run(given: argparse.Namespace) -> int:
        try:
            return command(given)
        except InterpError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return run


def _tune(given: argparse.Namespace) -> int:
    """Train a tuned lens (Belrose et al. 2023) and print the loss of each layer after each step, in bits per byte.

    A run that was killed goes on where it was when the same command is given again.
    """
    from interp.lenses.tuned import PackedText, TunedLens, train_tuned_lens
    from interp.lenses.tuned.lens import CONFIG_FILE, WEIGHTS_FILE

    checkpoint = given.output / CHECKPOINT_FILE
    if not given.resume:
        for path in (checkpoint, given.output / CONFIG_FILE, given.output / WEIGHTS_FILE):
            path.unlink(missing_ok=True)
    settings = _settings(given)
    model = _model(given)
    stream = PackedText(model.tokenizer, _source(given), sequence_length=given.sequence_length, repeat=given.repeat)
    if (given.output / CONFIG_FILE).exists():
        return _finished(given, TunedLens.load(given.output, model), settings, stream.describe())
    if checkpoint.exists():
        print(f"found a checkpoint: {checkpoint}")
    lens = train_tuned_lens(
        model,
        stream,
        settings,
        checkpoint=checkpoint,
        checkpoint_every=given.checkpoint_every,
        progress=_Table(settings.loss),
    )
    lens.save(given.output)
    checkpoint.unlink()
    print(f"wrote the lens to {given.output}; measure it:")
    print(f"  python -m interp tuned-eval {shlex.quote(given.model)} {shlex.quote(str(given.output))} --text HELD_OUT")
    return 0


def _finished(given: argparse.Namespace, lens: Any, settings: TuningSettings, text: dict[str, Any]) -> int:
    """The output holds a lens: it is the one that is asked for, or an error."""
    from interp.lenses.tuned.training import differences, identity_of

    own = identity_of(settings, lens.layers, text)
    kept = {name: value for name, value in (lens.training_record or {}).items() if name in own}
    if kept != own:
        raise InterpError(
            f"{given.output} holds a lens of another training: {differences(kept, own) or 'not known which'}. Give "
            "another --output, or --no-resume to train anew over it."
        )
    print(f"{given.output} holds this lens already; --no-resume trains it anew")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    """Measure a tuned lens and the logit lens on text: cross-entropy, KL to the model's own prediction, and more."""
    from interp.lenses.tuned import PackedText, TunedLens, evaluate_tuned_lens, load_public
    from interp.lenses.tuned.public import WEIGHTS_FILE

    model = _model(given)
    load = load_public if (given.lens / WEIGHTS_FILE).exists() else TunedLens.load
    lens = load(given.lens, model, check=not given.no_check)
    text = PackedText(model.tokenizer, _source(given), sequence_length=given.sequence_length)
    result = evaluate_tuned_lens(model, lens, text, max_tokens=given.max_tokens, batch_tokens=given.batch_tokens)
    print(json.dumps(result.to_dict(), indent=2) if given.json else _comparison(result))
    return 0


def _model(given: argparse.Namespace) -> StandardizedTransformer:
    from transformers.utils.logging import disable_progress_bar

    from interp.model import StandardizedTransformer

    disable_progress_bar()
    return StandardizedTransformer(
        given.model,
        dtype=given.dtype,
        device_map=given.device_map,
        revision=given.revision,
        trust_remote_code=given.trust_remote_code,
    )


def _source(given: argparse.Namespace) -> TextSource:
    from interp.lenses.tuned import TextSource

    return TextSource(
        given.text,
        name=given.text_name,
        split=given.split,
        column=given.column,
        revision=given.text_revision,
        shuffle_buffer=given.shuffle_buffer,
        seed=given.seed,
    )


def _settings(given: argparse.Namespace) -> TuningSettings:
    from interp.lenses.tuned import TuningSettings

    return TuningSettings(
        steps=given.steps,
        tokens_per_step=given.tokens_per_step,
        loss=given.loss,
        optimizer=given.optimizer,
        learning_rate=given.learning_rate,
        momentum=given.momentum,
        weight_decay=given.weight_decay,
        warmup_steps=given.warmup_steps,
        clip=given.clip,
        layers=None if given.layers is None else _layers(given.layers),
        bias_only=given.bias_only,
        batch_tokens=given.batch_tokens,
    )


def _layers(text: str) -> tuple[int, ...]:
    """`0-5,8` as numbers."""
    try:
        ends = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError as error:
        raise InterpError(f"--layers: expected numbers and ranges such as 0-5,8, got {text!r}.") from error
    return tuple(layer for part in ends for layer in range(part[0], part[-1] + 1))


class _Table:
    """Prints a line a step, and the head before the first."""

    def __init__(self, loss: str) -> None:
        self._loss, self._begun = loss, False

    def __call__(self, told: TuningStep) -> None:
        if not self._begun:
            print(f"{self._loss} by layer, in bits per byte of text")
            print(f"{'step':>11} {'rate':>8} " + " ".join(f"{layer:>7}" for layer in told.bits_per_byte))
            self._begun = True
        values = told.bits_per_byte if not any(map(math.isnan, told.bits_per_byte.values())) else told.loss
        numbers = " ".join(f"{value:7.4f}" for value in values.values())
        print(f"{f'{told.step}/{told.steps}':>11} {told.learning_rate:8.2g} {numbers}", flush=True)


def _comparison(result: LensEvaluation) -> str:
    """Both lenses side by side, a line a layer."""
    names = ("cross_entropy", "bits_per_byte", "kl", "entropy", "agreement")
    titles = ("cross-entropy", "bits per byte", "KL", "entropy", "agreement")
    lines = [
        f"{result.tokens} tokens, {result.num_bytes} bytes of text; nats a token but for bits per byte; "
        "logit lens | tuned lens",
        "layer " + " ".join(f"{title:>17}" for title in titles),
    ]
    for index, layer in enumerate(result.layers):
        pairs = [getattr(result, name)[:, index] for name in names]
        lines.append(f"{layer:>5} " + " ".join(f"{logit:7.3f} | {tuned:7.3f}" for logit, tuned in pairs))
    return "\n".join(lines)
