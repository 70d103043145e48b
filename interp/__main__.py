"""`python -m interp COMMAND`: prove the names on models, list what is supported, train and measure tuned lenses."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import __main__ as tune
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer
    from interp.translators import LensEvaluation, TextSource, TuningSettings, TuningStep

__all__ = ["add_commands", "main"]


_VERDICTS = {True: "ok  ", False: "FAIL", None: "?   "}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 where a model could not be loaded or fails a proof."""
    parser = argparse.ArgumentParser(prog="python -m interp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="load models and print the table of proofs of each")
    check.add_argument("models", nargs="+", metavar="MODEL", help="a local folder or a hub id")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--no-attention", action="store_true", help="leave out q, k, v, scores and pattern")
    check.add_argument("--dtype", help="float32, bfloat16, float16; the checkpoint's own where not given")
    check.add_argument("--device-map", help="accelerate's placement, e.g. auto or cuda:0")
    check.add_argument("--revision", help="branch, tag or commit on the hub")
    check.add_argument("--trust-remote-code", action="store_true", help="run code that the hub repository carries")
    families = commands.add_parser("families", help="list the families that have a record, and those that are refused")
    families.add_argument("--json", action="store_true", help="print JSON")
    longer = tune.add_commands(commands)
    given = parser.parse_args(arguments)
    if given.command in longer:
        return longer[given.command](given)
    return _families(given.json) if given.command == "families" else _check(given)


def _check(given: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    reports = []
    for name in given.models:
        report = _report(name, given)
        reports.append(report)
        if not given.json:
            print(_text(report), flush=True)
    if given.json:
        print(json.dumps(reports, indent=2))
    return int(not all(report["holds"] for report in reports))


def _report(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The proofs of one model, or why it could not be loaded."""
    from interp.model import StandardizedTransformer
    from interp.model.verify import prove

    start = time.perf_counter()
    try:
        model = StandardizedTransformer(
            name,
            dtype=given.dtype,
            device_map=given.device_map,
            revision=given.revision,
            trust_remote_code=given.trust_remote_code,
            verify=False,
        )
        loaded = time.perf_counter()
        proofs = prove(model, attention=not given.no_attention)
    except InterpError as error:
        return {"model": name, "holds": False, "error": str(error), "proofs": []}
    return {
        "model": name,
        "class": type(model._module).__name__,
        "family": model.architecture.family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_layers": model.num_layers,
        "holds": all(proof.holds is not False for proof in proofs),
        "loading_seconds": round(loaded - start, 2),
        "proof_seconds": round(time.perf_counter() - loaded, 2),
        "proofs": [vars(proof) for proof in proofs],
    }


def _text(report: dict[str, Any]) -> str:
    if "error" in report:
        return f"{report['model']}\n  {report['error']}\n"
    head = (
        f"{report['model']}\n  {report['class']}, family {report['family']}, {report['num_layers']} layers, "
        f"{report['dtype']}; loaded in {report['loading_seconds']} s, proved in {report['proof_seconds']} s"
    )
    width = max(len(proof["identity"]) for proof in report["proofs"])
    rows = [
        f"  {_VERDICTS[proof['holds']]}  {proof['identity']:<{width}}  {proof['layers']:>3} layers  {_numbers(proof)}"
        for proof in report["proofs"]
    ]
    undecided = sum(proof["holds"] is None for proof in report["proofs"])
    holding = f"all others hold, {undecided} undecided" if undecided else "all hold"
    verdict = holding if report["holds"] else "the names do not mean what they say; give a RenameConfig"
    return "\n".join([head, *rows, f"  {verdict}", ""])


def _numbers(proof: dict[str, Any]) -> str:
    if proof["holds"] is None:
        return f"undecided: {proof['why']}"
    if proof["about"] == "write" and proof["identity"].startswith("an edit"):
        return f"moved by {proof['difference']:.2g}, rounding {proof['allowed']:.2g} (layer {proof['layer']})"
    return f"difference {proof['difference']:.2g}, allowed {proof['allowed']:.2g} (worst: layer {proof['layer']})"


def _families(as_json: bool) -> int:
    from interp.architectures import REFUSED
    from interp.architectures.find import described

    rows = described()
    if as_json:
        print(json.dumps({"supported": rows, "refused": REFUSED}, indent=2))
        return 0
    width = max(len(row["model_type"]) for row in rows)
    for row in rows:
        print(f"{row['model_type']:<{width}}  {row['how']}")
    print(
        f"\n{len(rows)} model types have a record. Any other whose layout is one of these is proved when it is loaded."
    )
    print("\nRefused:")
    for model_type, reason in sorted(REFUSED.items()):
        print(f"{model_type:<{width}}  {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())


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
    from interp.translators import PackedText, TunedLens, train_tuned_lens
    from interp.translators.layer_translators import CONFIG_FILE, WEIGHTS_FILE

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
    from interp.translators.training import differences, identity_of

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
    from interp.translators import PackedText, TunedLens, evaluate_tuned_lens, load_public
    from interp.translators.layer_translators import PUBLIC_WEIGHTS

    model = _model(given)
    load = load_public if (given.lens / PUBLIC_WEIGHTS).exists() else TunedLens.load
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
    from interp.translators import TextSource

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
    from interp.translators import TuningSettings

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
