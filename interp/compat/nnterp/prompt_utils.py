"""nnterp's prompts: with the tokens that count as their answers (`prompt_utils`), and as targets of a patchscope."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm as progress_bar

from interp import prompts
from interp.compat.nnterp.nnsight_utils import Prompts, compute_next_token_probs
from interp.errors import InterpError
from interp.prompts.answers import AnswerTokens
from interp.prompts.chat import INSTRUCTION, Message, repeat_chat_prompt
from interp.prompts.given import listed
from interp.prompts.patchscopes import REPEATED_WORDS

__all__ = [
    "Prompt",
    "TargetPrompt",
    "TargetPromptBatch",
    "TokenizationError",
    "get_first_tokens",
    "it_repeat_prompt",
    "next_token_probs_unsqueeze",
    "repeat_prompt",
    "run_prompts",
]


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


_TASK = "Your task is to guess the next word in the sentence. You must answer with the next word only."
_REQUEST = "Guess the next word in the following sentence (answer only the next word): "


@dataclass
class TargetPrompt:
    """A target prompt.

    Arguments:
        prompt: its text.
        index_to_patch: the token that is written over, counted in this prompt's own tokens; from the end where
            negative.
    """

    prompt: str
    index_to_patch: int


@dataclass
class TargetPromptBatch:
    """Target prompts, each with its own token to write over.

    Arguments:
        prompts: their texts.
        index_to_patch: (prompt,), as in `TargetPrompt`.
    """

    prompts: list[str]
    index_to_patch: Tensor

    @classmethod
    def from_target_prompts(cls, prompts_: Sequence[TargetPrompt]) -> TargetPromptBatch:
        """A batch of given target prompts."""
        for given in prompts_:
            if not isinstance(given, TargetPrompt):
                raise InterpError(f"target prompts: expected texts or TargetPrompts, got {given!r:.80} among them.")
        return cls([p.prompt for p in prompts_], torch.tensor([int(p.index_to_patch) for p in prompts_], device="cpu"))

    @classmethod
    def from_target_prompt(cls, prompt: TargetPrompt, batch_size: int) -> TargetPromptBatch:
        """The same target prompt `batch_size` times."""
        return cls.from_target_prompts([prompt] * batch_size)

    @classmethod
    def from_prompts(
        cls, prompts: str | Sequence[str], index_to_patch: int | Sequence[int] | Tensor
    ) -> TargetPromptBatch:
        """A batch from texts and one index for all, or one each."""
        texts = listed(prompts)
        if not all(isinstance(text, str) for text in texts):
            raise InterpError(f"prompts: expected texts, got {prompts!r:.80}.")
        if isinstance(index_to_patch, int):
            indices = torch.tensor([index_to_patch] * len(texts), device="cpu")
        elif isinstance(index_to_patch, Tensor):
            indices = index_to_patch
        elif isinstance(index_to_patch, list | tuple):
            indices = torch.tensor(index_to_patch, device="cpu")
        else:
            raise InterpError(f"index_to_patch: expected an int, ints or a tensor, got {type(index_to_patch).__name__}")
        if len(indices) != len(texts):
            raise InterpError(f"index_to_patch: expected one for each of {len(texts)} prompts, got {len(indices)}.")
        return cls(texts, indices)

    @staticmethod
    def auto(
        target_prompt: str | TargetPrompt | Sequence[TargetPrompt | str] | TargetPromptBatch, batch_size: int
    ) -> TargetPromptBatch:
        """A batch of `batch_size` from any way of writing one; a text alone is written over at its last token.

        Raises:
            InterpError: not target prompts, or another number of them.
        """
        if isinstance(target_prompt, str):
            target_prompt = TargetPrompt(target_prompt, -1)
        if isinstance(target_prompt, TargetPrompt):
            return TargetPromptBatch.from_target_prompt(target_prompt, batch_size)
        if isinstance(target_prompt, list | tuple):
            each = [TargetPrompt(p, -1) if isinstance(p, str) else p for p in target_prompt]
            target_prompt = TargetPromptBatch.from_target_prompts(each)
        if not isinstance(target_prompt, TargetPromptBatch):
            raise InterpError(
                "target prompts: expected a text, a TargetPrompt, a list of them or a TargetPromptBatch, got "
                f"{type(target_prompt).__name__}."
            )
        if len(target_prompt) != batch_size:
            raise InterpError(
                f"expected one target prompt for each of {batch_size} sources, got {len(target_prompt)}. Give one "
                "TargetPrompt to use it for all."
            )
        return target_prompt

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, idx: int) -> TargetPrompt:
        return TargetPrompt(self.prompts[idx], self.index_to_patch[idx])  # type: ignore[arg-type]  # as in nnterp

    def __iter__(self) -> Iterator[TargetPrompt]:
        return (self[i] for i in range(len(self)))


def repeat_prompt(
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    index_to_patch: int = -1,
) -> TargetPrompt:
    """A prompt that repeats words, so that a model repeats what is written over its last token.

    Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102; see `interp.prompts.repeat_prompt`.

    Arguments:
        words: what is repeated; None: king, 1135, hello.
        rel: between a word and its repetition.
        sep: between pairs.
        placeholder: the text at the end.
        index_to_patch: the token that is written over.
    """
    repeated = prompts.repeat_prompt(REPEATED_WORDS if words is None else words, rel, sep, placeholder)
    return TargetPrompt(repeated.text, index_to_patch)


def it_repeat_prompt(
    tokenizer: Any,
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    complete_prompt: bool = True,
    add_user_instr: bool = True,
    use_system_prompt: bool = True,
) -> TargetPrompt:
    """`repeat_prompt` as a chat, for models that are tuned to follow instructions.

    A start token that the chat template writes is left out where the tokenizer adds it itself, so that a trace feeds
    it once.

    Arguments:
        tokenizer: a tokenizer with a chat template.
        words, rel, sep, placeholder: as in `repeat_prompt`.
        complete_prompt: the answer begins with the repeat prompt; else it is left to the model.
        add_user_instr: the user says what the task is, and the assistant agrees, before the prompt.
        use_system_prompt: the chat begins with a system turn.
    """
    system: Message = {"role": "system", "content": f"The user will provide you with a sentence. {_TASK}"}
    if add_user_instr:
        before = INSTRUCTION if use_system_prompt else INSTRUCTION[1:]
    else:
        before = (system,) if use_system_prompt else ()
    text = repeat_chat_prompt(
        tokenizer,
        REPEATED_WORDS if words is None else words,
        rel,
        sep,
        placeholder,
        before=before,
        introduction="" if before else _REQUEST,
        complete=complete_prompt,
    ).text
    start, start_id = tokenizer.bos_token, tokenizer.bos_token_id
    if start and text.startswith(start) and tokenizer(text).input_ids[:2] == [start_id, start_id]:
        text = text.removeprefix(start)
    return TargetPrompt(text, -1)
