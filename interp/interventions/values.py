"""What an intervention writes: a tensor, a tensor in a saved file, or what another run has.

Each is data: it becomes plain lists, text and numbers, and is read back equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.interventions.where import as_where, plain_where
from interp.prompts import Prompt
from interp.prompts.given import is_ids
from interp.prompts.opening import opened
from interp.sites import canonical

__all__ = ["AnotherRun", "SavedTensor", "Value", "as_value", "plain_value", "same_value"]

LARGEST = 1 << 16
"""Numbers that a tensor is written out with at most; a larger one is saved in a file."""
_EXPECTED = (
    "a tensor or numbers, {'file': ..., 'name': ...} for a tensor in a safetensors file, or {'prompt': ..., 'site': "
    "..., 'position': ...} for what another run has there"
)


@dataclass(frozen=True)
class SavedTensor:
    """A tensor in a safetensors file.

    Arguments:
        file: path of the file.
        name: of the tensor; None: what the site is called, layer by layer (`resid_post.3`).
    """

    file: str
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", str(self.file))

    def load(self, site: str) -> Tensor:
        """Read the tensor.

        Arguments:
            site: the site that it is for, by which it is called where it has no name.

        Raises:
            InterpError: no such file, another kind of file, or no such tensor in it.
        """
        name = site if self.name is None else self.name
        if not Path(self.file).is_file():
            raise InterpError(f"value: there is no file {self.file!r}.")
        try:
            with safe_open(self.file, framework="pt") as file:
                names = list(file.keys())
                if name in names:
                    return file.get_tensor(name)
        except SafetensorError as error:
            raise InterpError(f"value: {self.file!r} is no whole safetensors file: {error}.") from None
        raise InterpError(f"value: {self.file!r} has no tensor {name!r}.{nearest(name, names)}")


@dataclass(frozen=True)
class AnotherRun:
    """What other prompts have at a site, in a run without interventions.

    Arguments:
        prompt: one prompt, which all examples share, or one for each example; for `mean` and `resample` the reference
            set. Texts, `Prompt`s or token ids.
        site: where it is read; None: at the site that is written, layer by layer.
        position: at which positions of these prompts, in a spelling of `interp.positions`; one for each of those that
            are written, or one for all of them. None: where it is written.
    """

    prompt: Any  # kept as a tuple of texts, `Prompt`s and tuples of token ids
    site: str | None = None
    position: Any = None  # kept as `Where`

    def __post_init__(self) -> None:
        given: Any = self.prompt
        tolist = getattr(given, "tolist", None)
        given = tolist() if callable(tolist) else given
        several = [given] if isinstance(given, str | Prompt | Mapping) or is_ids(given) else given
        if not isinstance(several, Sequence) or not several:
            raise InterpError(f"value: expected a prompt of another run, or several, got {given!r:.80}.")
        object.__setattr__(self, "prompt", tuple(_prompt(one) for one in several))
        if self.site is not None:
            object.__setattr__(self, "site", canonical(self.site))
        if self.position is not None:
            object.__setattr__(self, "position", as_where(self.position, "value: position"))


def _prompt(given: Any) -> str | Prompt | tuple[int, ...]:
    if isinstance(given, Mapping) and "text" in given:
        unknown = sorted(set(given) - {"text", "spans", "add_special_tokens", "images"})
        if unknown:
            raise InterpError(
                f"value: a prompt has text, spans, images and add_special_tokens, got {', '.join(unknown)}."
            )
        images = given.get("images") or ()
        images = tuple(images) if isinstance(images, list | tuple) else (images,)
        spans = {name: (int(start), int(stop)) for name, (start, stop) in (given.get("spans") or {}).items()}
        return _prompt(Prompt(given["text"], {}, spans, bool(given.get("add_special_tokens", True)), images))
    if isinstance(given, Prompt):  # its targets are of no effect on a run
        if not given.spans and not given.images and given.add_special_tokens:
            return given.text
        images = tuple(str(one) if isinstance(one, str | Path) else opened(one) for one in given.images)
        return replace(given, targets={}, images=images)
    if isinstance(given, str):
        return given
    tolist = getattr(given, "tolist", None)
    given = tolist() if callable(tolist) else given
    if is_ids(given):
        return tuple(int(token) for token in given)
    raise InterpError(f"value: expected texts, Prompts or lists of token ids as prompts, got {given!r:.80}.")


Value: TypeAlias = Tensor | SavedTensor | AnotherRun | None


def as_value(given: Any, name: str = "value") -> Value:
    """A value from what a user, or a file, gives.

    Arguments:
        given: one of the kinds above, a number, lists of numbers, an array, or the plain form of a value.
        name: of the field, for messages.

    Raises:
        InterpError: something else.
    """
    if given is None or isinstance(given, SavedTensor | AnotherRun):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(given, name)
    if isinstance(given, Tensor):  # as it is: it may be on the path of gradients
        return given if given.is_floating_point() else given.float()
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InterpError(f"{name}: expected {_EXPECTED}, got {given!r:.80}.") from None
    if isinstance(given, str | bytes | bool):
        raise InterpError(f"{name}: expected {_EXPECTED}, got {given!r:.80}.")
    return torch.tensor(array, dtype=torch.float32, device="cpu")


def _from_mapping(given: Mapping[str, Any], name: str) -> Value:
    forms: dict[str, tuple[Any, tuple[str, ...]]] = {
        "file": (SavedTensor, ("file", "name")),
        "prompt": (AnotherRun, ("prompt", "site", "position")),
        "values": (_tensor, ("values", "dtype")),
    }
    for key, (make, known) in forms.items():
        if key not in given:
            continue
        for wrong in set(given) - set(known):
            raise InterpError(f"{name}: {key} goes with {', '.join(known[1:])}, got {wrong!r}.{nearest(wrong, known)}")
        return make(**given)
    raise InterpError(f"{name}: expected {_EXPECTED}, got a mapping with the keys {', '.join(map(str, given))}.")


def _tensor(values: Any, dtype: str) -> Tensor:
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InterpError(f"value: dtype: expected e.g. float32 or bfloat16, got {dtype!r}.")
    return torch.tensor(values, dtype=torch.float64, device="cpu").to(found)


def plain_value(value: Value) -> Any:
    """A value as numbers, text, lists and mappings, from which `as_value` makes it again.

    Raises:
        InterpError: a tensor that is too large to be written out, or holds NaN or infinity.
    """
    if isinstance(value, SavedTensor):
        return {"file": value.file} if value.name is None else {"file": value.file, "name": value.name}
    if isinstance(value, AnotherRun):
        prompts = [_plain_prompt(prompt) for prompt in value.prompt]
        given = {"prompt": prompts[0] if len(prompts) == 1 else prompts, "site": value.site}
        given["position"] = None if value.position is None else plain_where(value.position)
        return {key: part for key, part in given.items() if part is not None}
    if value is None:
        return None
    if value.numel() > LARGEST:
        raise InterpError(
            f"value: a tensor of {value.numel()} numbers is too large to be written out (at most {LARGEST}). Save it "
            "in a file and name it: value={'file': 'x.safetensors', 'name': ...}."
        )
    held = value.detach().cpu()
    if not bool(held.isfinite().all()):
        raise InterpError("value: holds NaN or infinity, which cannot be written out.")
    if held.dtype == torch.float32:
        return _shortest(held.numpy())
    return {"values": held.double().tolist(), "dtype": str(held.dtype).removeprefix("torch.")}


def _shortest(array: Any) -> Any:
    """Nested lists of the shortest decimal numbers that are these float32 ones: 0.1, not 0.10000000149."""
    return [_shortest(part) for part in array] if array.ndim else float(str(array[()]))


def _plain_prompt(prompt: str | Prompt | tuple[int, ...]) -> Any:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, tuple):
        return list(prompt)
    given: dict[str, Any] = {"text": prompt.text}
    if prompt.spans:
        given["spans"] = {name: list(span) for name, span in prompt.spans.items()}
    if prompt.images:
        held = [type(image).__name__ for image in prompt.images if not isinstance(image, str)]
        if held:
            raise InterpError(
                f"value: an image in memory ({held[0]}) cannot be written out. Save it, and give the prompt its path."
            )
        given["images"] = list(prompt.images)
    return given if prompt.add_special_tokens else {**given, "add_special_tokens": False}


def same_value(first: Value, second: Value) -> bool:
    """Whether two values are the same, number by number."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and bool(torch.equal(first, second))
    return not isinstance(first, Tensor) and not isinstance(second, Tensor) and first == second


def finite(value: Any) -> bool:
    """Whether a parameter is a finite number."""
    return isinstance(value, int | float | np.number) and type(value) is not bool and math.isfinite(value)
