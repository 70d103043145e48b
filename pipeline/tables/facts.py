"""Describe published data sets: their formats, their facts and templates, and the part of them that a task takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.tables.json_rows import listed_in
from pipeline.tables.table import Cell, Note, Table, TableError

__all__ = [
    "ASKED",
    "FORMATS",
    "STARTS",
    "Choice",
    "Found",
    "Sample",
    "Slot",
    "first",
    "joined",
    "of_object",
    "of_rows",
    "slot_of",
]


QUESTION = "Q: {}\nA:"  # as function vectors are asked for in the paper
MASK = "[MASK]"
REWRITE = "requested_rewrite."  # how a table names what is inside it
SPLITS = ("train", "val", "test")  # RAVEL, by entity or by prompt


class Slot(NamedTuple):
    """A template: what stands before its subject, and what stands between that and the answer.

    Arguments:
        before, after: the two texts.
        whole: the template, where it goes on in words after the answer, which are cut off; else nothing.
    """

    before: str
    after: str
    whole: str = ""

    def filled(self, subject: str) -> str:
        return self.before + subject + self.after


@dataclass(frozen=True, slots=True)
class Sample:
    """One fact.

    Arguments:
        relation: what it is a fact of.
        subject: whom it is about.
        answers: the accepted answers, a cell.
        place: where it stands in its file, for messages (`line 7`).
        own: further columns, as the file has them.
        prompt: the prompt that the file itself gives for it, with the first character of its subject where known.
        slot: the template that the file itself gives for it alone.
        whole: that prompt, where it goes on in words after the answer, which are cut off; else nothing.
        surface: how the file's own prompt names the subject, where it is another way.
    """

    relation: str
    subject: str
    answers: Cell
    place: str
    own: Mapping[str, Cell] = field(default_factory=dict)
    prompt: tuple[str, int | None] | None = None
    slot: Slot | None = None
    surface: str | None = None
    whole: str = ""


@dataclass(slots=True)
class Found:
    """What a file, or a folder of files, holds.

    Arguments:
        format: a key of `FORMATS`.
        samples: the facts.
        templates: relation -> its templates; None for one that asks for the answer before it names the subject.
        zero_shot: those that are meant for prompts without examples, where the file has some of its own.
        separator: what stands between two examples.
        notes: what was left out.
    """

    format: str
    samples: list[Sample] = field(default_factory=list)
    templates: dict[str, list[Slot | None]] = field(default_factory=dict)
    zero_shot: dict[str, list[Slot | None]] = field(default_factory=dict)
    separator: str = "\n"
    notes: list[Note] = field(default_factory=list)

    def inside(self, file: Path) -> Found:
        """The same, of a file in a folder: its samples say in which."""
        self.samples = [replace(sample, place=f"{file}, {sample.place}") for sample in self.samples]
        return self


def of_object(content: Mapping[str, Any], path: str) -> Found | None:
    """What one JSON object holds; None where its keys are of no format. Templates and facts may be in several files."""
    values = list(content.values())
    if {"prompt_templates", "samples"} <= set(content):
        return _relation(content, path)
    if values and all(isinstance(value, dict) for value in values):
        if all({"prompt", "target", "word original"} <= set(value) for value in values):
            return _translation_prompts(content)
        if all(set(value) == {"split", "entity"} for value in values):
            return Found("ravel")  # sentences of Wikipedia, which ask for nothing
        if all(isinstance(cell, str | None) for value in values for cell in value.values()):
            return _entities(content)
    if values and all(isinstance(value, list) and value and all("%s" in str(t) for t in value) for value in values):
        slots = {name: [slot_of(str(text), "%s") for text in texts] for name, texts in content.items()}
        return Found("ravel", templates=slots)
    if values and all(isinstance(value, str) and value in SPLITS for value in values):
        return Found("ravel")
    return None


def of_rows(table: Table) -> Found | None:
    """What rows hold, by their columns; None where these are of no format."""
    columns, stem = set(table.columns), _stem(table.path)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    placed = [(row, table.place(number)) for number, row in enumerate(rows)]
    if {"prompt_templates", "samples"} <= columns:
        return joined([_relation(row, table.path) for row in rows], table.path)
    if columns == {"input", "output"}:
        samples = [Sample(stem, _string(row["input"]), row["output"], place, row) for row, place in placed]
        return Found("function_vectors", samples, {stem: [slot_of(QUESTION)]}, separator="\n\n")
    if {"subject", "attribute", "template", "prompt"} <= columns:
        return Found("known", [_known(row, place) for row, place in placed])
    if {REWRITE + "prompt", REWRITE + "subject", REWRITE + "target_true.str"} <= columns:
        return Found("counterfact", [_rewrite(row, place) for row, place in placed])
    if "pattern" in columns and all("[X]" in str(row["pattern"]) for row in rows):
        slots = [slot_of(str(row["pattern"]), "[X]") for row in rows]
        return Found("pararel", templates={stem: slots})
    if {"relation", "template"} <= columns and all("[X]" in str(row["template"]) for row in rows):
        named = {str(row["relation"]): [slot_of(str(row["template"]), "[X]")] for row in rows}
        return Found("lama", templates=named)
    if "obj_label" in columns and columns & {"sub_label", "masked_sentences", "evidences"}:
        masked = bool(columns & {"masked_sentences", "evidences", "predicate_id"})
        return Found("lama" if masked else "pararel", [_masked(row, place, stem) for row, place in placed])
    return None


def joined(parts: Sequence[Found], path: str) -> Found:
    """One data set from its files.

    Raises:
        TableError: they are of different formats.
    """
    formats = {part.format for part in parts}
    if formats == {"lama", "pararel"}:  # ParaRel's patterns ask for LAMA's facts
        formats = {"pararel"}
    if len(formats) > 1:
        names = ", ".join(sorted(FORMATS[name][0] for name in formats))
        raise TableError(f"{path} holds files of different formats: {names}. Name one file, or a folder of one format.")
    whole = Found(formats.pop(), separator=parts[0].separator)
    for part in parts:
        whole.samples += part.samples
        for own, others in ((whole.templates, part.templates), (whole.zero_shot, part.zero_shot)):
            for name, slots in others.items():
                own.setdefault(name, []).extend(slots)
        whole.notes += part.notes
    return whole


def slot_of(template: str, mark: str = "{}") -> Slot | None:
    """A template at its one mark; None where the answer stands before the subject.

    Raises:
        TableError: it has none, or several.
    """
    if template.count(mark) != 1:
        raise TableError(f"expected one {mark} for the subject in the template {template!r}.")
    before, after = template.split(mark)
    if mark != "[X]":
        return Slot(before, after)
    asked, _, cut = after.partition("[Y]")
    return None if "[Y]" in before else Slot(before, asked.rstrip(), template if _says(cut) else "")


def _relation(content: Mapping[str, Any], path: str) -> Found:
    name = str(content.get("name") or _stem(path))
    samples = []
    for number, row in enumerate(content["samples"] or (), 1):
        if not isinstance(row, dict) or not {"subject", "object"} <= set(row):
            raise TableError(f"{path}, sample {number}: expected subject and object, got {row!r:.80}.")
        samples.append(Sample(name, _string(row["subject"]), row["object"], f"sample {number}", row))
    few_shot, zero_shot = (
        [slot_of(str(text)) for text in content.get(key) or ()] for key in ("prompt_templates", "prompt_templates_zs")
    )
    return Found("relations", samples, {name: few_shot}, {name: zero_shot})


def _known(row: Mapping[str, Cell], place: str) -> Sample:
    """A fact with a prompt of its own, which may go on after the template."""
    subject, prompt, template = (_string(row[key]) for key in ("subject", "prompt", "template"))
    slot = slot_of(template) if template.count("{}") == 1 else None
    start = len(slot.before) if slot and prompt.startswith(slot.before + subject) else None
    own = (prompt, start) if prompt and subject else None
    return Sample(str(row.get("relation_id") or "known"), subject, row["attribute"], place, row, own, slot)


def _rewrite(row: Mapping[str, Cell], place: str) -> Sample:
    subject, template = _string(row[REWRITE + "subject"]), _string(row[REWRITE + "prompt"])
    slot = slot_of(template) if template.count("{}") == 1 else None
    own = (slot.filled(subject), len(slot.before)) if slot and subject else None
    relation = str(row.get(REWRITE + "relation_id") or "counterfact")
    kept = {**row, "target_new": row.get(REWRITE + "target_new.str")}
    return Sample(relation, subject, row[REWRITE + "target_true.str"], place, kept, own, slot)


def _masked(row: Mapping[str, Cell], place: str, stem: str) -> Sample:
    """A fact of LAMA or ParaRel, with its sentence up to the mask where it has one."""
    evidence = next((one for one in row.get("evidences") or () if isinstance(one, dict)), {})
    sentence = _string(evidence.get("masked_sentence")) or " ".join(map(str, row.get("masked_sentences") or ()))
    before, mask, cut = sentence.partition(MASK)
    own = (before.rstrip(), None) if mask and before.strip() else None
    kept = {key: value for key, value in row.items() if not isinstance(value, list)}
    relation = str(row.get("predicate_id") or row.get("pred") or stem)
    surface = _string(evidence.get("sub_surface")) or None
    return Sample(relation, _string(row.get("sub_label")), row["obj_label"], place, kept, own, surface=surface,
                  whole=sentence if own and _says(cut) else "")  # fmt: skip


def _entities(content: Mapping[str, Mapping[str, Cell]]) -> Found:
    """RAVEL's values; facts without a value are left out."""
    facts = [(entity, name, value) for entity, values in content.items() for name, value in values.items()]
    samples = [Sample(name, entity, value, f"entity {entity!r}") for entity, name, value in facts if value]
    return Found("ravel", samples, notes=[Note("values that are missing", len(facts) - len(samples))])


def _translation_prompts(content: Mapping[str, Mapping[str, Cell]]) -> Found:
    samples = []
    for words, row in content.items():
        place = f"key {words!r:.60}"
        prompt, word = _string(row["prompt"]), _string(first(listed_in(words, place) or words))
        at = prompt.rfind(word)
        samples.append(Sample("translation", word, _answers(row["target"], place), place,
                              {key: row[key] for key in row if key not in ("prompt", "target")},
                              (prompt, at if at >= 0 else None)))  # fmt: skip
    return Found("translation_prompts", samples)


def _answers(cell: Cell, place: str) -> Cell:
    listed = listed_in(cell, place) if isinstance(cell, str) else None
    return cell if listed is None else listed


def _says(text: str) -> bool:
    """Whether a text has words, and not punctuation alone."""
    return any(map(str.isalnum, text))


def _string(cell: Cell) -> str:
    return cell if isinstance(cell, str) else ""


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


def first(cell: Cell) -> Cell:
    """The best of the answers in a cell; None where there is none."""
    return (cell[0] if cell else None) if isinstance(cell, list) else cell


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
