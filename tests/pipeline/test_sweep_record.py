"""What a sweep and its jobs say of one another, also where a full disk or another program cut it short."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.launch import _part_of
from pipeline.sweep import JOBS, RECORD, described, job_began, job_ended, jobs_of, new_sweep, sweep_ended, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of two jobs, of which one finished."""
    folder = tmp_path / "swept"
    folder.mkdir()
    new_sweep(folder, "outputs/swept", ["lens=a,b", "task=c"], ["task=c"])
    for number in (0, 1):
        job_began(folder, number, ["lens=a"], folder / str(number))
    job_ended(folder, 1, ["lens=a"], folder / "1", finished=True)
    return folder


def test_a_record_cut_anywhere_costs_names_alone(sweep: Path) -> None:
    """Half of a record is none: what a job is told of its sweep is then the folder's name, and all its overrides."""
    content = (sweep / RECORD).read_bytes()
    assert _part_of(sweep, ["lens=a", "task=c"])["swept"] == {"lens": "a"}
    for size in range(len(content) - 1):
        (sweep / RECORD).write_bytes(content[:size])
        assert described(sweep) == ({} if size < len(content.rstrip()) else described(sweep))
        part = _part_of(sweep, ["lens=a", "task=c"])
        assert part == {"name": str(sweep), "key": str(sweep), "swept": {"lens": "a", "task": "c"}}
    for other in ("null", "[1]", "7", '"text"', "\xff"):
        (sweep / RECORD).write_bytes(other.encode("latin-1"))
        assert described(sweep) == {}
    sweep_ended(sweep, "FINISHED")
    assert described(sweep) == {"status": "FINISHED"}


def test_a_job_cut_anywhere_has_not_begun(sweep: Path) -> None:
    file = sweep / JOBS / "1.json"
    content = file.read_bytes()
    assert [(job.number, job.status) for job in jobs_of(sweep)] == [(0, "RUNNING"), (1, "FINISHED")]
    for left in [*(content[:size] for size in range(0, len(content) - 1, 7)), b"[]", b"7", b'{"number": 1}']:
        file.write_bytes(left)
        assert [job.number for job in jobs_of(sweep)] == [0]


def test_a_runs_sweep_is_found_where_it_is_now(sweep: Path, tmp_path: Path) -> None:
    """Above the run; or, where jobs run elsewhere, by its name; never one that took its place."""
    key = described(sweep)["key"]
    assert sweep_of(sweep / "a/b/0", "gone", key, tmp_path) == sweep
    assert sweep_of(tmp_path / "elsewhere/0", "swept", key, tmp_path) == tmp_path / "swept"
    assert sweep_of(tmp_path / "elsewhere/0", str(sweep), key, Path("/")) == sweep
    assert sweep_of(sweep / "0", "swept", "another", tmp_path) is None
