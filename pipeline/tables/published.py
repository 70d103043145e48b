"""Read the field's own data sets as they are shipped, recognised by their keys.

| format | keys | paper |
|---|---|---|
| `relations` | `prompt_templates`, `samples` of `subject`, `object` | Hernandez et al. 2024, arXiv 2308.09124 |
| `function_vectors` | `input`, `output` and no other | Todd et al. 2024, arXiv 2310.15213 |
| `known` | `subject`, `attribute`, `template`, `prompt` | Meng et al. 2022, arXiv 2202.05262 |
| `counterfact` | `requested_rewrite` | Meng et al. 2022, arXiv 2202.05262 |
| `ravel` | entity -> attribute -> value; attribute -> prompts with `%s` | Huang et al. 2024, arXiv 2402.17700 |
| `pararel` | `pattern` with `[X]`, `[Y]`; `sub_label`, `obj_label` | Elazar et al. 2021, arXiv 2102.01017 |
| `lama` | `sub_label`, `obj_label`, `masked_sentences` or `evidences`; `relation`, `template` | Petroni et al. 2019 |
| `translation_prompts` | `prompt`, `target`, `word original` by word | Dumas et al. 2025, arXiv 2411.08745 |
| `patchscopes` | `prompt_source`, `position_source`, `prompt_target`, `subject` | Ghandeharioun et al. 2024 |

Each becomes rows with the same columns beside its own: `prompt` with the subject and the solved examples asked for,
`prompt_source` without those, `subject`, `target` (also `object`), `relation`, `template`, and `prompt_target`, the
template asked of a placeholder. Where the places of subject and placeholder are known, `subject_start`,
`source_subject_start` and `placeholder_start` hold their first characters; `asked_start` is where a prompt begins after
its examples. CounterFact has `target_new` too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from interp.errors import nearest
from pipeline.tables.facts import (
    ASKED,
    FORMATS,
    STARTS,
    Choice,
    Found,
    Sample,
    Slot,
    first,
    of_object,
    of_rows,
    slot_of,
)
from pipeline.tables.json_rows import Literal, listed_in
from pipeline.tables.table import Cell, Note, Table, TableError

__all__ = ["check_format", "check_rows", "formats_hint", "made", "recognised_object", "recognised_rows", "unknown_keys"]


def recognised_object(content: Mapping[str, Any], path: str, choice: Choice) -> Table | None:
    """Read a JSON file that holds one object as a published data set.

    Arguments:
        content: the object, as of `parse_json`.
        path: the file, for messages.
        choice: what is taken of it.

    Returns:
        Its rows; None where its keys are of no known format, or none is asked for.

    Raises:
        TableError: the content is not what its keys promise, or lacks what the choice names.
    """
    found = None if choice.format == "table" else of_object(content, path)
    check_format(found, choice, path, content)
    return None if found is None else made(found, path, choice, "JSON")


def recognised_rows(table: Table, choice: Choice) -> Table | None:
    """Read rows (JSON list, JSON lines, CSV, TSV, parquet) as a published data set; else as `recognised_object`."""
    if choice.format == "table":
        return None
    if {"prompt_source", "position_source", "prompt_target", "subject", "object"} <= set(table.columns):
        check_format(Found("patchscopes"), choice, table.path, table.columns)
        check_rows(table.path, choice)
        return _patchscopes(table)
    found = of_rows(table)
    check_format(found, choice, table.path, table.columns)
    if found is None:
        return None
    rows = made(found, table.path, choice, table.written)
    return replace(rows, typed=table.typed, notes=(*table.notes, *rows.notes))


def check_format(found: Found | None, choice: Choice, path: str, keys: Iterable[str]) -> None:
    """Raise `TableError` where a format is asked for, and another or none was found."""
    if choice.format not in ("auto", "table") and (found is None or found.format != choice.format):
        name, expected = FORMATS[choice.format]
        came = f"the keys of {FORMATS[found.format][0]}" if found else _listed_keys(keys)
        raise TableError(f"{path}: expected {name} with the keys {expected}, got {came}.")


def check_rows(path: str, choice: Choice) -> None:
    """Raise `TableError` where rows that are read as they are come with a choice that only a data set can meet."""
    asked = {"prompt_template": choice.template, "relations": choice.relations, "shots": choice.shots}
    named = [f"task.{name}" for name, value in asked.items() if value]
    if named:
        raise TableError(
            f"{path} is read as rows, which have neither templates nor relations, and {' and '.join(named)} asks for "
            f"some. Leave {'it' if len(named) == 1 else 'them'} out."
        )


def formats_hint(table: Table) -> str:
    """What to say of a column that rows in JSON lack, for they may be somebody's data set: which ones are known."""
    if not table.written.startswith("JSON"):
        return ""
    return f" Its keys are of no published data set that is known: {', '.join(name for name, _ in FORMATS.values())}."


def unknown_keys(path: str, keys: Iterable[str]) -> TableError:
    """The error for a file that is neither a list of rows nor of a known format."""
    known = "; ".join(f"{name} ({expected})" for name, expected in FORMATS.values())
    return TableError(
        f"{path} has the keys {_listed_keys(keys)}, which no known format has. Expected a list of objects, one a row, "
        f"or one of these: {known}."
    )


def _listed_keys(keys: Iterable[str]) -> str:
    listed_keys = list(keys)
    return ", ".join(map(repr, listed_keys[:8])) + (", ..." if len(listed_keys) > 8 else "") or "none"


def made(found: Found, path: str, choice: Choice, written: str) -> Table:
    """The rows of a data set.

    Raises:
        TableError: it has no facts, or nothing of what the choice names.
    """
    name = FORMATS[found.format][0]
    facts: dict[str, list[Sample]] = {}  # by relation
    for sample in found.samples:
        facts.setdefault(sample.relation, []).append(sample)
    known = list(facts)
    if not known:
        raise TableError(
            f"{path} is {name}, and names no subjects. Name the file that does, or a folder that holds both."
        )
    for relation in choice.relations:
        if relation not in known:
            raise TableError(f"{path} is {name}, and has no relation {relation!r}.{nearest(relation, known)}")
    wanted = list(choice.relations) or [name for name in known if _askable(found, name, facts[name], choice)] or known
    unasked = 0 if choice.relations else len(known) - len(wanted)
    records, lines, skipped = [], [], 0
    cut: list[str] = []
    for relation in wanted:
        for number, slot in _chosen(found, relation, facts[relation], choice, path):
            cut += [f"{relation}: {slot.whole!r}"] if slot and slot.whole else []
            examples = _Examples(facts[relation], slot, found.separator, choice)
            for sample in facts[relation]:
                record = _record(sample, number, slot, examples, choice)
                skipped += record is None
                if record is not None:
                    records.append(record)
                    lines.append(sample.place)
                    cut += [f"{sample.place}: {sample.whole!r:.90}"] if sample.whole and not slot else []
    slots = [slot for kind in (found.templates, found.zero_shot) for name in wanted for slot in kind.get(name, ())]
    counted = [_counted(len(wanted), "relation"), *([_counted(len(slots), "template")] if slots else [])]
    counted.append(_counted(sum(len(facts[relation]) for relation in wanted), "sample"))
    table = Table.from_records(path, records, lines, f"{name}, {written}: {', '.join(counted)}")
    return table.noted(
        *found.notes,
        Note("templates in which the answer stands before the subject, left out", slots.count(None)),
        Note("templates and prompts whose words after the answer are cut off", len(cut), tuple(cut[:3])),
        Note("relations without a template, left out", unasked),
        Note("samples without a prompt, left out", skipped),
    )


def _slots(found: Found, relation: str, choice: Choice) -> list[Slot | None]:
    """The templates of a relation; a data set with some for prompts without examples has them used there."""
    few_shot = found.templates.get(relation, [])
    return few_shot if choice.shots else found.zero_shot.get(relation) or few_shot


def _own_prompts(samples: Sequence[Sample]) -> bool:
    return any(sample.prompt is not None for sample in samples)


def _askable(found: Found, relation: str, samples: Sequence[Sample], choice: Choice) -> bool:
    named = choice.template is not None and choice.template != "all" and not choice.template.isdecimal()
    return named or any(_slots(found, relation, choice)) or _own_prompts(samples)


def _chosen(
    found: Found, relation: str, samples: Sequence[Sample], choice: Choice, path: str
) -> list[tuple[str, Slot | None]]:
    """(name, template) of the templates that are asked for; no template where the file's own prompts are taken."""
    slots = _slots(found, relation, choice)
    usable: list[tuple[str, Slot | None]] = [
        (str(number), slot) for number, slot in enumerate(slots) if slot is not None
    ]
    known = ", ".join(number for number, _ in usable) or "none"
    if choice.template is None or choice.template == "all":
        if not usable and not _own_prompts(samples):
            what = "in each the answer stands before the subject" if slots else "there is none"
            raise TableError(
                f"{path}: no template of the relation {relation!r} can be asked: {what}. Give one, such as "
                "task.prompt_template='The capital of {} is', or name the folder that holds its templates."
            )
        return (usable if choice.template else usable[:1]) or [("", None)]
    if choice.template.isdecimal():
        if choice.template not in dict(usable):
            raise TableError(
                f"{path}: no template {choice.template} of the relation {relation!r} can be asked. It has {known}."
            )
        return [(choice.template, dict(usable)[choice.template])]
    return [(choice.template, slot_of(choice.template, "{}"))]


def _record(
    sample: Sample, number: str, slot: Slot | None, examples: _Examples, choice: Choice
) -> dict[str, Cell] | None:
    """The columns of one row; None where there is no prompt for it."""
    asked = _asked(sample, slot)
    if asked is None:
        return None
    prompt, start = asked
    shown = examples.before(sample)
    template = slot or sample.slot
    record: dict[str, Cell] = {
        **sample.own,
        "prompt": shown + prompt,
        "prompt_source": prompt,
        "subject": sample.subject if slot else sample.surface or sample.subject,
        "target": sample.answers,
        "object": sample.answers,
        "relation": sample.relation,
        "template": number or sample.own.get("template"),
    }
    if shown:
        record[ASKED] = Literal(len(shown))
    if start is not None:
        record |= {STARTS["prompt"]: Literal(len(shown) + start), STARTS["prompt_source"]: Literal(start)}
    if template is not None:
        record |= {"prompt_target": template.filled(choice.placeholder)}
        record |= {STARTS["prompt_target"]: Literal(len(template.before))}
    return record


def _asked(sample: Sample, slot: Slot | None) -> tuple[str, int | None] | None:
    """The prompt about a sample, and where its subject begins; None where there is none."""
    if slot is None:
        return sample.prompt
    return (slot.filled(sample.subject), len(slot.before)) if sample.subject else None


class _Examples:
    """The solved examples of one relation."""

    def __init__(self, samples: Sequence[Sample], slot: Slot | None, separator: str, choice: Choice) -> None:
        self._shots, self._seed = choice.shots, choice.seed
        self._solved: list[tuple[str, str]] = []  # (subject, the solved line)
        for sample in samples if choice.shots else ():
            asked, answer = _asked(sample, slot), first(sample.answers)
            if asked is not None and answer:
                self._solved.append((sample.subject, f"{asked[0]} {answer}{separator}"))
        self._times = Counter(subject for subject, _ in self._solved)

    def before(self, sample: Sample) -> str:
        """The examples before one prompt: seed, relation and subject decide which, and none is of that subject.

        Raises:
            TableError: there are too few.
        """
        if not self._shots:
            return ""
        others = len(self._solved) - self._times[sample.subject]
        if others < self._shots:
            raise TableError(
                f"expected at least {self._shots} other samples of the relation {sample.relation!r} for task.shots="
                f"{self._shots}, it has {others}. Lower task.shots."
            )
        draw = random.Random(f"{self._seed} {sample.relation} {sample.subject}")
        chosen: dict[int, str] = {}
        while len(chosen) < self._shots:  # as a sample without replacement, but without a list of the others
            number = draw.randrange(len(self._solved))
            subject, line = self._solved[number]
            if subject != sample.subject:
                chosen.setdefault(number, line)
        return "".join(chosen.values())


def _patchscopes(table: Table) -> Table:
    """The table with the subject's place, where its tokens up to there are given (`source_cropped_toks`)."""
    prompts, subjects = table.index("prompt_source"), table.index("subject")
    tokens = table.index("source_cropped_toks") if "source_cropped_toks" in table.columns else None
    starts: list[Cell] = []
    for number, row in enumerate(table.rows):
        prompt, subject = str(row[prompts] or ""), str(row[subjects] or "")
        given = None if tokens is None else row[tokens]
        cropped = "".join((listed_in(given, table.where(number)) if isinstance(given, str) else given) or ())
        known = bool(subject) and cropped.endswith(subject) and prompt.startswith(cropped)
        starts.append(Literal(len(cropped) - len(subject)) if known else None)
    return replace(
        table,
        columns=(*table.columns, STARTS["prompt_source"]),
        rows=[(*row, start) for row, start in zip(table.rows, starts, strict=True)],
        written=f"{FORMATS['patchscopes'][0]}, {table.written}",
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
