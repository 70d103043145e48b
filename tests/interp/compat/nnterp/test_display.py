"""Figures and tables: what they hold, and that nothing opens unasked."""

from __future__ import annotations

import builtins
import importlib
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from interp.compat.nnterp import Prompt
from interp.compat.nnterp.display import plot_topk_tokens, prompts_to_df
from interp.errors import InterpError
from tests.tiny import tiny_tokenizer

PROBS = torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], [[0.7, 0.2, 0.1], [0.0, 0.25, 0.75]]])  # 2 prompts, 2 layers


def test_a_heat_map_holds_the_top_tokens_of_every_layer() -> None:
    tokenizer = tiny_tokenizer()
    figure = plot_topk_tokens(PROBS, tokenizer, k=2, title="a title", height=100, width=200, show=False)
    names = [f"'{token}'" for token in tokenizer.convert_ids_to_tokens([0, 1, 2])]
    assert isinstance(figure, go.Figure) and len(figure.data) == 2
    first, second = figure.data
    assert torch.allclose(torch.tensor(first.z), torch.tensor([[0.6, 0.3], [0.5, 0.3]]))
    assert [list(row) for row in first.text] == [[names[1], names[2]], [names[0], names[2]]]
    assert [list(row) for row in second.text] == [[names[0], names[1]], [names[2], names[1]]]
    assert first.hovertext[0][0] == f"ID: 1<br>Token: {names[1]}"
    assert (first.zmin, first.zmax) == (0, 1)
    assert figure.layout.title.text == "a title"
    assert (figure.layout.height, figure.layout.width) == (100, 400)


def test_ids_and_fewer_axes_and_more_prompts_than_columns() -> None:
    tokenizer = tiny_tokenizer()
    figure = plot_topk_tokens(PROBS[0], tokenizer, k=1, use_token_ids=True, show=False)
    assert [list(row) for row in figure.data[0].text] == [["1"], ["0"]]
    assert plot_topk_tokens(PROBS[0, 0], tokenizer, k=3, show=False).data[0].z[0][0] == pytest.approx(0.6)
    many = plot_topk_tokens(PROBS.repeat(2, 1, 1), tokenizer, k=1, show=False)
    assert len(many.data) == 4 and (many.layout.height, many.layout.width) == (600, 1200)
    assert many.layout.title.text == "Top 1 Tokens Heatmap"


def test_ids_that_the_tokenizer_does_not_have_are_shown_as_numbers() -> None:
    probs = torch.zeros(1, 500)
    probs[0, 450] = 1
    assert plot_topk_tokens(probs, tiny_tokenizer(), k=1, show=False).data[0].text[0][0] == "#450"


def test_the_figure_is_shown_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    figure = plot_topk_tokens(PROBS, tiny_tokenizer(), k=1)
    plot_topk_tokens(PROBS, tiny_tokenizer(), k=1, show=False)
    assert len(shown) == 1 and shown[0] is figure


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Path, int]] = []
    monkeypatch.setattr(go.Figure, "write_image", lambda figure, file, scale: written.append((file, scale)))
    plot_topk_tokens(PROBS, tiny_tokenizer(), k=1, file=str(tmp_path / "page.html"), show=False)
    assert "Heatmap" in (tmp_path / "page.html").read_text()
    plot_topk_tokens(PROBS, tiny_tokenizer(), k=1, file=tmp_path / "image.png", save_html=False, show=False)
    assert written == [(tmp_path / "image.png", 3)] and not (tmp_path / "image.html").exists()
    plot_topk_tokens(PROBS, tiny_tokenizer(), k=1, file=tmp_path / "image.png", show=False)
    assert (tmp_path / "image.html").exists()


def test_errors() -> None:
    with pytest.raises(InterpError, match=r"expected \(prompt, layer, vocabulary\)"):
        plot_topk_tokens(PROBS[None], tiny_tokenizer(), show=False)
    with pytest.raises(InterpError, match="k: expected 1 to 3"):
        plot_topk_tokens(PROBS, tiny_tokenizer(), k=4, show=False)


def test_a_table_has_a_column_for_each_prompt() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [
        Prompt("one", {"x": [0, 1], "y": [2]}, {"x": ["a", "b"], "y": "c"}),
        Prompt("two", {"x": [1], "y": [450]}),  # no words
    ]
    table = prompts_to_df(prompts, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens([0, 1, 2])
    assert list(table.columns) == [0, 1]
    assert table[0].to_dict() == {
        "prompt": "one", "x_string": ["a", "b"], "y_string": "c", "x_tokens": tokens[:2], "y_tokens": [tokens[2]],
    }  # fmt: skip
    assert table[1].dropna().to_dict() == {"prompt": "two", "x_tokens": [tokens[1]], "y_tokens": [None]}
    assert list(prompts_to_df(prompts[:1]).index) == ["prompt", "x_string", "y_string"]


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_plotly(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "interp.compat.nnterp.display")
    monkeypatch.setattr(builtins, "__import__", without_plotly)
    with pytest.raises(ImportError, match=r"pip install 'interpipe\[nnterp\]'"):
        importlib.import_module("interp.compat.nnterp.display")
