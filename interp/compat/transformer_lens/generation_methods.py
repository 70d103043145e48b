"""Generation as TransformerLens's models do it, by transformers' own; hooks act at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from interp.errors import InterpError
from interp.model.visits import generation, run_visiting

__all__ = ["GenerationMethods"]


class GenerationMethods:
    """What a bridge does to write on."""

    standardized: Any
    tokenizer: Any
    cfg: Any

    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self,
        input: str | list[str] | Tensor = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str | None = "input",
        verbose: bool = True,
        return_cache: bool = False,
        names_filter: Any = None,
        device: torch.device | str | None = None,
        stop_strings: str | list[str] | None = None,
        stopping_criteria: Any = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Write on from prompts. Hooks act in every step.

        Arguments:
            input: a text, texts, or token ids (batch, position).
            max_new_tokens: how many tokens at most.
            stop_at_eos: end a row with a token that ends texts; what stands behind it is that token.
            eos_token_id: which ones end it; None: the tokenizer's.
            do_sample: sample, with torch's random numbers; False: the most probable token each time.
            top_k, top_p: sample from the k most probable tokens, or from those that make up p; None: from all.
            temperature: of the sampling.
            freq_penalty: taken off a token's logit for each time that it stands there already.
            repetition_penalty: as transformers'; 1: none.
            use_past_kv_cache: keep keys and values; False: each step runs the whole text.
            prepend_bos, padding_side: of texts. Whatever the side, they are padded on the left here.
            return_type: "input": texts for texts, ids for ids; "str", "tokens".
            verbose: of TransformerLens; no bar is shown.
            return_cache: also an `ActivationCache` of the whole text, prompt and what was written, from one more pass;
                for one row.
            names_filter, device: of that cache, as in `run_with_cache`.
            stop_strings, stopping_criteria: what else ends a row, as transformers takes it.
            attention_mask: (batch, position), 0 at padding, of token ids.

        Returns:
            A text, texts, or (batch, position) ids, prompts included; with `return_cache` that and the cache.

        Raises:
            InterpError: no token that ends texts is known, no such return type, or a cache of several rows.
        """
        if return_type not in ("input", "str", "tokens", "tensor"):
            raise InterpError(f"return_type: expected 'input', 'str' or 'tokens', got {return_type!r}.")
        is_text = isinstance(input, str | list)
        further: dict[str, Any] = {}
        if stop_strings is not None:
            further |= {"stop_strings": stop_strings, "tokenizer": self.tokenizer}
        if stopping_criteria is not None:
            several = isinstance(stopping_criteria, list | tuple)
            further["stopping_criteria"] = StoppingCriteriaList(stopping_criteria if several else [stopping_criteria])
        if is_text:
            tokens, mask = self._encode(input, prepend_bos, "left")  # type: ignore[attr-defined]
        else:
            assert isinstance(input, Tensor)
            tokens = (input if input.dim() == 2 else input[None]).to(self.standardized.device)
            mask = torch.ones_like(tokens) if attention_mask is None else attention_mask.to(tokens.device)
        if return_cache and len(tokens) != 1:
            raise InterpError(f"return_cache: expected one prompt, got {len(tokens)}. Call run_with_cache on the ids.")
        ends = self._ends(eos_token_id) if stop_at_eos else None
        processors = LogitsProcessorList([_FrequencyPenalty(freq_penalty)] if freq_penalty else [])
        sampling: dict[str, Any] = dict(
            temperature=temperature, top_k=top_k or 0, top_p=1.0 if top_p is None else top_p
        )
        ids = run_visiting(
            self.standardized,
            self._visits((0, self.cfg.n_layers), every_step=True),  # type: ignore[attr-defined]
            fn=generation(self.standardized),
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample and temperature > 0,
            repetition_penalty=repetition_penalty,
            logits_processor=processors,
            use_cache=use_past_kv_cache,
            eos_token_id=ends,
            pad_token_id=ends[0] if ends else self.tokenizer.pad_token_id or 0,
            **(sampling if do_sample and temperature > 0 else {}),
            **further,
        )
        written: Any = ids
        if return_type == "str" or (return_type == "input" and is_text):
            texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids.tolist()]
            written = texts[0] if isinstance(input, str) or len(texts) == 1 else texts
        if not return_cache:
            return written
        cached = self.run_with_cache(ids, names_filter=names_filter, device=device)  # type: ignore[attr-defined]
        return written, cached[1]

    def _ends(self, given: int | Sequence[int] | None) -> list[int]:
        if given is None:
            given = self.tokenizer.eos_token_id
        if given is None:
            raise InterpError("stop_at_eos: the tokenizer has no token that ends texts. Pass eos_token_id.")
        return [given] if isinstance(given, int) else list(given)


class _FrequencyPenalty(LogitsProcessor):
    """Takes a number off a token's logit for each time that it stands in the text."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        counts = torch.zeros_like(scores).scatter_add_(1, input_ids, torch.ones_like(input_ids, dtype=scores.dtype))
        return scores - self.penalty * counts
