"""Read rows that name images: a table of the user's, or a folder of images with or without one.

    images/metadata.csv         file_name,answer       a folder as `datasets` reads it ("imagefolder"): its rows
    images/red/1.png            no metadata            or every image below it: columns `image` and `label` (`red`)
    questions.jsonl             {"image": "a/1.png"}   any table; paths count from the folder that it lies in

No image is decoded by anything that needs torch.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pipeline.files import sha256_of
from pipeline.tables.facts import Choice
from pipeline.tables.reading import read_source
from pipeline.tables.table import SUFFIXES, Note, Table, TableError, is_table_file

__all__ = ["IMAGE_SUFFIXES", "check_image", "combined_digest", "folder_of", "image_file", "read_image_rows"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"  # how `datasets` calls a column of paths in a metadata file
FITTING = (64, 64)  # a JPEG may be decoded at a fraction of its size: whether it is whole shows as well


def folder_of(source: Path) -> Path:
    """The folder that relative paths of images count from: a folder of images itself, or that of a table."""
    return source if source.is_dir() else source.parent


def read_image_rows(source: Path, encoding: str = "auto", quoting: str = "auto") -> Table:
    """Read rows that name images.

    Arguments:
        source: a table, or a folder. In a folder's metadata the columns `file_name` and `NAME_file_name` (or
            `_file_names`) are called `image` and `NAME`, as `datasets` does.
        encoding, quoting: as of `pipeline.tables.reading.read_table`.

    Returns:
        The rows. Of a folder without metadata, an image each, by name, with the columns `image` and `label`, the folder
        that it lies in (empty at the top).

    Raises:
        TableError: there is no such file or folder, it cannot be read, or a folder holds no image, several metadata
            files, or metadata in folders below alone.
    """
    if not source.exists():
        raise TableError(f"expected a table or a folder of images at {source}, found none. Check the path.")
    if not source.is_dir():
        if not is_table_file(source):
            raise TableError(
                f"expected a folder of images or a table that ends in {', '.join(SUFFIXES)}, got {source}."
            )
        return read_source(source, encoding, quoting, Choice("table"))
    found = [source / name for name in METADATA if (source / name).is_file()]
    if len(found) > 1:
        raise TableError(f"{source} holds {' and '.join(file.name for file in found)}. Leave one, or name it.")
    images = _images_below(source)
    if found:
        return _with_metadata(source, read_source(found[0], encoding, quoting, Choice("table")), images)
    below = sorted(path for name in METADATA for path in source.rglob(name))
    if below:
        raise TableError(
            f"{source} holds metadata in folders below it ({below[0].relative_to(source)}), none of its own. Name one "
            f"of these folders, e.g. {below[0].parent}."
        )
    if not images:
        raise TableError(f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}) and no metadata.csv. Check the path.")
    labels = [path.parent.as_posix().removeprefix(".") for path in images]
    records = [{"image": path.as_posix(), "label": label} for path, label in zip(images, labels, strict=True)]
    return Table.from_records(str(source), records, [path.as_posix() for path in images], "folder of images")


def _images_below(folder: Path) -> list[Path]:
    """The images below a folder, relative to it, by name; hidden ones are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))


def _with_metadata(folder: Path, table: Table, images: Iterable[Path]) -> Table:
    columns = tuple(_renamed(name, table.columns) for name in table.columns)
    table = replace(table, columns=columns, written=f"folder of images with {Path(table.path).name} ({table.written})")
    cells = {
        str(cell) for row in table.rows for value in row for cell in (value if isinstance(value, list) else [value])
    }
    left = [path.as_posix() for path in images if path.as_posix() not in cells and f"./{path.as_posix()}" not in cells]
    return table.noted(Note("images that the metadata does not name, left out", len(left), tuple(left[:3])))


def _renamed(column: str, columns: Iterable[str]) -> str:
    """A column of a metadata file as `datasets` calls it."""
    for ending in (FILE_NAME, f"{FILE_NAME}s"):
        if column.endswith(ending) and (column == ending or column.endswith(f"_{ending}")):
            name = column.removesuffix(ending).removesuffix("_") or "image"
            return column if name in columns else name
    return column


def image_file(folder: Path, named: str) -> Path:
    """The image that a cell names.

    Arguments:
        folder: relative paths count from here.
        named: the cell.

    Raises:
        TableError: it is an address, or there is no such file.
    """
    if "://" in named:
        raise TableError(f"expected the path of an image, got the address {named!r}. Download it, and name the file.")
    path = folder / named
    if not path.is_file():
        is_folder = " is a folder" if path.is_dir() else ", found none"
        raise TableError(
            f"expected an image at {path}{is_folder}. Paths count from {folder}; check the path, or write it whole."
        )
    return path


def check_image(path: Path) -> str:
    """Read an image to its end.

    Arguments:
        path: of the file.

    Returns:
        The ending that names its format (`.png`), whatever the file is called.

    Raises:
        TableError: it cannot be read as an image, or only a part of it is there.
    """
    stat = path.stat()
    return _checked(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)  # the jobs of a sweep name the same images
def _checked(path: Path, size: int, modified: int) -> str:
    from PIL import Image  # not what a task without images waits for

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; a decompression bomb is an error as well
            with Image.open(path) as image:
                image.draft("RGB", FITTING)
                image.load()
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise ValueError(f"mode {image.mode}: more than eight bits a channel")
                kind = str(image.format or "PNG").lower()
    except Exception as error:  # decoders raise whatever a broken file makes them
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "Save it again as PNG or JPEG, or leave its row out."
        raise TableError(f"cannot read {path} as an image ({said}). {remedy}") from None
    return f".{kind.replace('jpeg', 'jpg')}"


def combined_digest(files: Mapping[str, Path]) -> str:
    """SHA-256, in hexadecimal, over the names of some files and their bytes.

    Arguments:
        files: name -> file.
    """
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + sha256_of(path).encode() + b"\n")
    return digest.hexdigest()
