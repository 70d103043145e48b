"""CSV and TSV as their authors write them: each table is compared with what the bytes say, written out by hand."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.tables.reading import read_table
from pipeline.tables.table import Table, TableError


def read(folder: Path, name: str, content: str, **options: Any) -> Table:
    path = folder / name
    path.write_bytes(content.encode())
    return read_table(path, **options)


TWO = ("prompt", "target")


@pytest.mark.parametrize(
    ("name", "content", "columns", "rows", "lines", "written"),
    [
        ("a.csv", "prompt,target\r\na,b\r\n\r\nc,d", TWO, [("a", "b"), ("c", "d")], [2, 4], "CSV"),
        ("a.csv", "prompt,target\ra,b\rc,d\r", TWO, [("a", "b"), ("c", "d")], [2, 3], "CSV"),
        ("a.csv", 'prompt,target\r"a\nb",c\r', TWO, [("a\nb", "c")], [2], "CSV"),
        ("a.csv", '"SEP=;"\r\nprompt;target\r\na,b;c\r\n', TWO, [("a,b", "c")], [3], "CSV, separated by semicolons"),
        ("a.csv", 'prompt, target\n"a, b", "c"\n   \nd, "e ""f"""\n', TWO, [("a, b", "c"), ("d", 'e "f"')], [2, 4],
         "CSV"),
        ("a.csv", '"prompt, all",target\n"a", "b"\n', ("prompt, all", "target"), [("a", ' "b"')], [2], "CSV"),
        ("a.CSV", "prompt;target\na, b;1,5\n", TWO, [("a, b", "1,5")], [2], "CSV, separated by semicolons"),
        ("a.csv", "sep=|\nprompt|target\na;b|\n", TWO, [("a;b", None)], [3], "CSV, separated by vertical bars"),
        ("a.csv", "prompt, given;target\na;b\n", ("prompt, given", "target"), [("a", "b")], [2],
         "CSV, separated by semicolons"),
        ("a.tsv", "prompt\ttarget\na, b\t007\n", TWO, [("a, b", "007")], [2], "TSV"),
        ("a.csv", "# made by hand, 2024\n#\nprompt,target\n#a,NA\n", TWO, [("#a", "NA")], [4], "CSV"),
        ("a.csv", " prompt ,target\t\n a ,b\n", TWO, [(" a ", "b")], [2], "CSV"),
        ("a.csv", ",prompt,target,target\n0,a,b,c\n", ("", "prompt", "target", "target"), [("0", "a", "b", "c")], [2],
         "CSV"),
        ("a.csv", "prompt\na\u2028b\u0085c\x0bd\n", ("prompt",), [("a\u2028b\u0085c\x0bd",)], [2], "CSV"),
        ("a.csv", f"prompt,target\n{'x' * 200_000},b\n", TWO, [("x" * 200_000, "b")], [2], "CSV"),
    ],
)  # fmt: skip
def test_a_file_is_what_its_bytes_say(
    tmp_path: Path, name: str, content: str, columns: Any, rows: Any, lines: Any, written: str
) -> None:
    table = read(tmp_path, name, content)
    assert (table.columns, list(table.rows), list(table.lines), table.written) == (columns, rows, lines, written)


SPEECH = '"Oh, he began\tx\nthen he said "no"\ty\n"And left\tz\n'


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        # Quoted: the sign closes before a delimiter or the end of the line.
        ("a.csv", '"a, b","say ""no"""\n"",c\n', [("a, b", 'say "no"'), (None, "c")]),
        ("a.csv", '"two\r\nlines, here, and there",b\nc,d\n', [("two\r\nlines, here, and there", "b"), ("c", "d")]),
        ("a.csv", '"a\n\nb, c, d",e\n', [("a\n\nb, c, d", "e")]),
        # Text: direct speech, of which every row stays a row.
        ("a.tsv", SPEECH, [('"Oh, he began', "x"), ('then he said "no"', "y"), ('"And left', "z")]),
        ("a.csv", '"Hello,Paris\nnone,b\n"Bees,honey\n', [('"Hello', "Paris"), ("none", "b"), ('"Bees', "honey")]),
        ("a.csv", '5" of snow,b\n"the end,c\n', [('5" of snow', "b"), ('"the end', "c")]),
        ("a.tsv", '"Yes," she said\tb\n', [('"Yes," she said', "b")]),
        ("a.tsv", '""quoted twice"\tb\n', [('""quoted twice"', "b")]),
        # Both readings fit; the rest of the file says which.
        ("a.csv", '"a, b\nc",d\n"e ""f""",g\n', [("a, b\nc", "d"), ('e "f"', "g")]),
        ("a.tsv", '"a\tb\n\nc"\td\n"e\tf\n', [('"a', "b"), ('c"', "d"), ('"e', "f")]),
    ],
)  # fmt: skip
def test_quote_signs(tmp_path: Path, name: str, content: str, rows: Any) -> None:
    header = "prompt\ttarget\n" if name.endswith("tsv") else "prompt,target\n"
    table = read(tmp_path, name, header + content)
    assert list(table.rows) == rows
    joined = [note.count for note in table.notes if "of several lines" in note.what]
    assert joined == ([1] if any("\n" in (cell or "") for row in rows for cell in row) else [])
    opened = sum(cell.startswith('"') for row in rows for cell in row if cell)
    assert [note.count for note in table.notes if "begin with a quote sign" in note.what] == (
        [opened] if opened else []
    )


def test_where_a_file_does_not_say_whether_it_quotes_its_user_does(tmp_path: Path) -> None:
    content = 'prompt\ttarget\n"a\tb\nc"\td\n'
    with pytest.raises(TableError, match=r"a.tsv, line 2: cannot tell .* goes on to line 3, .* task.quoting=rfc4180"):
        read(tmp_path, "a.tsv", content)
    assert list(read(tmp_path, "a.tsv", content, quoting="rfc4180").rows) == [("a\tb\nc", "d")]
    assert list(read(tmp_path, "a.tsv", content, quoting="none").rows) == [('"a', "b"), ('c"', "d")]
    with pytest.raises(TableError, match=r"line 2: expected quoted cells by RFC 4180"):
        read(tmp_path, "a.csv", 'prompt,target\n"a,b\n', quoting="rfc4180")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "prompt,target\na,b\nc,d,\n",
            r"a.csv, line 3: expected 2 cells between commas, .* got 3: 'c,d,'. Remove",
        ),
        ("a.csv", "prompt\nHello, I am\n", "line 2: expected 1 cell between commas, .* got 2"),
        ("a.csv", "prompt,target\nHello, I am,x\n", "line 2: expected 2 cells .* got 3"),
        ("a.csv", "# x\n\nprompt,target\na\n", "line 4: expected 2 cells .* got 1"),
        ("a.tsv", "prompt\ttarget\na\tb\tc\n", "line 2: expected 2 cells between tabs, .* got 3"),
        ("a.csv", 'prompt,target\n"a,b",c,d\n', "line 2: expected 2 cells .* got 3"),
        ("a.csv", 'prompt,a,b\n"x,y",c\n', "line 2: expected 3 cells .* got 2"),  # not `"x`, `y"` and c
        ("a.csv", "prompt,target\n", "has no rows"),
        ("a.csv", "# nothing\n", "has no header, only lines that begin with #"),
        ("a.csv", "", "is empty"),
        ("a.csv", "\n\n", "is empty"),
    ],
)
def test_a_row_of_another_width_is_an_error_with_its_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read(tmp_path, name, content)


def test_a_missing_column_and_one_that_stands_twice(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", "#prompt,target\nx,x,y\na,b,c\n")
    assert table.index("y") == 2
    with pytest.raises(TableError, match=r"has no column 'prompt', .*1 comment lines on top left out"):
        table.index("prompt")
    with pytest.raises(TableError, match="has 2 columns 'x'"):
        table.index("x")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_a_csv_writer_writes_is_read_back(tmp_path: Path, delimiter: str) -> None:
    """The twin is the standard library's writer, on cells of all that needs quoting."""
    draw = random.Random(7)
    rows = [["".join(draw.choices('ab ,;\t"\n', k=draw.randint(1, 12))) for _ in range(3)] for _ in range(300)]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows([["one", "two", "three"], *rows])
    table = read(tmp_path, "a.tsv" if delimiter == "\t" else "a.csv", stream.getvalue(), quoting="rfc4180")
    assert [list(row) for row in table.rows] == rows
    assert list(read(tmp_path, f"a.{'tsv' if delimiter == chr(9) else 'csv'}", stream.getvalue()).rows) == table.rows
