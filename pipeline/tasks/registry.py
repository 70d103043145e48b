"""From a task's config to its prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.artifacts.tokens import TaskData
from pipeline.config.task import AttributeExtractionConfig, ClozeConfig, NextTokenConfig, TaskConfig, TranslationConfig
from pipeline.tasks.attribute_extraction import make_attribute_extraction
from pipeline.tasks.build import odd_prompts
from pipeline.tasks.cloze import make_cloze
from pipeline.tasks.next_token import make_next_token
from pipeline.tasks.translation import make_translation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["make"]


def make(config: TaskConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
    """Make the prompts, targets, pairs and labels of a task.

    Arguments:
        config: the task.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Raises:
        InterpError: whatever keeps the task from being made; see the function of each task.
    """
    match config:
        case TranslationConfig():
            data = make_translation(config, tokenizer, context_length)
        case ClozeConfig():
            data = make_cloze(config, tokenizer, context_length)
        case NextTokenConfig():
            data = make_next_token(config, tokenizer, context_length)
        case AttributeExtractionConfig():
            data = make_attribute_extraction(config, tokenizer, context_length)
    return replace(data, notes=(*data.notes, *odd_prompts(data, tokenizer)))
