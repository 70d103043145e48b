"""A lens or a task is known by the import of its class, and its config names the class that computes it as a text."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

import pipeline.stages.lens.kinds as kinds
import pipeline.tasks
from interp.errors import InterpError
from pipeline.config.lens import LensConfig, lenses_from
from pipeline.config.section import ConfigError, section_from
from pipeline.config.task import TaskConfig


@pytest.mark.parametrize("kind", [kind for kind in LensConfig.kinds if kind.isidentifier()])
def test_each_kind_names_a_class_that_the_stage_depends_on(kind: str) -> None:
    """The text alone tells nobody what the stage `lens` depends on: its module is imported by the kinds' face too."""
    found = kinds.stage_class(LensConfig.kinds[kind])
    assert found.__module__ in sys.modules and found.__module__.startswith("pipeline.stages.lens.kinds.")
    assert getattr(kinds, found.__module__.rpartition(".")[2])


def test_a_class_of_the_users_own_is_known_once_it_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LensConfig, "kinds", dict(LensConfig.kinds))
    monkeypatch.setattr(TaskConfig, "kinds", dict(TaskConfig.kinds))

    @dataclass(frozen=True)
    class OwnLens(LensConfig):
        stage: ClassVar[str] = "my_lab.nowhere:Own"

        kind: str = "own"
        strength: int = 3

    @dataclass(frozen=True)
    class OwnTask(TaskConfig):
        file_key: ClassVar[str] = "source"

        kind: str = "own"
        source: str = "x"

    assert lenses_from({"mine": {"kind": "own", "strength": 4}}) == {"mine": OwnLens(strength=4)}
    assert section_from(TaskConfig, {"kind": "own"}, "task") == OwnTask()
    with pytest.raises(ConfigError, match=r"^lens\.mine: unknown key 'strenght'.* Did you mean 'strength'"):
        lenses_from({"mine": {"kind": "own", "strenght": 4}})
    with pytest.raises(ConfigError, match=r"^lens\.mine\.kind: unknown lens 'owm'.* Did you mean 'own'"):
        lenses_from({"mine": {"kind": "owm"}})
    with pytest.raises(InterpError, match=r"^OwnLens\.stage: cannot import 'my_lab.nowhere:Own'"):
        kinds.stage_class(OwnLens)
    monkeypatch.setattr(OwnLens, "stage", "pipeline.files:digest_of")
    with pytest.raises(InterpError, match=r"^OwnLens\.stage: expected MODULE:CLASS"):
        kinds.stage_class(OwnLens)
    with pytest.raises(ConfigError, match=r"there is a lens of kind 'logit_lens' already.*Give it another kind"):
        type("Twin", (LensConfig,), {"kind": "logit_lens"})


def test_a_kind_is_read_by_its_rules() -> None:
    assert set(pipeline.tasks.TaskConfig.kinds) >= {"translation", "cloze", "next_token", "attribute_extraction"}
    lens = lenses_from({"a": {"kind": "patchscope", "patch": "from_layer", "layers": "1"}})["a"]
    reads = lens.reads()
    assert reads is not None and reads.needed([1], 4) == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"^lens\.a\.patch: expected one of one_layer, from_layer, got 'one_layr'"):
        lenses_from({"a": {"kind": "patchscope", "patch": "one_layr"}})
