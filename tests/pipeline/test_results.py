"""What the default run must show on the embedded model: the results of the papers that it reproduces.

Dumas et al. 2025 (arXiv 2411.08745): patching the last token layer by layer switches the output language before the
concept (E1); patching the query word puts its concept, not its language, into the target prompt (E2).
nostalgebraist 2020, Wendler et al. 2024 (arXiv 2402.10588): the logit lens sees the answer come up over the layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from tests.pipeline.conftest import Run

LAYERS = 8


@pytest.fixture(scope="module")
def curves(repository: Path, pipeline: Run) -> pandas.DataFrame:
    """The probability curves of the default run: one column a (lens, group), one row a layer."""
    folder = repository / "outputs" / "results"
    ran = pipeline(f"hydra.run.dir={folder}", "tracking=off")
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads((folder / "metrics.json").read_text())) == {
        "logit_lens", "patchscope", "patchscope_query", "patchscope_query_mean",
    }  # fmt: skip
    rows = pandas.read_parquet(folder / "curves.parquet").query("metric == 'probability'")
    return rows.pivot(index="layer", columns=["lens", "group"], values="mean")


def test_patching_the_last_token_switches_the_language_before_the_concept(curves: pandas.DataFrame) -> None:
    e1 = curves["patchscope"]
    regimes = [
        "target_concept_target_language",
        "target_concept_source_language",
        "source_concept_source_language",
    ]
    for group in regimes:
        assert e1[group].max() > 0.9, group
    leaders = e1[regimes].idxmax(axis=1).tolist()
    assert sorted(leaders, key=regimes.index) == leaders, f"regimes out of order: {leaders}"
    assert set(leaders) == set(regimes)
    # the source's concept is hardly ever said in the target's language: the language has switched by then
    assert e1["source_concept_target_language"].max() < 0.5


@pytest.mark.parametrize("lens", ["patchscope_query", "patchscope_query_mean"])
def test_patching_the_query_word_carries_the_concept_not_the_language(curves: pandas.DataFrame, lens: str) -> None:
    e2 = curves[lens]
    source, target = e2["source_concept_target_language"], e2["target_concept_target_language"]
    assert source[0] > 0.9
    assert target[0] < 0.1
    assert target[LAYERS - 1] > 0.9
    assert source[LAYERS - 1] < 0.1
    ahead = (source > target).tolist()
    assert ahead == sorted(ahead, reverse=True), "one crossing"
    assert e2["source_concept_source_language"].max() < 0.1, "the language is the target prompt's own throughout"


def test_the_logit_lens_sees_the_answer_rise_to_the_models_own(curves: pandas.DataFrame) -> None:
    answer = curves["logit_lens"]["answer"]
    assert answer[0] < 0.05
    assert answer[LAYERS - 1] > 0.9
    assert (answer.diff().dropna() > -0.02).all()
