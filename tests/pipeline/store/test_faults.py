"""What disks and killed processes do to a store, and what becomes of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import InterpError
from pipeline.store import open_store
from pipeline.store.__main__ import main
from pipeline.store.reader import verify_store
from tests.pipeline.store.example import on_operation, specs, tree, values, write_pending, write_store, writer

SHARD = "resid_post/c/0/1/0/0"
RESOURCES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
from tests.pipeline.store.example import write_pending, writer
with writer(Path(sys.argv[1]), attributes={}, static={}) as store:
    write_pending(store)
"""


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path, offset: int = 40) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(bytes(data))


def test_sigkill_at_any_moment_loses_a_block_at_most_and_changes_no_byte(tmp_path: Path) -> None:
    expected = tree(write_store(tmp_path / "a.zarr"))
    path = tmp_path / "b.zarr"
    command = [sys.executable, "-m", "tests.pipeline.store.example", str(path)]
    # One process after the other is killed, in the header, in a shard, at a flush; each goes on where the last stopped.
    left = []
    for operation in (3, 60, 38, 21, 5):
        assert subprocess.run([*command, str(operation)], check=False).returncode == -signal.SIGKILL
        left.append(sum(p.stem.isdigit() for p in path.glob("complete/*.json")))
        with pytest.raises(InterpError, match=r"found none|is unfinished: \d of 3 blocks"):
            open_store(path)
    assert left == sorted(left)
    assert left[0] == 0
    assert left[-1] > 0
    subprocess.run(command, check=True)
    assert tree(path) == expected


def test_a_full_disk_at_any_moment_leaves_nothing_to_be_trusted(tmp_path: Path) -> None:
    one: dict[str, Any] = {"arrays": specs()[:1], "static": {}}
    expected = tree(write_store(tmp_path / "a.zarr", **one))

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for operation in range(1000):
        path = tmp_path / f"{operation}.zarr"
        with pytest.MonkeyPatch.context() as patch:
            on_operation(operation, full, patch.setattr)
            try:
                write_store(path, **one)
                break  # all operations have had their turn
            except OSError as error:
                assert error.errno == errno.ENOSPC
        if (path / "complete/store.json").exists():  # only the last flush, of the folder, came too late
            assert tree(path) == expected
        else:
            with pytest.raises(InterpError, match=r"found none|is unfinished"):
                open_store(path)
        for marker in path.glob("complete/[0-9]*.json"):  # what is marked is whole
            for file in json.loads(marker.read_text())["shards"]:
                assert (path / file).read_bytes() == expected[file]
        assert tree(write_store(path, **one)) == expected  # some space is there again
    assert operation > 30


def test_a_limit_of_the_kernel_stops_the_write_and_leaves_no_marker(tmp_path: Path) -> None:
    """The kernel cuts a write short, as a quota does; the shard of resid_post has 16 chunks of 128 bytes."""
    path = tmp_path / "a.zarr"
    done = subprocess.run([sys.executable, "-c", RESOURCES, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr or "Invalid argument" in done.stderr
    assert not list(path.glob("complete/0*.json"))
    assert not list(path.glob("resid_post/c/**/0"))
    with writer(path, attributes={}, static={}) as store:
        write_pending(store)
        store.finish()
    np.testing.assert_array_equal(open_store(path, verify=True).read("resid_post"), values()["resid_post"])


def test_a_block_without_marker_is_rewritten_and_leftovers_are_swept(tmp_path: Path) -> None:
    expected = tree(write_store(tmp_path / "a.zarr"))
    path = tmp_path / "b.zarr"
    with writer(path) as store:
        write_pending(store)
    (path / "complete/00001.json").unlink()
    flip(path / SHARD)
    (path / "resid_post/c/0/1/0/0.5f.partial").write_bytes(b"half")
    (path / "complete/00001.json.partial").write_bytes(b"half")
    cut(path / "rank/c/2/0")  # marked complete, but shorter than its marker says
    (path / "complete/00000.json").write_bytes(b'{"shards"')
    with writer(path) as store:
        assert store.pending() == [0, 1, 2]
        write_pending(store)
        store.finish({"late": ["a", "b"]})
    assert tree(path) == expected


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: cut(path / SHARD), rf"{SHARD} has \d+ bytes, expected \d+"),
        (lambda path: (path / SHARD).unlink(), f"{SHARD} is missing"),
        (lambda path: (path / "layer/c/0").unlink(), "layer/c/0 is missing"),
        (lambda path: flip(path / "resid_post/zarr.json"), "resid_post/zarr.json is not what was written"),
    ],
)
def test_opening_notices_missing_and_truncated_files(
    tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    path = write_store(tmp_path / "a.zarr")
    opened_before = open_store(path)
    harm(path)
    with pytest.raises(InterpError, match=f"{message}.*To mend it, remove .*a.zarr and run"):
        open_store(path)
    if SHARD in message:  # zarr itself would read a missing shard as NaN
        with pytest.raises(InterpError, match=message):
            opened_before.read("resid_post")
        np.testing.assert_array_equal(opened_before.read("resid_post", prompt=0), values()["resid_post"][:, 0])


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
def test_a_flipped_bit_is_noticed_by_the_read_that_meets_it(tmp_path: Path, compression: str, where: float) -> None:
    path = write_store(tmp_path / "a.zarr", compression=compression)
    for shard, name in ((SHARD, "resid_post"), ("attn_out/c/0/2/0/0", "attn_out")):
        flip(path / shard, int(where * (path / shard).stat().st_size))
        store = open_store(path)  # sizes are right
        with pytest.raises(InterpError, match=f"{shard} is not what was written .*To mend it"):
            store.read(name)
        with pytest.raises(InterpError, match="SHA-256 differs"):
            open_store(path, verify=True)
    np.testing.assert_array_equal(store.read("resid_post", prompt=slice(0, 4)), values()["resid_post"][:, :4])
    np.testing.assert_array_equal(store.read("rank"), values()["rank"])


def test_a_flipped_bit_in_a_static_array_is_noticed(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.zarr")
    flip(path / "positions/c/0/0")
    store = open_store(path)
    with pytest.raises(InterpError, match="positions/c/0/0 is not what was written"):
        store.static("positions")
    (path / "positions/c/0/0").unlink()
    with pytest.raises(InterpError, match="positions/c/0/0 is missing"):
        store.static("positions")


def test_verify_lists_every_fault_and_says_how_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "lens.zarr"
    good, bad = write_store(root / "good"), write_store(root / "bad")
    assert main(["verify", str(root)]) == 0
    assert capsys.readouterr().out.count(": ok") == 3
    (root / "zarr.json").unlink()
    flip(bad / SHARD)
    cut(bad / "rank/c/2/0")
    (bad / "attn_out/c/0/0/0/0").unlink()
    (bad / "rank/c/9").mkdir()
    (bad / "rank/c/9/0").write_bytes(b"?")
    flip(bad / "complete/00000.json")
    assert verify_store(good) == []
    found = [line.removeprefix(f"{bad}: ") for line in verify_store(bad)]
    assert sorted(line.split(" ")[0] for line in found) == [
        "attn_out/c/0/0/0/0", "complete/00000.json", "rank/c/2/0", "rank/c/9/0", SHARD,
    ]  # fmt: skip
    assert main(["verify", str(root)]) == 1
    shown = capsys.readouterr()
    assert f"{good}: ok" in shown.out
    assert f"{root}: zarr.json is missing" in shown.out
    assert f"{SHARD} is not what was written" in shown.out
    assert f"remove {root} and run the run again" in shown.err
    assert main(["verify", str(root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[str(good)] == []


def test_verify_of_an_unfinished_store_and_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer(tmp_path / "a.zarr").close()
    assert main(["verify", str(tmp_path / "a.zarr")]) == 1
    assert "unfinished" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "a.zarr")]) == 1
    assert "0 of 3 blocks are complete" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "nowhere", tmp_path / "empty"):
        assert main(["verify", str(missing)]) == 1
        assert "expected" in capsys.readouterr().err


def test_the_command_says_what_is_in_a_store(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.zarr")
    command = [sys.executable, "-m", "pipeline.store", "info", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "3 blocks of 4 along prompt" in text
    assert "(layer=3, prompt=10, position=2, hidden=8) float32" in text
    assert "(layer@attn_out=2, prompt=10, position=2, hidden=8) bfloat16" in text
    assert 'model: {"name": "tiny"}' in text
    (found,) = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    shards = sum(os.path.getsize(p) for p in path.glob("rank/c/*/*"))
    assert found["arrays"]["rank"] == {
        "dimensions": {"prompt": 10, "layer": 3}, "dtype": "int32", "bytes": shards, "attributes": {},
    }  # fmt: skip
    assert found["static"]["positions"] == {"shape": [10, 2], "dtype": "int32"}
    assert found["attributes"]["late"] == ["a", "b"]
