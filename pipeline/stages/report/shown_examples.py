"""Show single examples: their prompts, their answers, and the tokens or texts that a lens read in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from interp.plots import Curves, Group, Series
from interp.prompts.patchscopes import identity_prompt
from interp.text import readable, visible
from pipeline.metrics import METRICS
from pipeline.stages.report.pictures import pictures_of
from pipeline.stages.report.source import Cell, Example, Source, Text, chosen
from pipeline.stages.report.words import spelled_block

__all__ = ["block_examples", "grid_examples", "text_examples", "text_grid_examples", "token_examples"]

GRID_LAYERS = 16  # source and target layers whose tokens are shown at most
TEXT_LAYERS = 8  # and whose texts are


def token_examples(source: Source) -> list[Example]:
    """The top tokens of each layer."""
    shown = []
    for example, record, shared in _shown(source):
        ids = source.store.read("top_ids", example=example)  # (layer, top)
        log_probs = source.store.read("top_log_prob", example=example)
        rows = [
            (layer, _cells(source, record, ids[index], log_probs[index], [f"layer {layer}"] * ids.shape[1]))
            for index, layer in enumerate(source.store.attributes["layers"])
        ]
        columns = [f"top {place}" for place in range(1, ids.shape[1] + 1)]
        curves = _own_curves(source, example, source.groups) if shared["pictures"] else None
        shown.append(Example(**shared, columns=columns, rows=rows[::-1], curves=curves))
    return shown


def block_examples(source: Source) -> list[Example]:
    """The top token of each window of layers and each block."""
    blocks: list[str] = source.store.attributes["blocks"]
    shown = []
    for example, record, shared in _shown(source):
        ids = source.store.read("top_ids", example=example, top=0)  # (layer, block)
        log_probs = source.store.read("top_log_prob", example=example, top=0)
        rows = [
            (layer, _cells(source, record, ids[index], log_probs[index],
                           [f"layer {layer}, without {readable(block)}" for block in blocks]))
            for index, layer in enumerate(source.store.attributes["layers"])
        ]  # fmt: skip
        columns = [f"without {readable(block)}" for block in blocks]
        groups = [Group(block, f"without {spelled_block(block)}", color) for color, block in enumerate(blocks)]
        curves = _own_curves(source, example, groups, of=source.groups[:1]) if shared["pictures"] else None
        shown.append(Example(**shared, corner="From layer", columns=columns, rows=rows[::-1], curves=curves))
    return shown


def _own_curves(source: Source, example: int, groups: Sequence[Group], of: Sequence[Group] = ()) -> Curves | None:
    """The probability of its answers by layer in one example, or of one answer by what is blocked.

    Arguments:
        source: the lens.
        example: its number.
        groups: what the curves are of, along the last axis that is left.
        of: the answer, where that axis is blocks.
    """
    if not source.groups:
        return None
    values = np.exp(source.store.read("log_prob", example=example))  # (layer, group) or (layer, block, group)
    values = values[..., 0] if of else values
    layers: list[int] = source.store.attributes["layers"]
    nothing = [math.nan] * len(layers)
    series = [
        Series(group, layers, values[:, place].tolist(), nothing, nothing, [1] * len(layers))
        for place, group in enumerate(groups)
        if np.isfinite(values[:, place]).any()
    ]
    if not series:
        return None
    return source.panel(METRICS["probability"], series, of=of[0] if of else None)


def grid_examples(source: Source) -> list[Example]:
    """The top token of each source and target layer, of some layers where there are many."""
    sources, targets = source.store.attributes["source_layers"], source.store.attributes["target_layers"]
    kept_sources, kept_targets = chosen(len(sources), GRID_LAYERS), chosen(len(targets), GRID_LAYERS)
    shown = []
    for example, record, shared in _shown(source):
        ids = source.store.read("top_ids", example=example, top=0)  # (source layer, target layer)
        log_probs = source.store.read("top_log_prob", example=example, top=0)
        rows = [
            (sources[at], _cells(source, record, ids[at, kept_targets], log_probs[at, kept_targets],
                                 [f"source layer {sources[at]} into layer {targets[to]}" for to in kept_targets]))
            for at in kept_sources
        ]  # fmt: skip
        columns = [f"into {targets[to]}" for to in kept_targets]
        shown.append(Example(**shared, corner="from", columns=columns, rows=rows[::-1]))
    return shown


def text_examples(source: Source) -> list[Example]:
    """What was generated at each layer."""
    shown = []
    for example, _, shared in _shown(source):
        found = source.store.read("answer_found", example=example)  # (layer, group)
        counts = source.store.read("num_tokens", example=example)
        written = source.store.attributes["texts"][example]
        texts = [
            _text(source, layer, written[index], counts[index], found[index])
            for index, layer in enumerate(source.store.attributes["layers"])
        ]
        shown.append(Example(**shared, texts=texts[::-1]))
    return shown


def text_grid_examples(source: Source) -> list[Example]:
    """What was generated from each source layer in each target layer, of some layers where there are many."""
    sources, targets = source.store.attributes["source_layers"], source.store.attributes["target_layers"]
    kept_sources, kept_targets = chosen(len(sources), TEXT_LAYERS), chosen(len(targets), TEXT_LAYERS)
    shown = []
    for example, _, shared in _shown(source):
        found = source.store.read("answer_found", example=example)  # (source layer, target layer, group)
        counts = source.store.read("num_tokens", example=example)
        written = source.store.attributes["texts"][example]
        rows = [
            (sources[at], [_text(source, targets[to], written[at][to], counts[at, to], found[at, to])
                           for to in kept_targets])
            for at in kept_sources
        ]  # fmt: skip
        columns = [f"into {targets[to]}" for to in kept_targets]
        shown.append(Example(**shared, corner="Source", columns=columns, text_rows=rows[::-1]))
    return shown


def _text(source: Source, layer: int, text: str, num_tokens: int, found: np.ndarray) -> Text:
    groups = [group for group, hit in zip(source.groups, found, strict=True) if hit == 1]
    return Text(layer=layer, text=readable(text), num_tokens=int(num_tokens), groups=groups)


def _shown(source: Source) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """The examples that are shown: number, record of `tokens/`, and what all kinds say of them."""
    on_pairs = source.unit == "pairs"
    rows = source.store.static("row")
    for example in chosen(len(rows), source.num_examples):
        row = int(rows[example])
        record: Any = source.tokens.pairs[row] if on_pairs else source.tokens.prompts[row]
        pictures = [] if on_pairs else pictures_of(record)
        labels = {name.replace("_", " "): value for name, value in record.labels.items() if name != "collides"}
        yield (
            example,
            record,
            {
                "title": f"{'Pair' if on_pairs else 'Prompt'} {row}",
                "labels": {readable(name): readable(value) for name, value in labels.items()},
                "prompts": _prompts_of(source, row, on_pairs),
                "pictures": pictures,
                "more_pictures": 0 if on_pairs else len(record.images) - len(pictures),
                "answers": [
                    (group, [readable(word) for word in record.words.get(group.key, ())]) for group in source.groups
                ],
            },
        )


def _prompts_of(source: Source, row: int, on_pairs: bool) -> list[tuple[str, str]]:
    tokens, config = source.tokens, source.config
    if not on_pairs:
        prompts = [("Source prompt" if config.patches else "Prompt", tokens.prompts[row].prompt)]
    else:
        pair = tokens.pairs[row]
        mean = config.patches and config.sources == "mean"
        sources = list(pair.sources) if mean else list(pair.sources)[:1]
        prompts = []
        for number, prompt in enumerate(sources, start=1):
            which = f" {number} of {len(sources)}" if len(sources) > 1 else ""
            prompts.append((f"Source prompt{which}", tokens.prompts[prompt].prompt))
        prompts.append(("Target prompt", tokens.targets[pair.target].prompt))
    if config.patches and config.target == "identity":
        prompts.append(("Target prompt (identity)", identity_prompt(config.target_prompt)))
    return [(caption, readable(text)) for caption, text in prompts]


def _cells(source: Source, record: Any, ids: np.ndarray, log_probs: np.ndarray, places: Sequence[str]) -> list[Cell]:
    """One row of tokens."""
    vocabulary = source.store.attributes["vocabulary"]
    return [
        Cell(
            text=visible(vocabulary.get(str(token), "")) or "∅",
            token_id=token,
            probability=math.exp(log_prob),
            log_prob=log_prob,
            groups=[group for group in source.groups if token in record.answers.get(group.key, ())],
            place=place,
        )
        for token, log_prob, place in zip(ids.tolist(), log_probs.tolist(), places, strict=True)
    ]
