"""From the bytes of a file to its text: compression, byte-order marks, encodings."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from pipeline.tables.table import TableError

__all__ = ["check_encoding", "decoded", "file_bytes"]

GZIP = b"\x1f\x8b"
MARKS = {  # the longer ones first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
OTHERS = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet: save it as CSV)",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull` brings the file)",
}


def check_encoding(encoding: str) -> None:
    """Check the name of an encoding.

    Raises:
        TableError: Python knows no such encoding of text.
    """
    if encoding == "auto":
        return
    try:
        "a".encode(encoding)
    except (LookupError, UnicodeError, ValueError):
        raise TableError(
            f"expected auto, or an encoding such as utf-16, latin-1, cp1252, shift_jis or gb18030, got {encoding!r}."
        ) from None


def file_bytes(path: str | Path) -> tuple[bytes, bool]:
    """The content of a file, and whether it was compressed by gzip.

    Arguments:
        path: the file, taken literally.

    Raises:
        TableError: there is none, it cannot be read, or it is empty, damaged, or packed in another way.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise TableError(f"there is no file {path}. Check the path.") from None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise TableError(f"cannot read {path} ({error}).") from None
    zipped = data.startswith(GZIP)
    if zipped:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise TableError(f"{path} begins as a gzip file and is damaged ({error}). Fetch it again.") from None
    if not data:
        raise TableError(f"{path} is empty.")
    for start, what in OTHERS.items():
        if data.startswith(start):
            raise TableError(f"{path} is {what}. Expected text, plain or compressed by gzip.")
    return data, zipped


def decoded(path: str | Path, encoding: str = "auto") -> tuple[str, list[str]]:
    """The text of a file, and how it was written where that is not plain UTF-8 (`gzip`, `utf-16-le`).

    Arguments:
        path: the file, taken literally.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.

    Raises:
        TableError: it cannot be read, or not by that encoding; the message says which to try.
    """
    check_encoding(encoding)
    data, zipped = file_bytes(path)
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    named = MARKS[mark] if mark else "utf-8" if encoding == "auto" else encoding
    if mark and encoding != "auto" and not named.startswith(codecs.lookup(encoding).name.removesuffix("-sig")):
        raise TableError(
            f"{path} begins with the byte-order mark of {named}, not of {encoding}. Set task.encoding=auto."
        )
    try:
        text = data[len(mark) :].decode(named)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {data[len(mark) + error.start : len(mark) + error.start + 1].hex()} in line {line}"
        raise TableError(
            f"{path} is not written in {named} ({byte}). Say how it is written: task.encoding=latin-1 (or cp1252, "
            "utf-16, shift_jis, gb18030, ...)."
        ) from None
    if encoding == "auto" and not mark and text.count("\0") > len(text) // 4:
        order = "le" if data[1::2].count(0) >= data[::2].count(0) else "be"
        raise TableError(f"{path} seems to be UTF-16 without a byte-order mark. Set task.encoding=utf-16-{order}.")
    return text, [*([named] if named != "utf-8" else []), *(["gzip"] if zipped else [])]
