"""Text of the report: methods in words."""

from __future__ import annotations

import pytest

from pipeline.config.lens import LogitLensConfig, PatchscopeConfig
from pipeline.stages.report.words import baseline_label, describe, spelled_position


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ("last", "the last token"), ("first", "the first token"), ("query.last", "the last token of “query”"),
        ("query.all", "every token of “query”"), ("2:5", "position 2:5"), ("-1", "position -1"),
    ],
)  # fmt: skip
def test_positions_in_words(position: str, words: str) -> None:
    assert spelled_position(position) == words


def test_methods_in_words() -> None:
    assert describe(LogitLensConfig(), 1).startswith(
        "The residual stream after layer j (resid_post), at the last token of a prompt, is read out"
    )
    one = describe(PatchscopeConfig(), 3)
    assert (
        "at the last token of a source prompt, replaces the one at the last token of a target prompt, at layer j."
        in one
    )
    mean = describe(PatchscopeConfig(patch="from_layer", sources="mean", source_position="query.last"), 3)
    assert "“query” of the mean over 3 source prompts" in mean
    assert "at layer j, and those of all later layers likewise." in mean
    assert "a prompt that asks to repeat a token" in describe(PatchscopeConfig(target="identity"), 1)
    own = describe(PatchscopeConfig(target="identity", target_prompt="The currency of x"), 1)
    assert "repeat" not in own and "of a target prompt, at layer j" in own
    assert "(mlp_post)" in describe(LogitLensConfig(site="mlp_post"), 1)


def test_names_of_baselines() -> None:
    assert baseline_label(LogitLensConfig(), "source") == "the model’s own output"
    assert baseline_label(PatchscopeConfig(), "target") == "unpatched target prompt"
