"""transformers' own `generate` under interventions: sampling, beams, processors and caches are what its config says.

`interp.activations.generating` is our own loop, whose draws are each prompt's own; here the model's is followed. Which
tokens a pass is fed is known by its width: all of them, or those that come behind what a cache holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from interp.activations.edited_pass import EditedPass, Read
from interp.activations.forward_passes import ForwardPasses
from interp.activations.prompt_batches import Pass
from interp.activations.prompt_runs import planned_edits
from interp.errors import InterpError
from interp.forward.layers import check_ready
from interp.forward.rope import forget_lengths
from interp.interventions import Intervention
from interp.interventions.edits import Edit, Window
from interp.model.visits import generation, run_visiting
from interp.prompts import Encoded

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["GeneratedBatch", "generate_edited"]

# Further models, further passes of this one, or caches that are longer than what is in them.
_REFUSED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "guidance_scale")


@dataclass(frozen=True)
class GeneratedBatch:
    """What transformers generated of some prompts.

    Arguments:
        rows: which prompts, by number.
        width: columns of the prompts, padded on the left, before the new tokens.
        output: what `generate` returned.
        pad: the token that stands before the prompts, and behind texts that have ended.
    """

    rows: list[int]
    width: int
    output: Any
    pad: int

    @property
    def sequences(self) -> torch.Tensor:
        """(row, column) token ids; several rows a prompt where its config says so."""
        found = self.output if isinstance(self.output, torch.Tensor) else self.output.sequences
        assert isinstance(found, torch.Tensor)
        return found


@torch.no_grad()
def generate_edited(
    model: StandardizedTransformer,
    encoded: list[Encoded],
    interventions: Intervention | Iterable[Intervention] = (),
    *,
    batch_size: int | None = None,
    generation_config: GenerationConfig | None = None,
    **keywords: Any,
) -> list[GeneratedBatch]:
    """Generate behind prompts with transformers' own loop.

    Arguments:
        model: the model.
        encoded: the prompts.
        interventions: made in each pass: of the prompt's tokens, and with `steps="every"` of new ones.
        batch_size: prompts side by side at most; None: as many as suit the device.
        generation_config, keywords: of transformers' `generate`.

    Returns:
        Batches; prompts share one where padding leaves the model's numbers as they are.

    Raises:
        InterpError: interventions that do not fit, or a way to generate under which they cannot be followed.
    """
    check_ready(model)
    config: Any = model._module.generation_config if generation_config is None else generation_config
    asked = {**{name: getattr(config, name, None) for name in (*_REFUSED, "cache_implementation")}, **keywords}
    more = asked.get("max_new_tokens") or getattr(config, "max_new_tokens", None) or 0
    passes = ForwardPasses.whole(model, encoded, batch_size, "left", more)
    edits = planned_edits(passes, interventions, batch_size)
    if edits:
        _check_followed(asked)
    known = (asked.get("pad_token_id"), getattr(config, "pad_token_id", None), model.tokenizer.pad_token_id)
    pad = int(next((token for token in (*known, model.tokenizer.eos_token_id) if token is not None), 0))
    keywords["pad_token_id"] = pad
    made = []
    for one in passes.passes:
        forget_lengths(model)
        inputs = {name: value for name, value in one.batch.inputs.items() if name != "position_ids"}
        is_padding = ~one.batch.own.to(inputs["input_ids"].device)
        inputs["input_ids"] = inputs["input_ids"].masked_fill(is_padding, pad if pad < model.vocab_size else 0)
        given = {**inputs, "generation_config": generation_config, **keywords}
        with _following(passes, one, edits) as visits:
            output = run_visiting(model, visits, fn=generation(model), **given)
        made.append(GeneratedBatch(one.batch.rows, one.batch.width, output, pad))
    return made


def _check_followed(asked: dict[str, Any]) -> None:
    for name in _REFUSED:
        if asked.get(name) is not None:
            raise InterpError(f"{name}: interventions cannot follow a generation with further passes. Leave it out.")
    cache = asked.get("cache_implementation")
    if cache is not None and "dynamic" not in str(cache):
        raise InterpError(f"cache_implementation: interventions act over a dynamic cache, got {cache!r}. Leave it out.")


@contextmanager
def _following(passes: ForwardPasses, one: Pass, edits: Sequence[Edit]) -> Iterator[list[Any]]:
    """The visits of edits, whose window moves along with the passes of a generation."""
    edited = EditedPass(passes.model, passes.window(one), edits, Read.nothing(len(one.batch.rows)))
    visits = [replace(visit, every_step=True) for visit in edited.visits()]
    if not visits:
        yield []
        return
    first, reached = edited.window, 0

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal reached
        fed = args[0] if args else kwargs.get("input_ids")
        fed = kwargs["inputs_embeds"] if fed is None else fed
        count, width = int(fed.shape[0]), int(fed.shape[1])
        start = 0 if width == reached + 1 else reached  # without a cache, all of it once more
        reached = start + width
        each = count // len(first.examples)  # beams, and several texts of a prompt, stand side by side
        examples = [example for example in first.examples for _ in range(each)]
        padding = [columns for columns in first.before for _ in range(each)]
        grown = max(0, reached - first.stop)
        edited.window = Window(examples, padding, first.lengths, grown, start, reached)

    handle = passes.model._module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield visits
    finally:
        handle.remove()
