"""Section `lens`, what all kinds share: the base class, what a lens reads, and what it is checked against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InterpError
from interp.positions import Position
from interp.prompts import identity_prompt
from interp.sites import check_layers, parse_layers
from pipeline.config.section import ConfigError, Kinds, bounded, chosen, close, load_section, passage, section_from

if TYPE_CHECKING:
    from pipeline.config.task import TaskConfig

__all__ = [
    "MAPPINGS", "Given", "IntoTarget", "LensConfig", "Reads", "check_span", "lenses_from", "load_lenses",
    "named_layers", "one_position",
]  # fmt: skip

NAME = re.compile(r"\w[\w.-]{0,99}")
MAPPINGS = ("identity", "affine_last", "affine_target", "tuned")
"""What a state goes through before it is written or read out.

`identity`: nothing. `affine_last`: an affine map from its layer to the model's last one, fitted by least squares.
`affine_target`: one to the layer that it is written at (a grid). `tuned`: the translator of a tuned lens. The maps come
from the section `tune`; they are of the residual stream after layers.
"""


@dataclass(frozen=True)
class Reads:
    """The collected hidden states that a lens needs, and under which of its options it names them.

    Arguments:
        site: kind of site.
        position: a position.
        position_option: option that names the position.
        layers: layers, `*` or a range or a list.
        layers_option: option that names the layers.
        window: layers that are needed from each of `layers` on; None: all up to the model's last.
        why: what needs more than one layer, for messages.
        site_option: option that names the site; empty: the lens has none.
    """

    site: str
    position: str
    position_option: str
    layers: str
    layers_option: str = "layers"
    window: int | None = 1
    why: str = ""
    site_option: str = ""

    def needed(self, layers: list[int], num_layers: int) -> list[int]:
        """The layers whose states are read, ascending.

        Arguments:
            layers: the layers that the option names, ascending.
            num_layers: of the model.
        """
        window = num_layers if self.window is None else self.window
        return sorted({layer for first in layers for layer in range(first, min(first + window, num_layers))})


@dataclass(frozen=True)
class Given:
    """What a lens is checked against.

    Arguments:
        task: section `task`.
        num_layers: of the model; None: not known yet.
    """

    task: TaskConfig
    num_layers: int | None


@dataclass(frozen=True)
class LensConfig(Kinds):
    """A lens: its settings and the rules that they keep.

    A subclass is a frozen dataclass whose `kind` has its name as default; importing its module makes it known.

    Attributes:
        stage: `MODULE:CLASS`, a subclass of `pipeline.stages.lens.base.Lens` that computes it. A text, so that a config
            is read without torch.
        remote: whether it runs on NDIF.
        patches: whether it writes into a target prompt, so that a run without it is another than the model's own.
        kind: the lens.
    """

    section: ClassVar[str] = "lens"
    noun: ClassVar[str] = "lens"
    stage: ClassVar[str]
    remote: ClassVar[bool] = False
    patches: ClassVar[bool] = False

    kind: str

    def reads(self) -> Reads | None:
        """What it needs of `activations.zarr`; None: nothing."""
        return None

    def maps(self) -> str:
        """What it puts its states through, one of `MAPPINGS`."""
        return str(getattr(self, "mapping", "identity"))

    def writes(self) -> str | None:
        """The layers that each source layer is written into; None: each is written into itself, or nothing is."""
        return None

    def positions(self) -> dict[str, list[str]]:
        """Setting -> the positions that it names besides those of `collect.positions`."""
        return {}

    def check(self, where: str, given: Given) -> None:
        """Check what this kind alone asks; what it reads, maps and writes is checked for all kinds alike.

        Arguments:
            where: its key in the config, for messages.
            given: what it is checked against.

        Raises:
            ConfigError: it cannot run.
        """


@dataclass(frozen=True)
class IntoTarget(LensConfig):
    """What all lenses share that write activations of a source prompt into a target prompt's run.

    Arguments:
        kind: of the lens.
        source_position: which of `collect.positions` gives the activation.
        target: `task` patches into the task's own target prompts (`task.patch_into`), `identity` into `target_prompt`.
        target_prompt: for `identity`: a name that `interp.prompts` knows (`king`, `cat`, ...) or the prompt's own text.
        target_position: position in the target prompt that is written: `last`, `query.last`, an integer.
        sources: `first` takes the first source language, `mean` the mean over all of them.
        batch_size: target prompts in a forward pass at most.
    """

    patches: ClassVar[bool] = True

    source_position: str = "last"
    target: str = chosen("task", "task", "identity")
    target_prompt: str = passage("king")
    target_position: str = "last"
    sources: str = chosen("first", "first", "mean")
    batch_size: int = bounded(64, 1, 1_000_000)

    def positions(self) -> dict[str, list[str]]:
        """The position that is written."""
        return {"target_position": [self.target_position]}

    def check(self, where: str, given: Given) -> None:
        """Check the target prompts and the sources against what the task has; raises ConfigError."""
        position = one_position(f"{where}.target_position", self.target_position)
        if self.target == "task":
            if missing := given.task.lacks_targets():
                raise ConfigError(
                    f"{where}.target: 'task' patches into the task's own target prompts, and there is {missing}. Set "
                    "task.patch_into (translation), or choose lens=patchscope_identity or lens=logit_lens."
                )
            check_span(f"{where}.target_position", position.text, position.span_name, given.task)
        else:
            try:
                identity_prompt(self.target_prompt)
            except InterpError as error:
                raise ConfigError(f"{where}.target_prompt: {error}") from None
            if position.span_name is not None:
                raise ConfigError(
                    f"{where}.target_position: {position.text!r} is in a span, and an identity prompt marks none. "
                    "Write e.g. last."
                )
        if self.sources == "mean":
            self._check_mean(where, given.task)

    def _check_mean(self, where: str, task: TaskConfig) -> None:
        languages = task.averaged()
        if languages is None:
            raise ConfigError(
                f"{where}.sources: 'mean' averages over task.source_languages, which the task {task.kind} has not. "
                "Choose first."
            )
        if len(languages) == 1:
            raise ConfigError(
                f"{where}.sources: the mean over one source language ({languages[0]}) is that language. "
                "Choose first, or add languages to task.source_languages."
            )
        if self.target == "identity":
            raise ConfigError(
                f"{where}.sources: 'mean' averages over the prompts of a pair, and target: identity reads each prompt "
                "alone. Choose first, or target: task."
            )


def named_layers(where: str, text: str, num_layers: int | None) -> list[int] | None:
    """The layers that an option names; None where the model's depth is not known, and only the spelling is checked.

    Raises:
        ConfigError: it cannot be read, or the model has no such layers.
    """
    try:
        check_layers(text, num_layers)
    except InterpError as error:
        raise ConfigError(f"{where}: {error}") from None
    return None if num_layers is None else parse_layers(text, num_layers)


def one_position(where: str, text: str) -> Position:
    """A position that is one token of a prompt.

    Raises:
        ConfigError: it cannot be read, or can be several tokens.
    """
    try:
        position = Position.parse(text)
    except InterpError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not position.single:
        raise ConfigError(f"{where}: a lens reads one token of a prompt, and {text!r} can be several. Write e.g. last.")
    return position


def check_span(where: str, text: str, span_name: str | None, task: TaskConfig) -> None:
    """Raise where a position is in a span that the task does not mark.

    Arguments:
        where: key of the config, for messages.
        text: the position, as it is spelled.
        span_name: the span that it is in; None: in none.
        task: section `task`.

    Raises:
        ConfigError: it does not mark it.
    """
    spans: Sequence[str] = task.spans()
    if span_name is not None and span_name not in spans:
        marked = f"marks {', '.join(spans)}" if spans else "marks none"
        positions = "collect=last, or positions" if where.startswith("collect.") else "positions"
        remedy = close(span_name, spans) if spans else f" Choose {positions} such as last, -2."
        raise ConfigError(f"{where}: {text!r} is in a span, and the task {task.kind} {marked}.{remedy}")


def lenses_from(values: dict[str, Any]) -> dict[str, LensConfig]:
    """The section from plain values: lens name -> its config, in the config's order; none for `lens=none`.

    Raises:
        ConfigError: a name that cannot be a folder's, an unknown `kind`, and all that `section_from` raises.
    """
    lenses: dict[str, LensConfig] = {}
    for name, section in values.items():
        if not NAME.fullmatch(str(name)):  # it becomes a folder's name
            raise ConfigError(f"lens: expected a name of letters, digits, '_', '-' and '.', got {str(name)[:80]!r}.")
        if not isinstance(section, dict):
            raise ConfigError(f"lens.{name}: expected a lens (a mapping with 'kind'), got {section!r}.")
        lenses[str(name)] = section_from(LensConfig, section, f"lens.{name}")
    return lenses


def load_lenses(params: str = "params.yaml") -> dict[str, LensConfig]:
    """The section of a run folder's `params.yaml`."""
    return lenses_from(load_section("lens", params))
