"""Stage `tune`: train the run's tuned lens, or take one that exists, and fit its affine maps, into `tuned_lens/`.

    python -m pipeline.stages.tune        # in a run folder

Reads the sections `tune` and `model`, and `tokens/prompts` where the lens is trained on them. What was made is said by
`tuned_lens/manifest.json`; with tune=off that is all there is. A killed training goes on after the last checkpoint, a
killed fit of affine maps begins again; both to the same bytes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.sites import parse_layers
from pipeline.artifacts.tokens import load_prompts
from pipeline.config.model import ModelConfig
from pipeline.config.paths import located
from pipeline.config.section import load
from pipeline.config.translators import TuneConfig, tuned_layers
from pipeline.files import digest_of, publish, write_json
from pipeline.stages.common import code_digest, scratch, stage_main

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer
    from interp.translators import TokenSequence, TokenStream, TunedLens, TuningStep

FORMAT = "interpipe.tuned_lens/1"
ARTIFACT = "tuned_lens"
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.safetensors"
SECONDS_BETWEEN_LINES = 10
log = logging.getLogger("interpipe")


def run() -> dict[str, float]:
    """Make the tuned lens of the current run folder.

    Returns:
        `tokens` that the lens was trained on in this process, and `model_seconds` that it took.
    """
    config, model_config = load(TuneConfig), load(ModelConfig)
    manifest: dict[str, Any] = {"format": FORMAT, "kind": config.kind}
    if config.kind == "off":  # torch is not imported
        with scratch("tune", digest_of(manifest)) as folder:
            write_json(folder / ARTIFACT / MANIFEST, manifest)
            publish(folder / ARTIFACT, ARTIFACT)
        return {}
    from pipeline.stages.loading import load_model

    model = load_model(model_config)
    if config.kind == "lens":
        with scratch("tune", digest_of(asdict(config), asdict(model_config), code_digest("tune"))) as folder:
            _existing(config, model).save(folder / ARTIFACT)
            write_json(folder / ARTIFACT / MANIFEST, manifest)
            publish(folder / ARTIFACT, ARTIFACT)
        return {}
    return _made(config, model_config, model, manifest)


def _existing(config: TuneConfig, model: StandardizedTransformer) -> TunedLens:
    """A lens that exists, ours or of the tuned-lens library."""
    from interp.translators import TunedLens, load_public
    from interp.translators.layer_translators import PUBLIC_WEIGHTS

    assert config.source is not None  # it was validated
    folder = located(config.source)
    return load_public(folder, model) if (folder / PUBLIC_WEIGHTS).exists() else TunedLens.load(folder, model)


def _made(
    config: TuneConfig, model_config: ModelConfig, model: StandardizedTransformer, manifest: dict[str, Any]
) -> dict[str, float]:
    """A tuned lens, affine maps, or both, from prompts or text."""
    from interp.translators import train_tuned_lens

    stream = _stream(config, model, repeat=config.repeat or config.kind == "prompts")
    settings = _settings(config, model.num_layers)
    key = digest_of(
        asdict(settings), stream.describe(), config.train, config.evaluate_tokens, _affine_settings(config),
        asdict(model_config), model.digest(), code_digest("tune"),
    )  # fmt: skip
    source = config.source or "the run's prompts"
    told = _Told()
    tokens, started = 0, time.perf_counter()
    with scratch("tune", key) as folder:
        made = folder / ARTIFACT
        shutil.rmtree(made, ignore_errors=True)  # of a process that was killed here
        if config.train:
            log.info("%d steps of %d tokens on %s", config.steps, config.tokens_per_step, source)
            lens = train_tuned_lens(
                model,
                stream,
                settings,
                checkpoint=folder / CHECKPOINT,
                checkpoint_every=config.checkpoint_every,
                progress=told,
            )
            manifest = {**manifest, "evaluation": _evaluation(config, model, lens, stream)}
            lens.save(made)
        if config.affine != "off":
            log.info("affine maps (%s) of at most %d tokens of %s", config.affine, config.affine_tokens, source)
            made.mkdir(parents=True, exist_ok=True)
            affine = _affine(config, model, made)
            manifest, tokens = {**manifest, "affine": affine}, affine["tokens"]
        write_json(made / MANIFEST, manifest)
        for file in made.glob("*.safetensors"):
            shutil.copymode(made / MANIFEST, file)  # safetensors lets nobody else read what it writes
        publish(made, ARTIFACT)
    trained = told.steps * config.tokens_per_step
    return {"tokens": trained + tokens, "model_seconds": time.perf_counter() - started}


def _affine_settings(config: TuneConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key.startswith("affine")}


def _affine(config: TuneConfig, model: StandardizedTransformer, folder: Path) -> dict[str, Any]:
    """Fit affine maps into a folder; what the manifest says of them."""
    from pipeline.artifacts.affine_maps import AFFINE_FILE, fit_affine

    stream = _stream(config, model, repeat=False)
    described = stream.describe()
    maps, tokens = fit_affine(
        model,
        stream,
        layers=parse_layers(config.affine_layers, model.num_layers),
        pairs=config.affine == "pairs",
        max_tokens=config.affine_tokens,
        batch_tokens=config.batch_tokens,
        ridge=config.affine_ridge,
    )
    maps.save(folder / AFFINE_FILE)
    log.info("affine maps of layers %s fitted to %d tokens", list(maps.layers), tokens)
    return {
        "maps": config.affine,
        "layers": list(maps.layers),
        "tokens": tokens,
        "fitted_to": config.kind,
        "text": described,
        "ridge": config.affine_ridge,
        "model": model.digest(),
    }


def _stream(config: TuneConfig, model: StandardizedTransformer, *, repeat: bool) -> TokenStream:
    """What the lens is trained on, and maps are fitted to.

    Arguments:
        repeat: begin the text again when it ends.
    """
    from interp.translators import GivenSequences, PackedText, TextSource

    if config.kind == "prompts":
        prompts = [row.input_ids for row in load_prompts()]
        if not prompts:
            raise InterpError("tune: tokens/prompts holds no prompt to train on. Choose tune=text, or another task.")
        return GivenSequences.of(model.tokenizer, prompts, repeat=repeat)
    assert config.source is not None  # it was validated
    local = located(config.source)
    source = TextSource(
        str(local) if local.exists() else config.source,
        name=config.name,
        split=config.split,
        column=config.column,
        revision=config.revision,
        shuffle_buffer=config.shuffle_buffer,
        seed=config.seed,
    )
    return PackedText(model.tokenizer, source, sequence_length=config.sequence_length, repeat=repeat)


def _settings(config: TuneConfig, num_layers: int) -> Any:
    from interp.translators import TuningSettings

    return TuningSettings(
        steps=config.steps,
        tokens_per_step=config.tokens_per_step,
        loss=config.loss,  # type: ignore[arg-type]
        optimizer=config.optimizer,  # type: ignore[arg-type]
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        clip=config.clip,
        layers=tuple(tuned_layers(config.layers, num_layers)),
        bias_only=config.bias_only,
        batch_tokens=config.batch_tokens,
    )


def _evaluation(
    config: TuneConfig, model: StandardizedTransformer, lens: TunedLens, stream: TokenStream
) -> dict[str, Any] | None:
    """Both lenses on what comes next in the text: text that was not trained on, unless it repeats; None: nothing."""
    from interp.translators import evaluate_tuned_lens

    upcoming = _next(iter(stream)) if config.evaluate_tokens else None
    if upcoming is None:
        log.info("the lens is not measured: %s", "the text has ended" if config.evaluate_tokens else "as configured")
        return None
    seen = config.kind == "prompts" or config.repeat
    result = evaluate_tuned_lens(
        model, lens, upcoming, max_tokens=config.evaluate_tokens, batch_tokens=config.batch_tokens
    )
    for layer, (logit, tuned) in zip(result.layers, result.kl.T, strict=True):
        log.info(
            "layer %d: KL to the model %.4f nats with the logit lens, %.4f with the tuned lens", layer, logit, tuned
        )
    return {**result.to_dict(), "text_was_trained_on": seen}


def _next(stream: Iterator[TokenSequence]) -> Iterator[TokenSequence] | None:
    """The same stream; None where it is at its end."""
    first = next(stream, None)
    return None if first is None else chain([first], stream)


class _Told:
    """Says how the training goes, now and then; counts the steps of this process."""

    def __init__(self) -> None:
        self.steps, self._last = 0, 0.0

    def __call__(self, told: TuningStep) -> None:
        self.steps += 1
        if time.monotonic() - self._last < SECONDS_BETWEEN_LINES and told.step != told.steps:
            return
        self._last = time.monotonic()
        losses = ", ".join(f"{layer}: {value:.3f}" for layer, value in told.bits_per_byte.items())
        log.info("step %d of %d, loss by layer in bits per byte: %s", told.step, told.steps, losses)


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("tune", run)


if __name__ == "__main__":
    main()
