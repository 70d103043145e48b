"""Encodings, compression, JSON and parquet: what is read is what the bytes say."""

from __future__ import annotations

import codecs
import datetime
import decimal
import gc
import gzip
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.tables import reading as source
from pipeline.tables.json_rows import Literal, parse_json
from pipeline.tables.reading import read_source, read_table
from pipeline.tables.table import Table, TableError

CSV = "prompt,target\nLe café,\u65e5\u672c\n"
LINES = '{"prompt": "Le café", "target": "\u65e5\u672c"}\n'


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("encoding", "mark", "setting"),
    [
        ("utf-8", b"", "auto"), ("utf-8", codecs.BOM_UTF8, "auto"), ("utf-16-le", codecs.BOM_UTF16_LE, "auto"),
        ("utf-16-be", codecs.BOM_UTF16_BE, "auto"), ("utf-32-le", codecs.BOM_UTF32_LE, "auto"),
        ("utf-16-le", b"", "utf-16-le"), ("utf-16-le", codecs.BOM_UTF16_LE, "utf-16"), ("gb18030", b"", "gb18030"),
        ("utf-8", codecs.BOM_UTF8, "utf-8"),
    ],
)  # fmt: skip
def test_every_encoding_is_read(tmp_path: Path, encoding: str, mark: bytes, setting: str, zipped: bool) -> None:
    for name, content in (("own.csv", CSV), ("own.jsonl", LINES), ("own.JSON", f"[{LINES}]")):
        data = mark + content.encode(encoding)
        path = tmp_path / name  # gzip also under a name that does not say so
        path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
        table = read_table(path, setting)
        assert table.columns == ("prompt", "target") and list(table.rows) == [("Le café", "\u65e5\u672c")]
        assert ("gzip" in table.written) == zipped


def test_an_encoding_is_named_where_none_fits(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes("prompt\na\nLe café\n".encode("latin-1"))
    with pytest.raises(
        TableError, match=r"own.csv is not written in utf-8 \(byte e9 in line 3\).*task.encoding=latin-1"
    ):
        read_table(path)
    assert list(read_table(path, "latin-1").rows) == [("a",), ("Le café",)]
    for order in ("le", "be"):
        path.write_bytes(b"prompt\nabc\n".decode().encode(f"utf-16-{order}"))
        with pytest.raises(TableError, match=f"own.csv seems to be UTF-16 .* task.encoding=utf-16-{order}"):
            read_table(path)
    path.write_bytes(codecs.BOM_UTF8 + b"prompt\n")
    with pytest.raises(TableError, match="begins with the byte-order mark of utf-8, not of latin-1"):
        read_table(path, "latin-1")
    with pytest.raises(TableError, match=r"expected auto, or an encoding such as .*, got 'klingon'"):
        read_table(path, "klingon")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.csv", b"PK\x03\x04", "own.csv is a zip archive"),
        ("own.jsonl", gzip.compress(b"x" * 99, mtime=0)[:-9], "own.jsonl begins as a gzip file and is damaged"),
        ("own.csv", b"version https://git-lfs.github.com/spec/v1\n", "own.csv is a pointer of Git LFS"),
        ("own.xlsx", b"x", "cannot tell the format of .*own.xlsx. Expected a name that ends in .csv"),
        ("own.txt", b"\n\n", "own.txt is empty"),
        ("own.parquet", b"PAR1", "cannot read .*own.parquet as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_table(tmp_path / name)
    with pytest.raises(TableError, match="there is no file"):
        read_table(tmp_path / f"no_{name}")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TableError, match="is a folder"):
        read_table(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    "name", ["a[12].csv", "a*.csv", "a?.csv", "**.csv", "a::b.csv", "file:a.csv", "{a,b}.csv", "~.csv"]
)
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    for other in ("a1.csv", "ab.csv", "b.csv", "a.csv"):
        (tmp_path / other).write_text("prompt\nwrong\n")
    (tmp_path / name).write_text("prompt\nright\n")
    assert list(read_table(tmp_path / name).rows) == [("right",)]


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes(b'a, b\r\n\r\n# c\n"d\n  \n')
    table = read_table(tmp_path / "own.txt")
    assert table.columns == ("prompt",) and list(table.rows) == [("a, b",), ("# c",), ('"d',), ("  ",)]
    assert list(table.lines) == [1, 3, 4, 5]


FIRST = '{"a": 1735, "b": "x\u2028y\u0085z", "c": {"d": {"e": 1.0}, "f": [1, "g", true]}}'
SECOND = '{"later": true, "c.d.e": "own"}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.jsonl", f"{FIRST}\n\n{SECOND}"),
        ("own.json", f"{FIRST}\n{SECOND}\n"),
        ("own.ndjson", f"{FIRST}\r\n{SECOND}\r\n"),
        ("own.json", f"[\n{FIRST},\n{SECOND}\n]\n"),
        ("own.jsonl", f"[{FIRST}, {SECOND}]"),
    ],
)
def test_json_by_its_source_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    table = read_table(tmp_path / name)
    assert table.columns == ("a", "b", "c.d.e", "c.f", "later")
    assert list(table.rows) == [
        ("1735", "x\u2028y\u0085z", "1.0", ["1", "g", "true"], None),
        (None, None, "own", None, "true"),
    ]
    assert [isinstance(cell, Literal) for cell in table.rows[0]] == [True, False, True, False, False]
    assert table.typed and not isinstance(table.rows[0][3][1], Literal)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 2\n{"a": 3}\n', "cannot read .*own.json, line 2: expected JSON, got a syntax error"),
        ('{"a": 1}\n[2]\n', r"own.json, line 2: expected a JSON object, got '\[2\]'"),
        ('[\n{"a": 1}\n{"a": 2}]', "own.json, line 3: expected `,` or `]` after a JSON object"),
        ('[{"a": 1}]\n{"a": 2}', "own.json, line 2: expected the end of the file after its list"),
        ('{"a": 1, "a": 2}', "line 1: .* the key 'a' twice in one object"),
        ('{"a": "\\ud83d"}', r"line 1: .* half a character \(\\ud83d\)"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "own.json, line 1: .* nested too deep"),
        ("[" * 100_000 + "]" * 100_000, r"own.json, line 1: expected a JSON object, got '\[\["),
        ("[]", "own.json has no rows"),
        (" ", "own.json is empty"),
    ],
)
def test_faults_of_json_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(TableError, match=message):
        read_table(path)


def test_a_column_of_parquet_that_stands_twice_is_none(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["x"]), pa.array(["y"])], names=["prompt", "target", "target"])
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    read = read_table(tmp_path / "own.parquet")
    assert list(read.rows) == [("a", "x", "y")] and read.index("prompt") == 0
    with pytest.raises(TableError, match="has 2 columns 'target'"):
        read.index("target")


@pytest.mark.parametrize("orient", ["columns", "index", "records"])
def test_json_as_pandas_writes_it(tmp_path: Path, orient: Any) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "target": ["x", None], "year": [1735, 7]})
    frame.to_json(tmp_path / "own.json", orient=orient)
    table = read_source(tmp_path / "own.json")
    assert table.columns == ("prompt", "target", "year")
    assert list(table.rows) == [("a", "x", "1735"), ("b", None, "7")]


def test_a_table_is_read_once_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "own.csv", []
    whole = source.read_table
    monkeypatch.setattr(source, "read_table", lambda *given: reads.append(given) or whole(*given))
    path.write_text("prompt,target\na,b\n")
    stamp = path.stat().st_mtime_ns
    assert [list(read_source(path).rows) for _ in range(3)] == [[("a", "b")]] * 3
    assert len(reads) == 1
    path.write_text("prompt,target\na,c\n")  # of the same size, and of the same time
    os.utime(path, ns=(stamp, stamp))
    assert list(read_source(path).rows) == [("a", "c")]
    assert list(read_source(path, quoting="none").rows) == [("a", "c")]
    assert len(reads) == 3 and gc.isenabled()

    def changing(*given: Any) -> Table:
        path.write_text("prompt,target\na,e\n")
        return whole(*given)

    monkeypatch.setattr(source, "read_table", changing)
    path.write_text("prompt,target\na,d\n")
    with pytest.raises(TableError, match=r"own.csv changed while it was read"):
        read_source(path)
    assert gc.isenabled()


def test_json_of_any_shape(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(codecs.BOM_UTF8 + b'{"a": {"b": [1.50, false, null, NaN, "\\ud83d\\ude00"]}}\n')
    assert parse_json(path) == {"a": {"b": ["1.50", "false", None, None, "\U0001f600"]}}
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(TableError, match="nested too deep"):
        parse_json(path)
    path.write_text("{} {}")
    with pytest.raises(TableError, match=r"line 1: expected the end of the file, got '\{\}'"):
        parse_json(path)


def test_parquet_by_the_text_of_its_values(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 1, 2)
    columns: dict[str, tuple[Any, list[Any]]] = {
        "text": (["1735", None], ["1735", None]),
        "whole": ([1735, None], ["1735", None]),
        "pandas": ([1735.0, float("nan")], ["1735", None]),
        "single": (pa.array([0.1, -2.5], pa.float32()), ["0.1", "-2.5"]),
        "large": ([1e300, 0.1], ["1e+300", "0.1"]),
        "truth": ([True, False], ["true", "false"]),
        "date": ([day.date(), None], ["2020-01-02", None]),
        "days": ([day, None], ["2020-01-02", None]),
        "times": ([day, day.replace(hour=3)], ["2020-01-02 00:00:00", "2020-01-02 03:00:00"]),
        "decimal": ([decimal.Decimal("1.50"), None], ["1.50", None]),
        "words": ([["a", "b"], None], [["a", "b"], None]),
        "numbers": ([[1.0, 2.5], []], [["1", "2.5"], []]),
        "category": (pa.array(["u", "v"]).dictionary_encode(), ["u", "v"]),
    }
    table = pa.table({name: given for name, (given, _) in columns.items()} | {"in": [{"x": {"y": 1}}, None]})
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    read = read_table(tmp_path / "own.parquet")
    for name, (_, expected) in columns.items():
        assert [row[read.index(name)] for row in read.rows] == expected, name
    assert [row[read.index("in.x.y")] for row in read.rows] == ["1", None]
    assert read.where(1).endswith("own.parquet, row 1")
