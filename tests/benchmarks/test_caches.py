"""The benchmark of caches measures what it says, on the embedded model."""

from __future__ import annotations

from benchmarks.caches import DEMO, table, worker


def test_a_tool_is_measured_beside_a_plain_pass() -> None:
    found = worker("interpipe", str(DEMO), prompts=2, tokens=5, rounds=1)
    streams = 1 + 2 * 8  # what goes in, and after each of two stages in 8 layers
    assert found["cached_mib"] == streams * 2 * 5 * 128 * 4 / 2**20 and found["ratio"] > 0
    assert "takes" not in table({"interpipe": found}, "embedded model", 2, 5)
    assert "interpipe takes 1.00 of the time" in table({"interpipe": found, "other": found}, "embedded model", 2, 5)
