"""nnterp's `prompt_utils`: prompts with the tokens that count as their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm as progress_bar

from interp.compat.nnterp.collecting import Prompts, compute_next_token_probs
from interp.errors import InterpError
from interp.prompts.answers import AnswerTokens
from interp.prompts.given import listed

__all__ = ["Prompt", "TokenizationError", "get_first_tokens", "next_token_probs_unsqueeze", "run_prompts"]

_ANCHOR = "\N{PEAR}"  # a character that no tokenizer merges with what follows


class TokenizationError(InterpError):
    """A word has no token that tells it apart."""


def get_first_tokens(
    words: str | Sequence[str], llm_or_tokenizer: Any, use_hacky_implementation: bool = False
) -> list[int]:
    """The first token of each word, as it is inside a text, with and without a space before it.

    Arguments:
        words: one or several. Spaces around a word are left out of account; a word of spaces stands for itself.
        llm_or_tokenizer: a transformers tokenizer, or a model that has one.
        use_hacky_implementation: without a space before the word only.

    Returns:
        Distinct token ids, in the order of the words.

    Raises:
        TokenizationError: a word has no such token.
    """
    tokenizer = getattr(llm_or_tokenizer, "tokenizer", None) or llm_or_tokenizer
    answers = AnswerTokens(tokenizer)
    found: list[int] = []
    for word in [words] if isinstance(words, str) else words:
        if use_hacky_implementation or not word.strip():
            found.append(_behind_anchor(tokenizer, word))
            continue
        try:
            found += answers.of_word(word)
        except InterpError as error:
            raise TokenizationError(str(error)) from error
    return list(dict.fromkeys(found))


def _behind_anchor(tokenizer: Any, word: str) -> int:
    """The first token of a word right behind another character."""
    anchor = tokenizer(_ANCHOR, add_special_tokens=False).input_ids
    ids = tokenizer(_ANCHOR + word, add_special_tokens=False).input_ids
    if ids[: len(anchor)] != anchor or len(ids) == len(anchor):
        raise TokenizationError(f"the tokenizer gives {word!r} no token of its own behind another character.")
    first: int = ids[len(anchor)]
    return first


@dataclass
class Prompt:
    """A prompt, and by target the tokens whose probability is followed.

    Arguments:
        prompt: its text.
        target_tokens: target -> token ids; their probabilities are summed.
        target_strings: target -> the words that they are first tokens of.
    """

    prompt: str
    target_tokens: dict[str, list[int]]
    target_strings: Mapping[str, str | Sequence[str]] | None = None

    @classmethod
    def from_strings(
        cls, prompt: str, target_strings: Mapping[str, str | Sequence[str]] | Sequence[str] | str, tokenizer: Any
    ) -> Prompt:
        """A prompt whose target tokens are the first tokens of words.

        Arguments:
            prompt: its text.
            target_strings: target -> word or words; words alone are the target `target`.
            tokenizer: a transformers tokenizer, or a model that has one.

        Raises:
            TokenizationError: a word has no first token.
        """
        by_target = target_strings if isinstance(target_strings, Mapping) else {"target": target_strings}
        tokens = {target: get_first_tokens(words, tokenizer) for target, words in by_target.items()}
        return cls(prompt, tokens, by_target)

    def has_no_collisions(self, ignore_targets: str | Sequence[str] | None = None) -> bool:
        """Whether no token belongs to two targets, or twice to one.

        Arguments:
            ignore_targets: targets that are left out of account.
        """
        ignored = [ignore_targets] if isinstance(ignore_targets, str) else ignore_targets or []
        tokens = [token for target, ids in self.target_tokens.items() if target not in ignored for token in ids]
        return len(tokens) == len(set(tokens))

    def get_target_probs(self, probs: Tensor, layer: int | None = None) -> dict[str, Tensor]:
        """The summed probability of each target's tokens.

        Arguments:
            probs: (prompt, layer, vocabulary).
            layer: an index of its layer axis; None: all.

        Returns:
            target -> (prompt, layer), or (prompt,) for one layer; float32, on the CPU.
        """
        sums = {target: probs[:, :, ids].float().sum(dim=2).cpu() for target, ids in self.target_tokens.items()}
        return sums if layer is None else {target: values[:, layer] for target, values in sums.items()}

    @torch.no_grad()
    def run(self, nn_model: Any, get_probs: Callable[[Any, str], Tensor]) -> dict[str, Tensor]:
        """`get_target_probs` of what `get_probs(nn_model, prompt)` gives."""
        return self.get_target_probs(get_probs(nn_model, self.prompt))


def next_token_probs_unsqueeze(nn_model: Any, prompt: Prompts, remote: bool | str = False, **_kwargs: Any) -> Tensor:
    """`compute_next_token_probs` with a layer axis: (prompt, 1, vocabulary). Other keywords are of no use."""
    return compute_next_token_probs(nn_model, prompt, remote=remote).unsqueeze(1)


@torch.no_grad()
def run_prompts(
    nn_model: Any,
    prompts: Sequence[Prompt],
    batch_size: int = 32,
    get_probs_func: Callable[..., Tensor] | None = None,
    func_kwargs: Mapping[str, Any] | None = None,
    remote: bool | str = False,
    tqdm: Callable[..., Any] | None = progress_bar,
) -> dict[str, Tensor]:
    """The probability of each target of each prompt. Memory goes with the batch, not with the number of prompts.

    Arguments:
        nn_model: the model.
        prompts: all with the same targets.
        batch_size: prompts that are given to `get_probs_func` at once.
        get_probs_func: (model, texts, remote=..., **func_kwargs) -> probabilities (prompt, layer, vocabulary), such as
            `logit_lens`; None: the next token's.
        func_kwargs: further keyword arguments of it.
        remote: run on NDIF.
        tqdm: wraps the loop over batches, to show progress; None: nothing is shown.

    Returns:
        target -> (prompt, layer), float32, on the CPU; nothing for no prompts.

    Raises:
        InterpError: prompts with different targets.
    """
    prompts = listed(prompts)
    if not prompts:
        return {}
    if not all(isinstance(prompt, Prompt) for prompt in prompts):
        raise InterpError(f"prompts: expected `Prompt`s, got {prompts!r:.80}.")
    targets = list(prompts[0].target_tokens)
    for prompt in prompts:
        if set(prompt.target_tokens) != set(targets):
            raise InterpError(f"expected targets {targets} in every prompt, got {list(prompt.target_tokens)}.")
    get_probs = get_probs_func or next_token_probs_unsqueeze
    starts = range(0, len(prompts), batch_size)
    sums: dict[str, list[Tensor]] = {target: [] for target in targets}
    for start in starts if tqdm is None else tqdm(starts, desc="Running prompts"):
        batch = prompts[start : start + batch_size]
        probs = get_probs(nn_model, [prompt.prompt for prompt in batch], remote=remote, **(func_kwargs or {}))
        for row, prompt in zip(probs, batch, strict=True):  # (layer, vocabulary)
            for target in targets:
                sums[target].append(row[:, prompt.target_tokens[target]].float().sum(dim=1))
    return {target: torch.stack(rows).cpu() for target, rows in sums.items()}
