"""Text of the report: methods in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from pipeline.config.lens import (
    AttentionObjectConfig,
    KnockoutConfig,
    LogitLensConfig,
    PatchscopeConfig,
    PatchscopeGridConfig,
)
from pipeline.metrics import METRICS
from pipeline.stages.report.words import (
    baseline_label,
    describe,
    describe_task,
    metric_note,
    percent,
    rank,
    readable_value,
    spelled_position,
)
from pipeline.tasks.attribute_extraction import AttributeExtractionConfig
from pipeline.tasks.cloze import ClozeConfig
from pipeline.tasks.next_token import NextTokenConfig
from pipeline.tasks.translation import PatchIntoConfig, TranslationConfig


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


def test_what_a_metric_is_to_a_lens() -> None:
    kl, top = METRICS["kl_nats"], METRICS["precision_at_1"]
    assert metric_note(LogitLensConfig(), kl) == "from the distribution at layer {last} to this layer’s"
    assert metric_note(KnockoutConfig(), kl) == "from the unblocked distribution to the blocked one"
    assert metric_note(PatchscopeGridConfig(), kl).startswith("from the distribution of the last source layer")
    assert metric_note(AttentionObjectConfig(), kl).startswith("from the unpatched target prompt’s")
    assert metric_note(LogitLensConfig(), top) == top.note and metric_note(PatchscopeConfig(), top) == top.patched_note


def test_tasks_in_words() -> None:
    into = PatchIntoConfig("fr", "es")
    translation = TranslationConfig(lexicon="x", source_languages=["de", "nl"], target_language="it", patch_into=into)
    assert describe_task(translation) == ("word translation from de, nl to it, patched into translation from fr to es")
    alone = TranslationConfig(lexicon="x", source_languages=["de"], target_language="it")
    assert describe_task(alone) == "word translation from de to it"
    assert describe_task(ClozeConfig(language="fr")) == "cloze sentences in fr"
    assert describe_task(NextTokenConfig(source="p.txt")) == "the next token of prompts from p.txt"
    assert describe_task(AttributeExtractionConfig(source="f.json")) == "attributes of the subjects in f.json"
    assert describe_task(SimpleNamespace(kind="riddles")) == "prompts of the task riddles"
    assert (
        describe_task(SimpleNamespace(kind="riddles", describe=lambda: "riddles of sphinxes")) == "riddles of sphinxes"
    )


def test_names_of_baselines() -> None:
    assert baseline_label(LogitLensConfig(), "source") == "the model’s own output"
    assert baseline_label(PatchscopeConfig(), "target") == "unpatched target prompt"


def test_a_lens_of_ones_own_says_what_it_does() -> None:
    """Also one that is a subclass of ours, for which there is a sentence here."""

    @dataclass(frozen=True)
    class Own(LogitLensConfig):
        def describe(self) -> str:
            return "In my words."

    assert describe(Own(), 1) == "In my words."


def test_numbers_for_people() -> None:
    assert [percent(x) for x in (0.0, 0.004, 0.01, 0.934, 0.995, 1.0, math.nan)] == [
        "0%", "<1%", "1%", "93%", ">99%", "100%", "—",
    ]  # fmt: skip
    assert [rank(x) for x in (None, 0.0, 16.575)] == ["—", "0.0", "16.6"]
    assert readable_value({"source_language": "fr", "n": [1, 2], "x": None, "y": True}) == (
        "source language fr, n 1, 2, x none, y yes"
    )
