"""Small things: versions, model classes, tuples, scans that fall back on traces."""

from __future__ import annotations

import logging
import types
from typing import Any

import nnsight
import pytest
import torch
import transformers

from interp.compat.nnterp import utils
from interp.compat.nnterp.logging import logger
from tests.interp.compat.nnterp.models import standardized


def test_versions_and_classes() -> None:
    assert nnsight.__version__ == utils.NNSIGHT_VERSION
    assert transformers.__version__ == utils.TRANSFORMERS_VERSION
    assert utils.TraceTensor is torch.Tensor
    for name in ("OPTForCausalLM", "GPTJForCausalLM", "DbrxForCausalLM", "Qwen3ForCausalLM"):
        assert getattr(utils, name) is getattr(transformers, name)
    with pytest.raises(AttributeError):
        utils.NothingForCausalLM  # noqa: B018


def test_a_class_that_transformers_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "transformers", types.SimpleNamespace())
    assert utils.OPTForCausalLM is utils.ArchitectureNotFound


def test_small_things(monkeypatch: pytest.MonkeyPatch) -> None:
    assert utils.unpack_tuple((1, 2)) == 1 and utils.unpack_tuple(3) == 3
    assert utils.dummy_inputs()["input_ids"].tolist() == [[0, 1, 1]]
    assert utils.DummyCache().to_legacy_cache() is None  # type: ignore[func-returns-value]
    assert not utils.is_notebook()
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(utils.sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert utils.is_notebook()


def test_source_is_shown_as_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    module = types.SimpleNamespace(Markdown=lambda text: ("markdown", text), display=shown.append)
    monkeypatch.setitem(utils.sys.modules, "IPython.display", module)
    monkeypatch.setitem(utils.sys.modules, "IPython", types.SimpleNamespace(display=module))
    utils.display_source("x = 1")
    assert shown == [("markdown", "```py\nx = 1\n```")]


def test_a_scan_gives_shapes() -> None:
    model = standardized("llama")
    seen: list[Any] = []
    assert utils.try_with_scan(model, lambda: seen.append(tuple(model.layers_output[0].shape)), ValueError("no"), True)
    assert seen == [(1, 3, 32)]


def test_where_a_scan_fails_a_trace_is_tried() -> None:
    model = standardized("llama")

    def only_real() -> None:
        value = model.layers_output[0]
        if type(value) is not torch.Tensor:
            raise TypeError("a fake tensor")

    with pytest.warns(UserWarning, match="a fake tensor"):
        assert not utils.try_with_scan(model, only_real, ValueError("no"), True)
    assert not utils.try_with_scan(model, only_real, ValueError("no"), True, warn_if_scan_fails=False)
    with pytest.raises(TypeError, match="a fake tensor"):
        utils.try_with_scan(model, only_real, ValueError("no"), True, errors_to_raise=(TypeError,))


def test_where_both_fail_the_users_error_comes() -> None:
    model = standardized("llama")

    def failing() -> None:
        raise TypeError("never")

    with pytest.raises(ValueError, match="no"):
        utils.try_with_scan(model, failing, ValueError("no"), True, warn_if_scan_fails=False)


def test_the_logger_is_nnterps_and_is_left_to_the_program() -> None:
    assert logger is logging.getLogger("nnterp")
    assert not logger.handlers and logger.level == logging.NOTSET
