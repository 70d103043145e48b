"""Tensors go to the disk whole, the same bytes again, and for the eyes that the umask lets see them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.tensor_files import read_tensors, write_tensors
from interp.translators import AffineMap, TunedLens
from interp.translators.affine_maps import AffinePairs
from interp.translators.training import write_checkpoint

Standardized = Callable[[str], StandardizedTransformer]


@pytest.fixture(params=[0o022, 0o002, 0o077])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a new file under a umask."""
    before = os.umask(request.param)
    try:
        yield 0o666 & ~request.param
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_saver_leaves_the_mode_to_the_umask(mode: int, tmp_path: Path, standardized: Standardized) -> None:
    weight, bias = torch.eye(3)[None], torch.zeros(1, 3)
    AffineMap((0,), weight, bias).save(tmp_path / "map.safetensors")
    AffinePairs((0,), (0,), weight[None], bias[None]).save(tmp_path / "pairs.safetensors")
    TunedLens.of(standardized("llama"), (0,)).save(tmp_path / "lens")
    write_checkpoint(tmp_path / "checkpoint.safetensors", {"a": bias}, {})
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in written] == [
        "checkpoint.safetensors", "config.json", "lens.safetensors", "map.safetensors", "pairs.safetensors"
    ]  # fmt: skip
    assert {mode_of(path) for path in written} == {mode}


def test_what_was_there_stays_until_the_new_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.safetensors"
    write_tensors(path, {"a": torch.zeros(2)}, {"told": "before"})
    first = path.read_bytes()

    def fail(held: dict[str, Tensor], partial: Path, **_: object) -> None:
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("interp.tensor_files.save_file", fail)
        with pytest.raises(OSError, match="no space left"):
            write_tensors(path, {"a": torch.ones(2)})
    assert path.read_bytes() == first
    write_tensors(path, {"a": torch.ones(2, requires_grad=True).expand(3, 2)})  # over a half file of before
    assert torch.equal(load_file(path)["a"], torch.ones(3, 2))
    write_tensors(path, {"a": torch.zeros(2)}, {"told": "before"})
    assert path.read_bytes() == first
    assert [found.name for found in tmp_path.iterdir()] == ["map.safetensors"]


def test_what_is_read_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "file", tensors, {"key": "text"})
    found, header = read_tensors(tmp_path / "file")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert header == {"key": "text"}
    with pytest.raises(InterpError, match="there is no file"):
        read_tensors(tmp_path / "other")
    (tmp_path / "cut").write_bytes((tmp_path / "file").read_bytes()[:-4])
    with pytest.raises(InterpError, match="no whole safetensors file"):
        read_tensors(tmp_path / "cut")
