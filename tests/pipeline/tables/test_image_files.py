"""Rows that name images: tables, folders with metadata as `datasets` reads them, folders without; and broken images."""

from __future__ import annotations

import csv
import gc
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from pipeline.tables.image_files import check_image, combined_digest, folder_of, image_file, read_image_rows
from pipeline.tables.table import TableError
from tests.vision import image

TempPaths = pytest.TempPathFactory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them deeper, and a hidden one."""
    for number, name in enumerate(["b.png", "a.jpg", "red/1.png", ".hidden/2.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(number, 12, 10).save(tmp_path / name)
    return tmp_path


def write_metadata(folder: Path, columns: dict[str, list[str]]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def test_a_folder_without_metadata_is_its_images(folder: Path) -> None:
    table = read_image_rows(folder)
    assert table.columns == ("image", "label")
    assert list(table.rows) == [("a.jpg", ""), ("b.png", ""), ("red/1.png", "red")]
    assert table.where(2) == f"{folder}, red/1.png"
    assert all(image_file(folder_of(folder), row[0]).is_file() for row in table.rows)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves a file open
def test_a_folder_with_metadata_is_read_as_datasets_reads_it(folder: Path, tmp_path_factory: TempPaths) -> None:
    write_metadata(
        folder, {"file_name": ["b.png", "red/1.png"], "mask_file_name": ["a.jpg", "a.jpg"], "answer": ["x", "y"]}
    )
    table = read_image_rows(folder)
    cache = tmp_path_factory.mktemp("cache")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    assert list(table.columns) == theirs.column_names == ["image", "mask", "answer"]
    assert [row[2] for row in table.rows] == list(theirs["answer"])
    gc.collect()  # it is closed here, under this test's filter
    assert table.written == "folder of images with metadata.csv (CSV)"
    assert table.notes == ()
    write_metadata(folder, {"file_name": ["b.png"], "answer": ["x"]})
    [note] = read_image_rows(folder).notes
    assert (note.count, note.examples) == (2, ("a.jpg", "red/1.png"))


def test_a_table_names_images_from_its_own_folder(folder: Path) -> None:
    (folder / "own.jsonl").write_text(json.dumps({"image": ["red/1.png", str(folder / "b.png")], "file_name": "x"}))
    table = read_image_rows(folder / "own.jsonl")
    assert table.columns == ("image", "file_name")  # of a table nothing is renamed
    assert [image_file(folder_of(folder / "own.jsonl"), name) for name in table.rows[0][0]] == [
        folder / "red/1.png", folder / "b.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: folder / "none", "expected a table or a folder of images at .*none, found none"),
        (lambda folder: folder / "b.png", "expected a folder of images or a table that ends in .csv"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "holds no image .*and no metadata.csv"),
        (lambda folder: (folder / "red/metadata.csv").touch() or folder, "Name one of these folders, e.g. .*red"),
        (
            lambda folder: [(folder / f"metadata.{kind}").touch() for kind in ("csv", "jsonl")] and folder,
            "holds metadata.csv and metadata.jsonl. Leave one, or name it",
        ),
    ],
)
def test_what_holds_no_rows_says_so(folder: Path, change: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_image_rows(change(folder))


def test_an_image_is_read_to_its_end(folder: Path) -> None:
    image(0, 64, 64).save(folder / "named.png", "JPEG")
    assert check_image(folder / "named.png") == ".jpg", "by what it is, whatever it is called"
    assert check_image(folder / "b.png") == ".png"
    for kind in ("PNG", "JPEG"):
        whole = folder / f"whole.{kind}"
        image(1, 64, 64).save(whole, kind)
        cut = folder / f"cut.{kind}"
        cut.write_bytes(whole.read_bytes()[:-200])
        with pytest.raises(TableError, match=f"cannot read .*cut.{kind} as an image .*Save it again as PNG"):
            check_image(cut)
    (folder / "text.png").write_text("no image")
    with pytest.raises(TableError, match="cannot identify image file"):
        check_image(folder / "text.png")
    Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)).save(folder / "deep.png")
    with pytest.raises(TableError, match=r"deep\.png as an image .*more than eight bits a channel"):
        check_image(folder / "deep.png")


def test_a_path_that_leads_nowhere_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(TableError, match=f"expected an image at {folder}/c.png, found none. Paths count from {folder}"):
        image_file(folder, "c.png")
    with pytest.raises(TableError, match="red is a folder"):
        image_file(folder, "red")
    with pytest.raises(TableError, match=r"got the address 'https://a\.org/1\.png'\. Download it"):
        image_file(folder, "https://a.org/1.png")


def test_the_digest_is_of_names_and_bytes(folder: Path) -> None:
    before = combined_digest({"a": folder / "a.jpg", "b": folder / "b.png"})
    assert before == combined_digest({"b": folder / "b.png", "a": folder / "a.jpg"})
    assert before != combined_digest({"a": folder / "b.png", "b": folder / "a.jpg"})
    image(7).save(folder / "b.png")
    assert before != combined_digest({"a": folder / "a.jpg", "b": folder / "b.png"})
