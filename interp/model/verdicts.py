"""Does a fast way hold for this model? Tried once on a small case against the slow way; the answer is kept.

A small case speaks for prompts that take the same path through the model. A window, a chosen number of keys, a chunk: a
prompt that fits takes one path, a longer one another. So there is one verdict for each regime: the first prompt that is
longer than a window, say, has the case tried beyond the window too.

    verdict(model, "name", lambda tokens: [(fast, slow)], "what the log says first:", longest=tokens_of_the_longest)
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from interp.model.hooks import users_hook
from interp.passes import turn

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = [
    "SMALL",
    "Pair",
    "Trial",
    "holds",
    "is_changed",
    "misfit",
    "off_by",
    "once",
    "regime_of",
    "regimes",
    "rotations_by_length",
    "sample_ids",
    "verdict",
    "verdicts_of",
    "warn_once",
]

SMALL = 9
"""Tokens of a small case. It is tried beyond a limit with as many tokens more than that."""
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]
Trial = Callable[[int], Sequence[Pair] | str | None]
"""From tokens of a small case: the fast and the slow way, for each thing that is tried; or the reason why the fast one
does not hold, known otherwise (None: it does)."""
_BEYOND = 4  # so many tokens past a limit show what is behind it

# Fields of a config, whatever a family puts before or behind these words: sliding and local windows (also Doge's window
# of kept keys), chunks of attention and of state-space layers, keys and blocks that an indexer chooses, blocks of
# linear attention, room for tokens in an expert, and the tokens from which rotation or the scale of attention changes
# (Llama 4, Ministral 3, Inkling).
_FIELDS = re.compile(
    r"window|chunk|index_topk$|block_size|kpool|capacity|num_hash|bucket|max_distance"
    r"|original_max_position|floor_scale|n_floor"
)
_NO_TOKENS = re.compile(r"layers|pattern|ind(ices|exes)|feed_forward|freq|factor")  # counts of something else
_TOWERS = re.compile(r"vision|audio|video|speech|decoder_config")  # of what is not the text model
# What a family that a fast way does not fit raises: caches and masks of other forms, arguments that do not broadcast.
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)
# Relative difference that roundings explain in float32; in coarser dtypes, some of theirs.
_TOLERANCE, _ROUNDINGS = 1e-4, 16
_log = logging.getLogger(__name__)


def sample_ids(model: StandardizedTransformer, rows: int = 2, length: int = SMALL) -> Tensor:
    """(row, position), token ids for a case, the same at every call; in a longer one each token stands twice.

    Of two keys that say the same, attention that chooses its keys takes either, by where they stand in a batch.
    """
    usable = min(model.vocab_size, len(model.tokenizer))
    ids = torch.randint(usable, (rows, length), generator=torch.Generator().manual_seed(0), device="cpu")
    if length > SMALL + 3:
        half = length // 2
        ids[:, half : 2 * half] = ids[:, :half]
    image = getattr(model._module.config, "image_token_id", None)
    if image is not None:  # there is none to see
        ids[ids == image] = (image + 1) % usable
    return ids.to(model.device)


# What was found out of each model -------------------------------------------------------------------------------------


class _Found:
    """By module: what was found out of it. Sent to a server, it is empty there."""

    def __init__(self) -> None:
        self.by_module: weakref.WeakKeyDictionary[nn.Module, dict[str, bool]] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[_Found], tuple[()]]:
        return _Found, ()


_found = _Found()


def verdicts_of(model: StandardizedTransformer) -> dict[str, bool]:
    """The cached answers about a model, by name; emptied when it is wrapped and when its modules are replaced.

    All wrappers of one module share it.
    """
    return _found.by_module.setdefault(model._module, {})


def once(model: StandardizedTransformer, name: str, find: Callable[[], bool]) -> bool:
    """Find out a fact about a model once, and cache it.

    Arguments:
        model: the model.
        name: of the fact, in `verdicts_of`.
        find: finds it out.
    """
    known = verdicts_of(model)
    if name not in known:
        known[name] = find()
    return known[name]


def warn_once(model: StandardizedTransformer, name: str, message: str, *given: object) -> None:
    """Log a warning about a model once.

    Arguments:
        model: the model.
        name: of what is said, in `verdicts_of`.
        message, given: as loggers take them, after the name of the family.
    """
    if verdicts_of(model).setdefault(name, True):
        _log.warning("%s: " + message, type(model._module).__name__, *given)
        verdicts_of(model)[name] = False


def is_changed(model: StandardizedTransformer) -> bool:
    """Whether the user has changed what the model computes: edits that stay (`model.edit`), hooks, forward passes.

    Then prompts run as a whole, side by side, those of one length together: whatever counts tokens, from the beginning
    or from the end, counts those of each prompt. One line of the log says so.

    Arguments:
        model: the model.
    """
    if model._edits:  # they are made in traces of the whole model alone; copies share what was found out without them
        name, reason = "edits", "leave out the model's hooks or edits"
    else:
        hook = users_hook(model._module)
        if hook is None:
            return False
        name = reason = f"show {hook} other tokens than each prompt's own"
    warn_once(model, name, "prompts are run as a whole (slow): a fast way would %s.", reason)
    return True


# Trials ---------------------------------------------------------------------------------------------------------------


def verdict(
    model: StandardizedTransformer,
    name: str,
    trial: Trial,
    consequence: str,
    *,
    longest: int,
    at_hand: bool = False,
    choice: str | None = None,
    level: int = logging.WARNING,
) -> bool:
    """Whether a fast way holds for prompts of a model: tried once in each regime; where it does not, the log says so.

    It never does for a model that the user has changed (`is_changed`).

    Arguments:
        model: the model.
        name: of the verdict, in `verdicts_of`.
        trial: a case of so many tokens, done both ways.
        consequence: what the log says before the reason.
        longest: tokens of the longest prompt, or of the row that it stands in.
        at_hand: whether the case is the prompts at hand, which speak for their own regime alone.
        choice: the name in `verdicts_of` of a faster form that the fast way may take. The first trial is with it and,
            if that does not hold, without; later ones go by what the first has left.
        level: of the line in the log.
    """
    return not is_changed(model) and holds(
        model, name, trial, consequence, longest=longest, at_hand=at_hand, choice=choice, level=level
    )


def holds(
    model: StandardizedTransformer,
    name: str,
    trial: Trial,
    consequence: str,
    *,
    longest: int,
    at_hand: bool = False,
    choice: str | None = None,
    level: int = logging.WARNING,
) -> bool:
    """`verdict` on the model as it is without the user's changes."""
    passed, known = regimes(model, longest), verdicts_of(model)
    with turn(model._module):  # a trial switches ways that every run of the model would take
        for limit in passed[-1:] if at_hand else passed:
            beyond = f" beyond {limit} tokens" if limit else ""
            if name + beyond not in known:
                try:
                    reason = _tried(model, trial(limit + SMALL), choice)
                except (torch.OutOfMemoryError, MemoryError):
                    if at_hand or not limit:
                        raise
                    reason = "cannot be tried, for want of memory"  # though what is asked for may have room
                known[name + beyond] = reason is None
                if reason is not None:
                    _log.log(level, "%s%s: %s %s.", type(model._module).__name__, beyond, consequence, reason)
            if not known[name + beyond]:
                return False
    return True


def _tried(model: StandardizedTransformer, tried: Sequence[Pair] | str | None, choice: str | None) -> str | None:
    """Why the fast way does not hold; None where it does."""
    if tried is None or isinstance(tried, str):
        return tried
    fast = [way for way, _ in tried]
    slow = [way() for _, way in tried]
    if choice is None:
        return _first_misfit(model, fast, slow)
    known, reason = verdicts_of(model), None
    for taken in (known[choice],) if choice in known else (True, False):
        known[choice] = taken
        reason = _first_misfit(model, fast, slow)
        if reason is None:
            break
    return reason


def _first_misfit(
    model: StandardizedTransformer, fast: Sequence[Callable[[], Tensor]], slow: Sequence[Tensor]
) -> str | None:
    reasons = (misfit(model, way, expected) for way, expected in zip(fast, slow, strict=True))
    return next((reason for reason in reasons if reason is not None), None)


def misfit(model: StandardizedTransformer, fast: Callable[[], Tensor], slow: Tensor) -> str | None:
    """Why the fast way's numbers are not those of the slow way; None where they agree."""
    try:
        found = fast()
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        return f"does not run in this family ({type(error).__name__}: {str(error)[:100]!r})"
    difference = off_by(model, found, slow)
    return None if difference is None else f"gives other numbers in this family (off by {difference:.2g})"


def off_by(model: StandardizedTransformer, found: Tensor, expected: Tensor) -> float | None:
    """The relative difference of two tensors, where roundings do not explain it; else None."""
    expected = expected.double()
    difference = float((found.double() - expected).norm() / expected.norm())
    return None if difference <= max(_TOLERANCE, _ROUNDINGS * torch.finfo(model.dtype).eps) else difference


# Regimes --------------------------------------------------------------------------------------------------------------


def regimes(model: StandardizedTransformer, longest: int) -> list[int]:
    """The limits that a prompt passes, ascending, after 0 for the regime of few tokens.

    Limits that a small case passes too are left out; so is the length from which rotation depends on the longest prompt
    of a pass (`longrope`, `dynamic`), of which `interp.forward.rope` knows.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt, or of the row that it stands in.
    """
    if longest <= SMALL - _BEYOND:
        return [0]
    config = model._module.config.get_text_config()
    found = set(_limits(config, by_length=bool(rotations_by_length(config))))
    return [0, *sorted(limit for limit in found if SMALL - _BEYOND < limit < longest)]


def rotations_by_length(config: Any) -> list[Mapping[str, Any]]:
    """What a text model's config says of rotations whose frequencies depend on the longest prompt of a pass."""
    rope = getattr(config, "rope_parameters", None) or {}
    entries = [rope] if "rope_type" in rope else [entry for entry in rope.values() if isinstance(entry, Mapping)]
    return [entry for entry in entries if entry.get("rope_type") in ("longrope", "dynamic")]


def regime_of(model: StandardizedTransformer, tokens: int) -> int:
    """The largest limit that a prompt of so many tokens passes; 0: none."""
    return regimes(model, tokens)[-1]


def _limits(config: Any, *, by_length: bool) -> Iterator[int]:
    values = vars(config) if isinstance(config, PreTrainedConfig) else config
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig | Mapping):
            if not _TOWERS.search(str(name)):
                yield from _limits(value, by_length=by_length)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and _is_limit(name, by_length):
            yield value
    blocks, size = values.get("index_topk_blocks"), values.get("index_block_size")
    if blocks and size:
        yield blocks * size


def _is_limit(name: Any, by_length: bool) -> bool:
    if not isinstance(name, str) or not _FIELDS.search(name) or _NO_TOKENS.search(name):
        return False
    return not (by_length and "original_max" in name)
