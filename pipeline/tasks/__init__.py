"""Make the prompts, targets and labels of an experiment's task, and register the kinds of tasks.

A task is a subclass of `pipeline.config.task.TaskConfig`, known as soon as its module is imported; those of this
project are imported here. None of it needs torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.artifacts.tokens import TaskData
from pipeline.config.task import TaskConfig
from pipeline.tasks import attribute_extraction, cloze, image_prompts, next_token, translation  # noqa: F401 that they are known
from pipeline.tasks.build import odd_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.tasks.image_prompts import ImageEncoder

__all__ = ["make"]


def make(
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int | None,
    encoder: ImageEncoder | None = None,
) -> TaskData:
    """Make the prompts, targets, pairs and labels of a task, and note what is odd about them.

    Arguments:
        config: the task.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.
        encoder: of the model, for a task whose prompts have images.

    Raises:
        InterpError: whatever keeps the task from being made; see the function of each task.
    """
    images = {"encoder": encoder} if config.sees else {}
    data = config.make(tokenizer, context_length, **images)
    return replace(data, notes=(*data.notes, *odd_prompts(data, tokenizer)))
