"""Attribute extraction (Ghandeharioun et al. 2024, arXiv 2401.06102): what does a model know of a subject, and where?

    The largest city of France attracts ...      a source prompt; `France` is the subject
    The official currency of x                   the prompt that it is patched into; `x` is its placeholder

What the model holds at the subject is written over the placeholder; a model that says `euro` then had the attribute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from pipeline.config.task import AttributeExtractionConfig
from pipeline.tasks.build import Answer, Answers, make_row
from pipeline.tasks.records import Pair, Row, TaskData
from pipeline.tasks.tables import Source, read_rows, text_of, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["make_attribute_extraction"]


def make_attribute_extraction(
    config: AttributeExtractionConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None
) -> TaskData:
    """One source prompt, one target prompt and one pair a row; rows with the same target prompt share it.

    Spans: `query`, the subject in a source prompt and the placeholder in a target prompt.

    Arguments:
        config: the task.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Returns:
        The prompts, targets and pairs, with the group `answer`. Rows whose attribute has no token are left out, and
        counted.

    Raises:
        ConfigError: the source cannot be read, or lacks a column.
        InterpError: a prompt without its subject, a target prompt without its placeholder, an empty cell, or no row is
            left; the message names the row, counted from 0.
    """
    columns = {
        "prompt_column": [config.prompt_column],
        "subject_column": [config.subject_column],
        "target_column": [config.target_column],
        "answer_column": [config.answer_column],
        "label_columns": config.label_columns,
    }
    rows, total = read_rows(Source(config.source), columns, config.max_prompts)
    answers = Answers(tokenizer, config.target_policy)
    prompts: list[Row] = []
    targets: dict[str, Row] = {}
    pairs: list[Pair] = []
    unanswered = 0
    for number, values in enumerate(rows):
        where = f"{config.source}, row {number}"
        answer = answers(words_of(values[config.answer_column], f"{where}, column {config.answer_column!r}"))
        if not answer.token_ids:
            unanswered += 1
            continue
        subject = text_of(values[config.subject_column], config.subject_column, where)
        labels = {"subject": subject} | _labels(config, values)
        prompt = text_of(values[config.prompt_column], config.prompt_column, where)
        target = text_of(values[config.target_column], config.target_column, where)
        made: dict[str, Any] = {"tokenizer": tokenizer, "context_length": context_length}
        query = _last(prompt, subject, f"{where}: the subject {subject!r}", config.prompt_column)
        prompts.append(
            make_row(**made, where=where, prompt=prompt, spans={"query": query}, labels=labels,
                     answers={"answer": answer})
        )  # fmt: skip
        if target not in targets:
            blank = _last(target, config.placeholder, f"{where}: the placeholder {config.placeholder!r}",
                          config.target_column)  # fmt: skip
            targets[target] = make_row(
                **made, where=where, prompt=target, spans={"query": blank}, labels={},
                answers={"answer": Answer(words=[], token_ids=[])},
            )  # fmt: skip
        pairs.append(
            Pair(
                sources=[len(prompts) - 1],
                target=list(targets).index(target),
                labels=labels,
                answers={"answer": answer.token_ids},
                words={"answer": answer.words},
            )
        )
    if not pairs:
        raise InterpError(
            f"{config.source}: expected rows whose attribute (column {config.answer_column!r}) has a token by "
            f"task.target_policy={config.target_policy}, got none in {len(rows)} rows. Choose another policy or column."
        )
    counts = {
        "rows": total,
        "rows_over_limit": total - len(rows),
        "rows_without_answer_tokens": unanswered,
        "prompts": len(prompts),
        "targets": len(targets),
        "pairs": len(pairs),
        "words_without_tokens": len(answers.unusable),
    }
    return TaskData(prompts, list(targets.values()), pairs, counts, {"answer": config.answer_column})


def _labels(config: AttributeExtractionConfig, values: Mapping[str, Any]) -> dict[str, str]:
    return {column: "" if values[column] is None else str(values[column]) for column in config.label_columns}


def _last(text: str, word: str, what: str, column: str) -> tuple[int, int]:
    """The characters of a word's last occurrence as a word of its own."""
    found = [*re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if not found:
        raise InterpError(f"{what} is no word of {text!r} (column {column!r}). Mend the row, or name another column.")
    return found[-1].span()
