"""nnterp's `display`: figures of top tokens, and a table of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from interp.compat.nnterp.prompt_utils import Prompt
from interp.errors import InterpError

try:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ImportError as error:
    message = "nnterp's figures need plotly: pip install 'interpipe[nnterp]', or pip install plotly."
    raise ImportError(message) from error

__all__ = ["plot_topk_tokens", "prompts_to_df"]

_MAX_COLUMNS = 3


def plot_topk_tokens(
    next_token_probs: Tensor,
    tokenizer: Any,
    k: int = 4,
    title: str | None = None,
    use_token_ids: bool = False,
    file: str | Path | None = None,
    save_html: bool = True,
    height: int = 300,
    width: int = 400,
    show: bool = True,
) -> go.Figure:
    """A heat map of the most probable tokens of every layer, one for each prompt.

    Arguments:
        next_token_probs: probabilities (prompt, layer, vocabulary), (layer, vocabulary) or (vocabulary,).
        tokenizer: what the tokens are called by; ids that it does not have are shown as numbers.
        k: how many tokens.
        title: above the figure.
        use_token_ids: show ids in place of tokens.
        file: where to save the figure: `.html`, or an image, which needs the package kaleido.
        save_html: beside an image, save a page of the same name.
        height, width: of one heat map, in pixels.
        show: open the figure (plotly's `show`).

    Raises:
        InterpError: another shape, or k out of range.
    """
    if not 1 <= next_token_probs.dim() <= 3:
        raise InterpError(f"expected (prompt, layer, vocabulary), got shape {tuple(next_token_probs.shape)}.")
    probs = next_token_probs[(None,) * (3 - next_token_probs.dim())].float()
    num_prompts, _, vocabulary = probs.shape
    if not 1 <= k <= vocabulary:
        raise InterpError(f"k: expected 1 to {vocabulary} (the vocabulary), got {k}.")
    columns = min(_MAX_COLUMNS, num_prompts)
    rows = math.ceil(num_prompts / columns)
    figure = make_subplots(rows=rows, cols=columns, vertical_spacing=0.1, horizontal_spacing=0.05)
    for prompt, top in enumerate(zip(*probs.topk(k, dim=-1), strict=True)):
        values, ids = top[0].tolist(), top[1].tolist()
        place = {"row": prompt // columns + 1, "col": prompt % columns + 1}
        figure.add_trace(_heat_map(values, ids, tokenizer, use_token_ids), **place)
        figure.update_xaxes(title_text="Tokens", **place)
        figure.update_yaxes(title_text="Layers", **place)
    figure.update_layout(
        title=title or f"Top {k} Tokens Heatmap", height=height * rows, width=width * columns, showlegend=False
    )
    if file is not None:
        path = Path(file)
        if path.suffix != ".html":
            figure.write_image(path, scale=3)
        if path.suffix == ".html" or save_html:
            figure.write_html(path.with_suffix(".html"))
    if show:
        figure.show()
    return figure


def _heat_map(values: list[list[float]], ids: list[list[int]], tokenizer: Any, use_token_ids: bool) -> go.Heatmap:
    names = [[_name(tokenizer, token_id) for token_id in row] for row in ids]
    return go.Heatmap(
        z=values,
        x=list(range(len(ids[0]))),
        y=list(range(len(ids))),
        text=[[str(token_id) for token_id in row] for row in ids] if use_token_ids else names,
        texttemplate="%{text}",
        colorscale="RdBu_r",
        colorbar={"title": "Probability", "thickness": 15, "len": 0.9},
        zmin=0,
        zmax=1,
        hovertext=[
            [f"ID: {token_id}<br>Token: {name}" for token_id, name in zip(id_row, name_row, strict=True)]
            for id_row, name_row in zip(ids, names, strict=True)
        ],
        hovertemplate="Layer: %{y}<br>%{hovertext}<br>Probability: %{z}<extra></extra>",
    )


def _name(tokenizer: Any, token_id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    return f"#{token_id}" if token is None else f"'{token}'"


def prompts_to_df(prompts: Sequence[Prompt], tokenizer: Any = None) -> pd.DataFrame:
    """Prompts and their targets as a table.

    Arguments:
        prompts: the prompts.
        tokenizer: what the tokens are called by; None: no rows of tokens.

    Returns:
        A column for each prompt; rows `prompt`, and by target `NAME_string` (where known) and `NAME_tokens`.
    """
    columns = {}
    for number, prompt in enumerate(prompts):
        column: dict[str, Any] = {"prompt": prompt.prompt}
        for target, words in (prompt.target_strings or {}).items():
            column[f"{target}_string"] = words
        for target, ids in prompt.target_tokens.items() if tokenizer is not None else ():
            column[f"{target}_tokens"] = [tokenizer.convert_ids_to_tokens(token_id) for token_id in ids]
        columns[number] = column
    return pd.DataFrame.from_dict(columns)
