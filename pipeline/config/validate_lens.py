"""Rejects a lens that cannot run: its options against what is collected and what the task has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from interp.errors import InterpError
from interp.positions import Position
from interp.prompts.patchscopes import identity_prompt
from interp.sites import HIDDEN_KINDS, check_layers, layers_by_kind, parse_layers
from pipeline.config.base import ConfigError, nearest
from pipeline.config.blocks import check_blocks
from pipeline.config.collect import CollectConfig
from pipeline.config.lens import IntoTarget, KnockoutConfig, LensConfig, LogitLensConfig, TunedLensConfig
from pipeline.config.lens_reads import Reads, mapping_of, reads_of, target_layers_of
from pipeline.config.task import AttributeExtractionConfig, TaskConfig, TranslationConfig

__all__ = ["check_lens", "check_span", "close"]


def close(value: object, allowed: Iterable[str]) -> str:
    """` Did you mean 'NAME'?`, where an allowed name is near; else nothing."""
    sentence = nearest(str(value), allowed)
    return sentence if sentence.startswith(" Did") else ""


def check_span(where: str, text: str, span_name: str | None, kind: str, spans: Sequence[str]) -> None:
    """Raise where a position is in a span that the task does not mark.

    Arguments:
        where: key of the config, for messages.
        text: the position, as it is spelled.
        span_name: the span that it is in; None: in none.
        kind: of the task.
        spans: that the task marks.

    Raises:
        ConfigError: it does not mark it.
    """
    if span_name is not None and span_name not in spans:
        marked = f"marks {', '.join(spans)}" if spans else "marks none"
        positions = "collect=last, or positions" if where.startswith("collect.") else "positions"
        remedy = close(span_name, spans) if spans else f" Choose {positions} such as last, -2."
        raise ConfigError(f"{where}: {text!r} is in a span, and the task {kind} {marked}.{remedy}")


def check_lens(
    where: str,
    lens: LensConfig,
    collect: CollectConfig,
    task: TaskConfig,
    spans: Sequence[str],
    num_layers: int | None,
) -> None:
    """Check one lens against what is collected and what the task has.

    Arguments:
        where: key of the lens in the config, for messages.
        lens: its section.
        collect, task: their sections.
        spans: that the task marks.
        num_layers: of the model; None: not known yet.

    Raises:
        ConfigError: it cannot run.
    """
    reads = reads_of(lens)
    if reads is not None:
        _check_reads(where, reads, collect, num_layers)
    if isinstance(lens, IntoTarget):
        _check_target(where, lens, task, spans)
    _check_mapping(where, lens)
    target_layers = target_layers_of(lens)
    if target_layers is not None:
        _layers(f"{where}.target_layers", target_layers, num_layers)
        if getattr(lens, "patch", "one_layer") == "from_layer":
            raise ConfigError(
                f"{where}.patch: 'from_layer' writes each later layer's own activation, and target_layers writes one "
                "layer's into another. Choose one_layer, or target_layers: null."
            )
    if isinstance(lens, KnockoutConfig):
        _layers(f"{where}.layers", lens.layers, num_layers)
        _check_blocks(where, lens, task, spans)
        if lens.centred and lens.window is None:
            raise ConfigError(f"{where}.centred: a window up to the last layer has no middle. Set {where}.window too.")
    window = getattr(lens, "window", None)
    if num_layers is not None and window is not None and window > num_layers:
        raise ConfigError(f"{where}.window: expected at most {num_layers}, the layers of the model, got {window}.")


def _check_mapping(where: str, lens: LensConfig) -> None:
    """Whether a lens can put its states through its mapping."""
    mapping = mapping_of(lens)
    if isinstance(lens, TunedLensConfig) or mapping == "identity":
        return
    reads = reads_of(lens)
    if reads is not None and reads.site != "resid_post":
        raise ConfigError(
            f"{where}.mapping: {mapping!r} maps the residual stream after layers, and the lens reads {reads.site!r}. "
            "Choose identity, or site: resid_post."
        )
    if isinstance(lens, LogitLensConfig) and mapping != "affine_last":
        better = "lens=tuned_lens" if mapping == "tuned" else "identity or affine_last"
        raise ConfigError(
            f"{where}.mapping: expected identity or affine_last for kind logit_lens, got {mapping!r}. Choose {better}."
        )
    if mapping == "affine_target" and target_layers_of(lens) is None:
        raise ConfigError(
            f"{where}.mapping: 'affine_target' maps to the layer that is written, which is the source's own here: it "
            "would change nothing. Choose affine_last, or a lens with target_layers (lens=patchscope_grid)."
        )


def _check_blocks(where: str, lens: KnockoutConfig, task: TaskConfig, spans: Sequence[str]) -> None:
    """What a knock-out blocks, and from where."""
    try:
        blocks = check_blocks(lens.blocks)
    except InterpError as error:
        raise ConfigError(f"{where}.blocks: {error}") from None
    for block in blocks:
        check_span(f"{where}.blocks", block.text, block.span_name, task.kind, spans)
    position = _one_position(f"{where}.query_position", lens.query_position)
    check_span(f"{where}.query_position", position.text, position.span_name, task.kind, spans)


def _check_reads(where: str, reads: Reads, collect: CollectConfig, num_layers: int | None) -> None:
    """Whether all that a lens reads is collected."""
    collected = layers_by_kind(collect.sites, num_layers or 1000)  # the kinds are right whatever the depth
    option = f"{where}.{reads.site_option}" if reads.site_option else where
    if reads.site not in HIDDEN_KINDS:
        raise ConfigError(
            f"{option}: expected a kind of site that each layer has, got {reads.site!r}."
            f"{nearest(reads.site, HIDDEN_KINDS)} A lens reads hidden states (batch, position, hidden)."
        )
    if reads.site not in collected:
        raise ConfigError(
            f"{option}: {reads.site!r} is not among collect.sites ({', '.join(collect.sites)}). Add it "
            f"there: 'collect.sites=[{','.join([*collect.sites, f'{reads.site}.*'])}]'"
        )
    layers = _layers(f"{where}.{reads.layers_option}", reads.layers, num_layers)
    if layers is not None and num_layers is not None:
        needed = reads.needed(layers, num_layers)
        absent = [layer for layer in needed if layer not in collected[reads.site]]
        if absent:
            why = f"{reads.why}, and " if reads.why else ""
            raise ConfigError(
                f"{where}.{reads.layers_option}: {why}collect.sites ({', '.join(collect.sites)}) lacks {reads.site} of "
                f"layer {', '.join(map(str, absent))}. Collect it, or choose other layers."
            )
    _check_source_position(f"{where}.{reads.position_option}", reads.position, collect)


def _layers(where: str, text: str, num_layers: int | None) -> list[int] | None:
    """The layers that an option names; None where the model's depth is not known, and only the spelling is checked."""
    try:
        check_layers(text, num_layers)
    except InterpError as error:
        raise ConfigError(f"{where}: {error}") from None
    return None if num_layers is None else parse_layers(text, num_layers)


def _check_source_position(where: str, text: str, collect: CollectConfig) -> None:
    position = _one_position(where, text)
    if position not in [Position.parse(other) for other in collect.positions]:
        raise ConfigError(
            f"{where}: {text!r} is not among collect.positions ({', '.join(collect.positions)}). Add it there, "
            "or choose one of them."
        )


def _one_position(where: str, text: str) -> Position:
    try:
        position = Position.parse(text)
    except InterpError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not position.single:
        raise ConfigError(f"{where}: a lens reads one token of a prompt, and {text!r} can be several. Write e.g. last.")
    return position


def _has_targets(task: TaskConfig) -> bool:
    """Whether a task makes prompts to patch into."""
    if isinstance(task, TranslationConfig):
        return task.patch_into is not None
    return isinstance(task, AttributeExtractionConfig)


def _check_target(where: str, lens: IntoTarget, task: TaskConfig, spans: Sequence[str]) -> None:
    position = _one_position(f"{where}.target_position", lens.target_position)
    if lens.target == "task":
        if not _has_targets(task):
            has = "no task.patch_into" if isinstance(task, TranslationConfig) else f"task {task.kind}, which has none"
            raise ConfigError(
                f"{where}.target: 'task' patches into the task's own target prompts, and there is {has}. Set "
                "task.patch_into (translation), or choose lens=patchscope_identity or lens=logit_lens."
            )
        check_span(f"{where}.target_position", position.text, position.span_name, task.kind, spans)
    else:
        try:
            identity_prompt(lens.target_prompt)
        except InterpError as error:
            raise ConfigError(f"{where}.target_prompt: {error}") from None
        if position.span_name is not None:
            raise ConfigError(
                f"{where}.target_position: {position.text!r} is in a span, and an identity prompt marks none. "
                "Write e.g. last."
            )
    if lens.sources == "mean":
        if not isinstance(task, TranslationConfig):
            raise ConfigError(
                f"{where}.sources: 'mean' averages over task.source_languages, which the task {task.kind} has not. "
                "Choose first."
            )
        if len(task.source_languages) == 1:
            raise ConfigError(
                f"{where}.sources: the mean over one source language ({task.source_languages[0]}) is that language. "
                "Choose first, or add languages to task.source_languages."
            )
        if lens.target == "identity":
            raise ConfigError(
                f"{where}.sources: 'mean' averages over the prompts of a pair, and target: identity reads each prompt "
                "alone. Choose first, or target: task."
            )
