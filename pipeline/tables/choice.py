"""Which published data sets there are, and what a task takes of one. Imports nothing: a config is read everywhere."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ASKED", "FORMATS", "STARTS", "Choice"]

# Format -> (its name for people, its keys).
FORMATS: dict[str, tuple[str, str]] = {
    "relations": ("the relations data set", "prompt_templates and samples of subject and object"),
    "function_vectors": ("function vectors", "input and output"),
    "known": ("known facts (ROME)", "subject, attribute, template and prompt"),
    "counterfact": ("CounterFact", "requested_rewrite"),
    "ravel": ("RAVEL", "values by attribute by entity, and prompts with %s by attribute"),
    "pararel": ("ParaRel", "pattern with [X] and [Y], and sub_label and obj_label"),
    "lama": ("LAMA", "sub_label, obj_label and masked_sentences or evidences"),
    "translation_prompts": ("translation prompts (Dumas et al.)", "prompt, target and word original, by word"),
    "patchscopes": (
        "Patchscopes, attribute extraction",
        "prompt_source, position_source, prompt_target, subject and object",
    ),
}
# Column of a prompt -> the column that says where its subject, or its placeholder, begins.
STARTS = {"prompt": "subject_start", "prompt_source": "source_subject_start", "prompt_target": "placeholder_start"}
ASKED = "asked_start"  # where a prompt begins after its solved examples: what they hold is no subject of it


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken of a data set.

    Arguments:
        format: one of `FORMATS`; `auto`: by the keys; `table`: none, the columns are read as they are.
        template: number of a template, from 0; `all`; or a text with `{}` for the subject; None: the first one.
        relations: names of the relations (RAVEL: attributes) to keep; none: all.
        shots: solved examples before each prompt, of the same relation and template.
        seed: of their choice.
        placeholder: what `prompt_target` asks about.
    """

    format: str = "auto"
    template: str | None = None
    relations: tuple[str, ...] = ()
    shots: int = 0
    seed: int = 0
    placeholder: str = "x"
