"""What a patched run says: metrics of the logits at each prompt's last token, one number an example.

Each is differentiable, so that gradients of it can be taken too (attribution patching). Per example, before any mean: a
mean of ratios or of log-probabilities over examples hides those on which a patch fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from interp.batching import how_many
from interp.errors import InterpError, nearest
from interp.prompts.given import is_ids
from interp.readout import TokenGroups, logits_of

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["METRICS", "Answers", "Metric", "Metrics", "answer_groups"]

METRICS = ("logit_difference", "probability", "log_probability", "kl")
_OF_WRONG, _OF_ANSWERS = ("logit_difference",), ("logit_difference", "probability", "log_probability")

Metric = str | Callable[..., Tensor]
"""A name of `METRICS`; or a function of logits (row, vocabulary) float, and if it takes a second argument of the number
of each row's example (row,), that gives one number a row."""
Answers = Sequence[Any]
"""Per example: the right answer, or (right, wrong); each a text that is one token, a token id, or several of these."""


@dataclass(frozen=True)
class Metrics:
    """One or several metrics of last-token logits.

    | name | of each example |
    |---|---|
    | `logit_difference` | logit of the right answer minus that of the wrong one (of several tokens: their mean) |
    | `probability` | probability of the right answer, that of all its tokens together |
    | `log_probability` | its logarithm, nats |
    | `kl` | KL(clean run || this run), nats; 0 is the clean run itself |

    Arguments:
        model: the model.
        functions: name -> the metric; None: one of `METRICS`.
        groups: per example the tokens of the right and the wrong answer; None: no metric needs them.
    """

    model: StandardizedTransformer
    functions: dict[str, Callable[..., Tensor] | None]
    groups: TokenGroups | None

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        metric: Metric | Sequence[Metric] | Mapping[str, Metric],
        answers: Answers | None,
        examples: int,
    ) -> Metrics:
        """The metrics that a user names or gives.

        Arguments:
            model: the model.
            metric: one or several, or name -> metric. A function without a name is called by its own.
            answers: per example; needed by all named metrics but `kl`.
            examples: how many there are.

        Raises:
            InterpError: an unknown metric, the same name twice, or answers that are missing or do not fit.
        """
        if isinstance(metric, Mapping):
            named = list(metric.items())
        else:
            several = [metric] if isinstance(metric, str) or callable(metric) else list(metric)
            named = [(one if isinstance(one, str) else getattr(one, "__name__", "metric"), one) for one in several]
        if not named:
            raise InterpError(f"metric: expected at least one, e.g. {METRICS[0]}, got none.")
        functions: dict[str, Callable[..., Tensor] | None] = {}
        kinds: set[str] = set()
        for name, one in named:
            if not callable(one) and one not in METRICS:
                raise InterpError(f"metric: unknown {one!r}.{nearest(str(one), METRICS)} Or pass a function of logits.")
            if not callable(one) and name != one:
                raise InterpError(f"metric: {one!r} is called by its own name, got the name {name!r} for it.")
            if name in functions:
                raise InterpError(f"metric: {name!r} is given twice. Name them: metric={{'one': ..., 'other': ...}}.")
            functions[name] = one if callable(one) else None
            kinds |= set() if callable(one) else {one}
        needed = [name for name in _OF_ANSWERS if name in kinds]
        if not needed:
            if answers is not None:
                raise InterpError(f"answers: no metric uses them; {', '.join(_OF_ANSWERS)} would.")
            return cls(model, functions, None)
        if answers is None:
            raise InterpError(
                f"metric {needed[0]!r} needs answers: per example the right one, and the wrong one, e.g. "
                "answers=[(' Paris', ' Rome'), ...]."
            )
        groups = answer_groups(model, answers, examples, wrong=bool(kinds & set(_OF_WRONG)))
        return cls(model, functions, TokenGroups.pad(groups, model.vocab_size))

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called, in order."""
        return tuple(self.functions)

    @property
    def compares(self) -> bool:
        """Whether one of them compares with the clean run."""
        return "kl" in self.functions and self.functions["kl"] is None

    def __call__(self, logits: Tensor, examples: Tensor, clean: Tensor | None = None) -> Tensor:
        """(row, metric) of logits, under the caller's grad mode.

        Arguments:
            logits: (row, vocabulary), at the last token of each row's prompt.
            examples: (row,), which example each row is of.
            clean: (row, vocabulary), the logits of each row's clean run; only `kl` looks at them (`compares`).

        Raises:
            InterpError: a function gives anything but a number a row.
        """
        return torch.stack(
            [
                self._named(name, logits, examples, clean) if one is None else _called(name, one, logits, examples)
                for name, one in self.functions.items()
            ],
            dim=1,
        )

    def of_hidden(self, hidden: Tensor, examples: Tensor, clean: Tensor | None = None) -> Tensor:
        """(row, metric), float32 on the CPU, without gradients, of last residual streams.

        Arguments:
            hidden: (row, hidden), after the last layer at the last token.
            examples: (row,), which example each row is of.
            clean: (row, hidden), of each row's clean run; only `kl` looks at it.
        """
        if all(name == "logit_difference" and one is None for name, one in self.functions.items()):
            return self._differences(hidden, examples)
        found = []
        size = how_many(2 * self.model.vocab_size, hidden.device)
        for rows in torch.arange(len(hidden), device="cpu").split(size):
            there = rows.to(hidden.device)
            compared = None
            if self.compares:
                assert clean is not None  # the caller was told
                compared = self.model.readout(clean[there])
            found.append(self(self.model.readout(hidden[there]), examples[rows.to(examples.device)], compared))
        values = torch.cat(found) if found else torch.empty(0, len(self.names), device="cpu")
        return values.detach().float().cpu()

    def _differences(self, hidden: Tensor, examples: Tensor) -> Tensor:
        """The logit difference alone, of the logits of answers alone."""
        assert self.groups is not None
        groups = self.groups.rows(examples.cpu())
        ids, valid = groups.ids.flatten(1), groups.valid.to(hidden.device)
        logits = logits_of(self.model, hidden, ids.to(hidden.device)).float()
        means = _means(logits.unflatten(1, groups.ids.shape[1:]), valid.to(logits.device))
        return (means[:, 0] - means[:, 1])[:, None].cpu()

    def _named(self, name: str, logits: Tensor, examples: Tensor, clean: Tensor | None) -> Tensor:
        logits = logits.float()
        if name == "kl":
            assert clean is not None  # the caller was told
            of_clean = clean.float().log_softmax(-1)
            return (of_clean.exp() * (of_clean - logits.log_softmax(-1))).sum(-1)
        assert self.groups is not None
        groups = self.groups.rows(examples.cpu()).to(logits.device)
        if name == "logit_difference":
            means = _means(_of_groups(logits, groups), groups.valid)
            return means[:, 0] - means[:, 1]
        log_probs = _of_groups(logits.log_softmax(-1), groups)[:, 0]
        right = log_probs.masked_fill(~groups.valid[:, 0], -torch.inf).logsumexp(-1)
        return right.exp() if name == "probability" else right


def _of_groups(values: Tensor, groups: TokenGroups) -> Tensor:
    """(row, group, token) of (row, vocabulary)."""
    return values.gather(1, groups.ids.flatten(1)).unflatten(1, groups.ids.shape[1:])


def _means(values: Tensor, valid: Tensor) -> Tensor:
    """(row, group) of (row, group, token), over the tokens that there are."""
    return values.masked_fill(~valid, 0).sum(-1) / valid.sum(-1)


def _called(name: str, function: Callable[..., Tensor], logits: Tensor, examples: Tensor) -> Tensor:
    found: Any = function(logits, examples) if _takes_examples(function) else function(logits)
    if not isinstance(found, Tensor) or found.shape != (len(logits),) or found.is_complex():
        came = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(type(found))
        raise InterpError(
            f"metric {name!r}: expected one number a row, shape ({len(logits)},), got {came}. Leave out the mean: "
            "statistics over examples come after."
        )
    if torch.is_grad_enabled() and logits.requires_grad and not found.requires_grad:
        raise InterpError(
            f"metric {name!r}: gradients of it are asked for, and it has none with respect to the logits that it was "
            "given. Was something detached, or turned into a Python number or an index (argmax)?"
        )
    return found.float()


def _takes_examples(function: Callable[..., Tensor]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin
        return False
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len([one for one in places if one.default is one.empty]) > 1


def answer_groups(
    model: StandardizedTransformer, answers: Answers, examples: int, *, wrong: bool
) -> list[list[list[int]]]:
    """Per example the token ids of the right answer, then those of the wrong one.

    Arguments:
        model: the model, whose tokenizer is used.
        answers: as a user gives them.
        examples: how many are expected.
        wrong: whether the wrong answer is needed.

    Raises:
        InterpError: another number of answers, a text that is not one token, or no wrong answer where one is needed.
    """
    given = answers.tolist() if hasattr(answers, "tolist") else answers
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or len(given) != examples:
        raise InterpError(f"answers: expected one entry for each of {examples} examples, got {answers!r:.80}.")
    groups = []
    for example, own in enumerate(given):
        alone = isinstance(own, str) or not isinstance(own, Sequence)
        pair = [own] if alone else list(own)
        if not 1 <= len(pair) <= 2:
            raise InterpError(
                f"answers: example {example} has {own!r:.80}, expected the right answer or (right, wrong); several "
                "tokens of one answer are a list inside: ([5, 7], 9)."
            )
        if wrong and len(pair) < 2:
            raise InterpError(
                f"answers: example {example} has one answer, {own!r:.80}; logit_difference needs the wrong one too: "
                "(right, wrong). `probability` and `log_probability` need the right one alone."
            )
        groups.append([_tokens(model, one, example) for one in pair[: 2 if wrong else 1]])
    return groups


def _tokens(model: StandardizedTransformer, answer: Any, example: int) -> list[int]:
    if isinstance(answer, str):
        ids = cast(list[int], model.tokenizer.encode(answer, add_special_tokens=False))
        if len(ids) != 1:
            pieces = model.tokenizer.convert_ids_to_tokens(ids)
            raise InterpError(
                f"answers: example {example}: {answer!r} is {len(ids)} tokens, {pieces}, and metrics look at one. Give "
                "its first token's id, mind the space before a word, or take `interp.prompts.answer_tokens`."
            )
        return ids
    if is_ids([answer]):
        return [int(answer)]
    if isinstance(answer, Sequence) and len(answer):
        return list(dict.fromkeys(token for one in answer for token in _tokens(model, one, example)))
    raise InterpError(f"answers: example {example}: expected a text, a token id or several, got {answer!r:.80}.")
