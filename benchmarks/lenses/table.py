"""The figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lenses.measure import MEMORY_SOURCES, OURS

__all__ = ["growth_table", "works_table"]

# What is asked for: times nnterp's speed, and the share of the floor.
ASKED: dict[tuple[str, int], tuple[float, float | None]] = {
    ("patchscope", 18): (25, 0.7),
    ("patchscope", 80): (100, 0.6),
    ("patchscope_end_to_end", 18): (9, 0.7),
    ("patchscope_end_to_end", 80): (35, 0.6),
    ("logit_lens", 0): (2, 0.6),
    ("collect", 0): (1.8, 0.8),
    ("few_shot", 0): (3, 0.6),
    ("generate", 18): (5, None),
}
ASKED_MEMORY = 20.0
_TOOLS = ("nnterp", "nnsight", "transformers", "transformer_lens")
_HEAD = (
    "work", "against nnterp", "nnsight", "transformers", "TransformerLens",
    "share of the floor", "of the faster library's", "asked", "",
)  # fmt: skip


def works_table(works: Sequence[dict[str, Any]]) -> str:
    """A line for each work: how many times as fast we are, our share of the floor, and what is asked."""
    lines = [_line(work) for work in works]
    lines += [_memory_line(work) for work in works if (work["kind"], work["sources"]) == ("logit_lens", MEMORY_SOURCES)]
    return _aligned([_HEAD, *lines])


def growth_table(growth: Sequence[dict[str, Any]]) -> str:
    """How cost grows."""
    rows = [("how cost grows", "ratio", "asked", "")]
    for line in growth:
        limit = line["at_most"]
        asked = ("", "") if limit is None else (f"<= {limit}", _verdict(line["ratio"] <= limit))
        values = ", ".join(f"{value:.3g}" for value in line["values"])
        rows.append((f"{line['what']} ({values})", f"{line['ratio']:.2f}", *asked))
    return _aligned(rows)


def _line(work: dict[str, Any]) -> tuple[str, ...]:
    share, times = work["share_of_floor"], work["times"]
    ratio, floor = ASKED.get((work["kind"], work["target_length"]), (None, None))
    asked, verdict = "", ""
    if ratio is not None:
        asked = f">= {ratio:g}x" + (f", >= {floor}" if floor is not None else "")
        if share is not None and "nnterp" in times:
            verdict = _verdict(times["nnterp"] >= ratio and (floor is None or share >= floor))
    return (
        work["name"], *(f"{times[tool]:.1f}x" if tool in times else "-" for tool in _TOOLS),
        *("-" if one is None else f"{one:.2f}" for one in (share, work["share_of_fastest"])), asked, verdict,
    )  # fmt: skip


def _memory_line(work: dict[str, Any]) -> tuple[str, ...]:
    peaks = {tool: cost["peak_bytes"] for tool, cost in work["tools"].items() if cost["peak_bytes"]}
    ours = peaks.get(OURS)
    times = {tool: peak / ours for tool, peak in peaks.items()} if ours else {}
    verdict = _verdict(times["nnterp"] >= ASKED_MEMORY) if "nnterp" in times else ""
    amount = "not measured" if ours is None else f"{ours / 1e6:.0f} MB"
    return (
        f"logit lens, peak memory ({amount}), {work['sources']} sources",
        *(f"{times[tool]:.1f}x" if tool in times else "-" for tool in _TOOLS),
        "", "", f">= {ASKED_MEMORY:g}x", verdict,
    )  # fmt: skip


def _verdict(reached: bool) -> str:
    return "reached" if reached else "SHORT"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(" |") for row in rows
    ]
    return "\n".join([lines[0], "-|-".join("-" * width for width in widths), *lines[1:]])
