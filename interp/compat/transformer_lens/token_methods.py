"""Texts to tokens and back, and the loss, as TransformerLens's models have them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from interp.compat.transformer_lens.utils import lm_cross_entropy_loss
from interp.errors import InterpError

__all__ = ["TokenMethods"]


class TokenMethods:
    """What a bridge does with its tokenizer."""

    tokenizer: Any
    cfg: Any
    standardized: Any

    def _encode(
        self, texts: str | list[str], prepend_bos: bool | None, padding_side: str | None, truncate: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (text, position), on the model's device."""
        several = [texts] if isinstance(texts, str) else texts
        if not several or not all(isinstance(text, str) for text in several):
            raise InterpError(f"expected a text or a list of texts, at least one; got {texts!r:.80}.")
        if padding_side not in (None, "left", "right"):
            raise InterpError(f"padding_side: expected 'left' or 'right', got {padding_side!r}.")
        rows = [
            self._ids(text, self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos) for text in several
        ]
        if truncate and self.cfg.n_ctx > 0:
            rows = [row[: self.cfg.n_ctx] for row in rows]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        left = (padding_side or self.tokenizer.padding_side) == "left"
        ids = torch.full((len(rows), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            columns = slice(longest - len(row), None) if left else slice(None, len(row))
            ids[index, columns], mask[index, columns] = torch.tensor(row, dtype=torch.long), 1
        device = self.standardized.device
        return ids.to(device), mask.to(device)

    def _ids(self, text: str, prepend_bos: bool) -> list[int]:
        """The tokens of one text, with the one that begins texts or without it; without one that ends them."""
        ids = list(self.tokenizer(text)["input_ids"])
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if self.cfg.tokenizer_appends_eos:
            while len(ids) > 1 and ids[-1] == eos:
                ids.pop()
        begins = self.cfg.tokenizer_prepends_bos
        if prepend_bos and not begins and bos is not None:
            return [bos, *ids]
        return ids[1:] if not prepend_bos and begins and ids and ids[0] == bos else ids

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """Token ids of texts.

        Arguments:
            input: one text or several.
            prepend_bos: begin with the token that begins texts; None: as `cfg.default_prepend_bos` says. Say False for
                a part of a prompt.
            padding_side: where shorter texts are padded; None: where the tokenizer pads.
            move_to_device: onto the model's device; False: on the CPU.
            truncate: leave out what is beyond `cfg.n_ctx`.

        Returns:
            (text, position), integers.
        """
        ids, _ = self._encode(input, prepend_bos, padding_side, truncate)
        return ids if move_to_device else ids.cpu()

    def to_string(self, tokens: list[int] | Tensor | np.ndarray) -> str | list[str]:
        """The text of token ids (position,); a list of texts for (batch, position)."""
        ids = torch.as_tensor(tokens)
        if ids.dim() > 2:
            raise InterpError(f"to_string: expected (position,) or (batch, position), got {tuple(ids.shape)}.")
        if ids.dim() == 2:
            return [self.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids.tolist()]
        return cast(str, self.tokenizer.decode(ids.reshape(-1).tolist(), clean_up_tokenization_spaces=False))

    def to_str_tokens(
        self,
        input: str | list[Any] | Tensor | np.ndarray,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> list[Any]:
        """The text of each token.

        Arguments:
            input: a text, or token ids (position,); or a list of these, which gives a list of lists.
            prepend_bos, padding_side: of texts, as in `to_tokens`.
        """
        if isinstance(input, list):
            return [self.to_str_tokens(one, prepend_bos, padding_side) for one in input]
        if isinstance(input, str):
            ids = self.to_tokens(input, prepend_bos, padding_side)[0]
        else:
            ids = torch.as_tensor(input).squeeze()
            if ids.dim() > 1:
                raise InterpError(f"to_str_tokens: expected the tokens of one text, got {tuple(ids.shape)}.")
            ids = ids.reshape(-1)
        return [self.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids.tolist()]

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            InterpError: it is several.
        """
        ids = self.to_tokens(string, prepend_bos=False)[0].tolist()
        if len(ids) != 1:
            raise InterpError(f"to_single_token: {string!r} is {len(ids)} tokens, {self.to_str_tokens(string, False)}.")
        return int(ids[0])

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token id."""
        return cast(str, self.to_str_tokens(torch.tensor([int_token]))[0])

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Tensor,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token is in a text or in token ids (position,) or (1, position).

        Arguments:
            single_token: the token's text or id.
            input: the text, or the ids.
            mode: "first" or "last", where it is there several times.
            prepend_bos, padding_side: of a text, as in `to_tokens`.

        Raises:
            InterpError: it is not there, or another mode.
        """
        if mode not in ("first", "last"):
            raise InterpError(f"mode: expected 'first' or 'last', got {mode!r}.")
        ids = self.to_tokens(input, prepend_bos, padding_side)[0] if isinstance(input, str) else input.reshape(-1)
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        found = (ids == token).nonzero().flatten().tolist()
        if not found:
            raise InterpError(f"get_token_position: {single_token!r} is not among {self.to_str_tokens(ids)}.")
        return int(found[0 if mode == "first" else -1])

    def loss_fn(
        self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Tensor:
        """The loss of predicting each next token; see `utils.lm_cross_entropy_loss`."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    def loss(self, input: Any, **kwargs: Any) -> Tensor:
        """The loss of a text, texts or token ids: `model(input, return_type="loss")`."""
        return cast(Tensor, self(input, return_type="loss", **kwargs))  # type: ignore[operator]
