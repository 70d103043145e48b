"""Other versions of libraries: what is computed again, what is taken, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.fingerprints import changes, minor
from tests.pipeline.workflow.miniature import params, ran, record, run
from tests.pipeline.workflow.test_run import dvc

TORCH, ZARR, NUMPY = (metadata.version(name) for name in ("torch", "zarr", "numpy"))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`install(library, version)`: what every process from now on finds installed."""
    place = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", str(place))

    def write(library: str, version: str) -> None:
        folder = place / f"{library}.dist-info"  # a name that metadata takes, and finds before the real one
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: {version}\n")

    return write


def next_minor(version: str) -> str:
    """A version with the next minor version."""
    major, second = minor(version).split(".")
    return f"{major}.{int(second) + 1}.0"


def next_patch(version: str) -> str:
    """A version with another patch version."""
    return f"{minor(version)}.999"


def test_minor_versions() -> None:
    assert [minor(text) for text in ("2.13.0+cpu", "2.13.1.dev3", "5", "absent")] == ["2.13", "2.13", "5", "absent"]
    assert changes({"a": "1.2.3", "b": "1.0"}, {"a": "1.2.4", "c": "2.0"}) == {
        "b": ["1.0", "absent"],
        "c": ["absent", "2.0"],
    }


def test_an_upgrade_computes_the_stages_that_use_the_library_again(
    finished: Path, install: Callable[[str, str], None]
) -> None:
    first = finished / "outputs/1"
    assert json.loads((first / "versions.json").read_text()) == {
        "first": {"torch": minor(TORCH), "zarr": minor(ZARR)},
        "second": {"numpy": minor(NUMPY)},
    }
    assert json.loads((first / "versions/first.json").read_text()) == {"torch": TORCH, "zarr": ZARR}
    newer = next_minor(TORCH)
    install("torch", newer)
    status, said = run(finished, "outputs/2", params())
    assert status == 0
    # the bytes of first.txt are the same, so what depends on them is taken
    assert f"first: 0.0 s, computed again for torch {newer} (was {TORCH})\n" in said
    assert said.endswith("second: cached\n")
    assert ran(finished) == ["first", "second", "first"]
    told = record(finished, "outputs/2")["stages"]
    assert told["first"]["versions"] == {"torch": newer, "zarr": ZARR}
    assert told["second"]["versions"] == {"numpy": NUMPY}
    assert (first / "first.txt").read_bytes() == (finished / "outputs/2/first.txt").read_bytes()
    # plain DVC, in a finished run folder, and at the root
    assert dvc(first, "repro").count("is cached - skipping run") == 1
    assert json.loads((first / "versions/first.json").read_text())["torch"] == newer
    (finished / "params.yaml").write_text((first / "params.yaml").read_text())
    assert dvc(finished, "repro").count("is cached - skipping run") == 2
    newest = next_minor(NUMPY)
    install("numpy", newest)
    assert "Running stage 'second'" in dvc(first, "repro")
    assert "Running stage 'second'" not in dvc(finished, "repro")
    assert json.loads((finished / "versions/second.json").read_text()) == {"numpy": newest}
    assert ran(finished) == ["first", "second", "first", "second"]


def test_a_patch_is_recorded_and_computes_nothing(finished: Path, install: Callable[[str, str], None]) -> None:
    install("torch", next_patch(TORCH))
    assert run(finished, "outputs/2", params()) == (0, "first: cached\nsecond: cached\n")
    assert record(finished, "outputs/2")["stages"]["first"]["versions"]["torch"] == TORCH
    assert run(finished, "outputs/3", params(value=2))[0] == 0
    assert record(finished, "outputs/3")["stages"]["first"]["versions"]["torch"] == next_patch(TORCH)
    assert "computed again" not in run(finished, "outputs/4", params(value=3))[1]


def test_another_version_may_be_taken_with_a_warning_or_without(
    finished: Path, install: Callable[[str, str], None]
) -> None:
    newer = next_minor(TORCH)
    install("torch", newer)
    warning = f"first: taken as it is, computed with torch {TORCH} (now {newer})\n"
    assert run(finished, "outputs/2", params(versions="warn")) == (0, f"first: cached\n{warning}second: cached\n")
    assert run(finished, "outputs/2", params(versions="warn"))[1].count(warning) == 1  # up to date, and told again
    assert run(finished, "outputs/3", params(versions="ignore")) == (0, "first: cached\nsecond: cached\n")
    assert json.loads((finished / "outputs/3/versions.json").read_text()) == {"first": "any", "second": "any"}
    assert dvc(finished / "outputs/3", "repro").count("didn't change, skipping") == 2
    assert ran(finished) == ["first", "second"]
