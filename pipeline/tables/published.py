"""The field's own data sets, read as they are shipped, and known by their keys.

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
| `patchscopes` | `prompt_source`, `prompt_target`, `subject`, `object` | Ghandeharioun et al. 2024, arXiv 2401.06102 |

Each becomes rows with the same columns beside its own: `prompt` with the subject and the solved examples asked for,
`prompt_source` without those, `subject`, `target` (also `object`), `relation`, `template`, and `prompt_target`, the
template asked of a placeholder. Where the places of subject and placeholder are known, `subject_start`,
`source_subject_start` and `placeholder_start` hold their first characters. CounterFact has `target_new` too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import nearest
from pipeline.tables.facts import FORMATS, Found, Sample, Slot, first, joined, of_object, of_rows, slot_of
from pipeline.tables.json_rows import Literal
from pipeline.tables.literals import listed
from pipeline.tables.table import Cell, Note, Table, TableError

__all__ = ["FORMATS", "Choice", "known_formats", "made", "recognised_object", "recognised_rows", "unknown_keys"]


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
    _check_format(found, choice, path, content)
    return None if found is None else made([found], path, choice, "JSON")


def recognised_rows(table: Table, choice: Choice) -> Table | None:
    """Read rows (JSON list, JSON lines, CSV, TSV, parquet) as a published data set; else as `recognised_object`."""
    if choice.format == "table":
        return None
    if {"prompt_source", "prompt_target", "subject", "object"} <= set(table.columns):
        _check_format(Found("patchscopes"), choice, table.path, table.columns)
        return _patchscopes(table)
    found = of_rows(table)
    _check_format(found, choice, table.path, table.columns)
    return None if found is None else made([found], table.path, choice, table.written).noted(*table.notes)


def _check_format(found: Found | None, choice: Choice, path: str, keys: Iterable[str]) -> None:
    if choice.format not in ("auto", "table") and (found is None or found.format != choice.format):
        name, expected = FORMATS[choice.format]
        came = f"the keys of {FORMATS[found.format][0]}" if found else _listed_keys(keys)
        raise TableError(f"{path}: expected {name} with the keys {expected}, got {came}.")


def known_formats() -> str:
    """The formats and their keys, in a sentence."""
    return "; ".join(f"{name} ({keys})" for name, keys in FORMATS.values())


def unknown_keys(path: str, keys: Iterable[str]) -> TableError:
    """The error for a file that is neither a list of rows nor of a known format."""
    return TableError(
        f"{path} has the keys {_listed_keys(keys)}, which no known format has. Expected a list of objects, one a row, "
        f"or one of these: {known_formats()}."
    )


def _listed_keys(keys: Iterable[str]) -> str:
    listed_keys = list(keys)
    return ", ".join(map(repr, listed_keys[:8])) + (", ..." if len(listed_keys) > 8 else "") or "none"


def made(parts: Sequence[Found], path: str, choice: Choice, written: str) -> Table:
    """The rows of a data set.

    Raises:
        TableError: it has no facts, or nothing of what the choice names.
    """
    found = joined(parts, path)
    name = FORMATS[found.format][0]
    known = list(dict.fromkeys(sample.relation for sample in found.samples))
    if not known:
        raise TableError(
            f"{path} is {name}, and names no subjects. Name the file that does, or a folder that holds both."
        )
    for relation in choice.relations:
        if relation not in known:
            raise TableError(f"{path} is {name}, and has no relation {relation!r}.{nearest(relation, known)}")
    wanted = list(choice.relations) or [name for name in known if _askable(found, name, choice)] or known
    unasked = 0 if choice.relations else len(known) - len(wanted)
    records, lines, skipped = [], [], 0
    for relation in wanted:
        samples = [sample for sample in found.samples if sample.relation == relation]
        for number, slot in _chosen(found, relation, choice, path):
            for sample in samples:
                record = _record(sample, number, slot, samples, found, choice)
                skipped += record is None
                if record is not None:
                    records.append(record)
                    lines.append(sample.line)
    slots = [slot for kind in (found.templates, found.zero_shot) for name in wanted for slot in kind.get(name, ())]
    counted = [_counted(len(wanted), "relation"), *([_counted(len(slots), "template")] if slots else [])]
    counted.append(_counted(sum(sample.relation in wanted for sample in found.samples), "sample"))
    table = Table.from_records(path, records, lines, f"{name}, {written}: {', '.join(counted)}")
    return table.noted(
        *found.notes,
        Note("relations without a template left out", unasked),
        Note("samples without a prompt left out", skipped),
    )


def _slots(found: Found, relation: str, choice: Choice) -> list[Slot | None]:
    """The templates of a relation; a data set with some for prompts without examples has them used there."""
    few_shot = found.templates.get(relation, [])
    return few_shot if choice.shots else found.zero_shot.get(relation) or few_shot


def _own_prompts(found: Found, relation: str) -> bool:
    return any(sample.prompt is not None for sample in found.samples if sample.relation == relation)


def _askable(found: Found, relation: str, choice: Choice) -> bool:
    named = choice.template is not None and choice.template != "all" and not choice.template.isdecimal()
    return named or any(_slots(found, relation, choice)) or _own_prompts(found, relation)


def _chosen(found: Found, relation: str, choice: Choice, path: str) -> list[tuple[str, Slot | None]]:
    """(name, template) of the templates that are asked for; no template where the file's own prompts are taken."""
    slots = _slots(found, relation, choice)
    usable: list[tuple[str, Slot | None]] = [
        (str(number), slot) for number, slot in enumerate(slots) if slot is not None
    ]
    known = ", ".join(number for number, _ in usable) or "none"
    if choice.template is None or choice.template == "all":
        if not usable and not _own_prompts(found, relation):
            what = "in each the answer stands before the subject" if slots else "there is none"
            raise TableError(
                f"{path}: no template of the relation {relation!r} can be asked: {what}. Give one, such as "
                "task.template='The capital of {} is', or name the folder that holds its templates."
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
    sample: Sample, number: str, slot: Slot | None, others: Sequence[Sample], found: Found, choice: Choice
) -> dict[str, Cell] | None:
    """The columns of one row; None where there is no prompt for it."""
    asked = _asked(sample, slot)
    if asked is None:
        return None
    prompt, start = asked
    shown = "".join(
        f"{text[0]} {first(other.answers)}{found.separator}"
        for other in _shots(sample, others, choice)
        if (text := _asked(other, slot))
    )
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
    if start is not None:
        record |= {"subject_start": Literal(len(shown) + start), "source_subject_start": Literal(start)}
    if template is not None:
        record |= {"prompt_target": template.filled(choice.placeholder)}
        record |= {"placeholder_start": Literal(len(template.before))}
    return record


def _asked(sample: Sample, slot: Slot | None) -> tuple[str, int | None] | None:
    """The prompt about a sample, and where its subject begins; None where there is none."""
    if slot is None:
        return sample.prompt
    return (slot.filled(sample.subject), len(slot.before)) if sample.subject else None


def _shots(sample: Sample, others: Sequence[Sample], choice: Choice) -> list[Sample]:
    """The solved examples of one row: seed, relation and subject alone decide which."""
    if not choice.shots:
        return []
    pool = [one for one in others if one.subject != sample.subject and one.subject and first(one.answers)]
    if len(pool) < choice.shots:
        raise TableError(
            f"expected at least {choice.shots} other samples of the relation {sample.relation!r} for task.shots="
            f"{choice.shots}, it has {len(pool)}. Lower task.shots."
        )
    return random.Random(f"{choice.seed} {sample.relation} {sample.subject}").sample(pool, choice.shots)


def _patchscopes(table: Table) -> Table:
    """The table with the subject's place, where its tokens up to there are given (`source_cropped_toks`)."""
    prompts, subjects = table.index("prompt_source"), table.index("subject")
    starts: list[Cell] = []
    for row in table.rows:
        tokens = listed(str(row[table.index("source_cropped_toks")])) if "source_cropped_toks" in table.columns else ()
        cropped = "".join(tokens) if isinstance(tokens, list) else ""
        marked = cropped.endswith(str(row[subjects])) and str(row[prompts]).startswith(cropped)
        starts.append(Literal(len(cropped) - len(str(row[subjects]))) if row[subjects] and marked else None)
    rows = [(*row, start) for row, start in zip(table.rows, starts, strict=True)]
    name = FORMATS["patchscopes"][0]
    return Table(table.path, (*table.columns, "source_subject_start"), rows, table.lines, f"{name}, {table.written}",
                 table.typed, table.notes)  # fmt: skip


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
