"""The small functions that scripts take from `transformer_lens.utilities` (before version 4, `transformer_lens.utils`).

Those for caches, hooks, patching and attribution are here; those that train, download or plot are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from interp.compat.transformer_lens.names import get_act_name
from interp.compat.transformer_lens.slices import Slice, SliceInput
from interp.errors import InterpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Slice",
    "SliceInput",
    "filter_dict_by_prefix",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_device",
    "get_offset_position_ids",
    "is_lower_triangular",
    "is_square",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logits_to_df",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "test_prompt",
    "to_numpy",
    "transpose",
]


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor, list, tuple or number as an array; bfloat16 as float32, which numpy has.

    Raises:
        InterpError: it is something else.
    """
    if isinstance(tensor, Tensor):
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(tensor, np.ndarray | list | tuple | int | float | bool | str):
        return np.asarray(tensor)
    raise InterpError(f"to_numpy takes a tensor, an array, a list, a tuple or a number; got a {type(tensor).__name__}")


def get_corner(tensor: Tensor, n: int = 3) -> Tensor:
    """The first n places along every axis."""
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def transpose(tensor: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return tensor.transpose(-1, -2)


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """Without a first axis of length 1; any other tensor as it is."""
    return tensor[0] if tensor.ndim and tensor.shape[0] == 1 else tensor


def is_square(x: Tensor) -> bool:
    """Whether it is a matrix with as many rows as columns."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether it is a square matrix with nothing above its diagonal."""
    return is_square(x) and x.equal(x.tril())


def get_cumsum_along_dim(tensor: Tensor, dim: int, reverse: bool = False) -> Tensor:
    """Sums of all places up to each one, or, reversed, from each one on."""
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def repeat_along_head_dimension(tensor: Tensor, n_heads: int, clone_tensor: bool = True) -> Tensor:
    """(batch, position, d_model) as (batch, position, head, d_model), the same for each head.

    Arguments:
        tensor: what is repeated.
        n_heads: how often.
        clone_tensor: False: a view, whose heads are one memory.
    """
    repeated = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], n_heads, tensor.shape[-1])
    return repeated.clone() if clone_tensor else repeated


def filter_dict_by_prefix(dictionary: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with a prefix and a dot, without these."""
    start = prefix if prefix.endswith(".") else f"{prefix}."
    return {name.removeprefix(start): value for name, value in dictionary.items() if name.startswith(start)}


def get_device() -> torch.device:
    """The graphics processor if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def get_attention_mask(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, prepend_bos: bool) -> Tensor:
    """1 at tokens and 0 at padding, on the tokenizer's padding side.

    Arguments:
        tokenizer: whose padding it is.
        tokens: (batch, position).
        prepend_bos: every row begins with the BOS token. Where that is also the padding token, the last one before the
            text counts as a token.
    """
    mask = torch.ones_like(tokens)
    if tokenizer.pad_token_id is None:
        return mask
    padding = tokens == tokenizer.pad_token_id
    if tokenizer.padding_side == "right":
        return mask.masked_fill(padding.flip(-1).cumprod(-1).flip(-1).bool(), 0)
    leading = padding.cumprod(-1).bool()
    if prepend_bos and tokenizer.pad_token_id == tokenizer.bos_token_id:
        leading &= leading.roll(-1, -1)  # not the last of them
        leading[:, -1] = False
    return mask.masked_fill(leading, 0)


def get_offset_position_ids(past_kv_pos_offset: int, attention_mask: Tensor) -> Tensor:
    """Positions counted from each row's first token.

    Arguments:
        past_kv_pos_offset: positions that are in the cache, and left out of the result.
        attention_mask: (batch, position), of the cache and what is new.
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past_kv_pos_offset:]


def lm_cross_entropy_loss(
    logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
) -> Tensor:
    """Cross-entropy of each next token.

    Arguments:
        logits: (batch, position, vocabulary).
        tokens: (batch, position).
        attention_mask: (batch, position); where it is 0, and where the next one is, nothing counts.
        per_token: (batch, position - 1) in place of the mean; 0 where nothing counts.

    Raises:
        InterpError: the mask is not as long as the tokens.
    """
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    counts = torch.ones_like(losses, dtype=torch.bool)
    if attention_mask is not None:
        if attention_mask.shape != tokens.shape:
            shapes = f"{tuple(attention_mask.shape)} and {tuple(tokens.shape)}"
            raise InterpError(f"attention_mask and tokens have one shape (batch, position); got {shapes}")
        counts = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
        losses = losses.masked_fill(~counts, 0)
    return losses if per_token else losses.sum() / counts.sum()


def lm_accuracy(logits: Tensor, tokens: Tensor, per_token: bool = False) -> Tensor:
    """How often the likeliest next token is the next token.

    Arguments:
        logits: (batch, position, vocabulary).
        tokens: (batch, position).
        per_token: (batch, position - 1) of True and False in place of the share.
    """
    matches = logits.argmax(dim=-1)[:, :-1] == tokens[:, 1:]
    return matches if per_token else matches.float().mean()


def logits_to_df(
    logits: Tensor, tokenizer: PreTrainedTokenizerBase | None = None, top_k: int | None = None
) -> pd.DataFrame:
    """The likeliest tokens of one position.

    Arguments:
        logits: (vocabulary).
        tokenizer: for the column of tokens; None: none.
        top_k: how many; None: all.

    Returns:
        A row a token, the likeliest first: `token_index`, `token_string`, `logit`, `log_prob`, `probability`.
    """
    found = logits.float().log_softmax(dim=-1).sort(descending=True)
    ids = found.indices[:top_k].tolist()
    columns: dict[str, Any] = {"token_index": ids}
    if tokenizer is not None:
        columns["token_string"] = [tokenizer.decode([token]) for token in ids]
    columns["logit"] = logits[found.indices[:top_k]].tolist()
    columns["log_prob"] = found.values[:top_k].tolist()
    columns["probability"] = found.values[:top_k].exp().tolist()
    return pd.DataFrame(columns)


def test_prompt(
    prompt: str,
    answer: str | Sequence[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how likely a model finds an answer, and what it finds likelier.

    Arguments:
        prompt: the text before the answer.
        answer: the answer; of several, the first token of each is compared.
        model: a TransformerBridge.
        prepend_space_to_answer: put a space before an answer that has none.
        print_details: also print the tokens, and the likeliest ones.
        prepend_bos: put the BOS token first; None: as the model's config says.
        top_k: how many of the likeliest.
    """
    single = isinstance(answer, str)
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [each if each.startswith(" ") else f" {each}" for each in answers]
    start = model.to_tokens(prompt, prepend_bos=prepend_bos)
    ends = [model.to_tokens(each, prepend_bos=False)[0] for each in answers]
    ends = ends if single else [end[:1] for end in ends]
    tokens = torch.stack([torch.cat([start[0], end]) for end in ends])
    words = [model.to_str_tokens(end, prepend_bos=False) for end in ends]
    if print_details:
        print("Tokenized prompt:", model.to_str_tokens(prompt, prepend_bos=prepend_bos))
        print("Tokenized answer:" if single else "Tokenized answers:", words[0] if single else words)
    with torch.no_grad():
        logits = model(tokens)
    ranks = []
    for place in range(len(ends[0])):
        given = logits[:, start.shape[1] + place - 1]
        expected = torch.stack([end[place] for end in ends])
        scores = given.gather(1, expected[:, None])
        rank = (given > scores).sum(1).tolist()
        ranks.append([(word[place], each) for word, each in zip(words, rank, strict=True)])
        if print_details:
            probabilities = given.softmax(-1)
            print("Performance on answer token:" if single else "Performance on answer tokens:")
            for row, (word, each) in enumerate(ranks[-1]):
                chance = probabilities[row, expected[row]].item()
                print(f"Rank: {each: <8} Logit: {scores[row].item():5.2f} Prob: {chance:6.2%} Token: |{word}|")
            for number, (score, token) in enumerate(
                zip(*(each.tolist() for each in given[0].topk(top_k)), strict=True)
            ):
                chance = probabilities[0, token].item()
                print(
                    f"Top {number}th token. Logit: {score:5.2f} Prob: {chance:6.2%} Token: |{model.to_string(token)}|"
                )
    print("Ranks of the answer tokens:", [each[0] for each in ranks] if single else ranks)


test_prompt.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for one of its own
