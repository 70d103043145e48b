"""Methods of a model that run prompts: what they do stands in `interp.activations`, above the model.

A method finds its function when it is called, so that no import runs up (as `interp.results` finds what draws).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from interp.sites import Spelling

if TYPE_CHECKING:
    from interp.activations.run import RunResult
    from interp.interventions import Intervention

__all__ = ["Runs"]


class Runs:
    """The ways to run a `StandardizedTransformer` on prompts without a trace."""

    def run(
        self,
        prompts: Any,
        interventions: Intervention | Iterable[Intervention] = (),
        *,
        read: Spelling | Iterable[Spelling] = (),
        positions: str | int | Sequence[str | int] = "last",
        gradients_of: Callable[[Tensor, list[int]], Tensor] | None = None,
        logits: bool = True,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_ids: Collection[int] | None = None,
        batch_size: int | None = None,
        padding_side: Literal["left", "right"] = "left",
        keep_graph: bool = False,
    ) -> RunResult:
        """Run prompts with interventions, and read sites, gradients and new tokens: each batch in one forward pass.

        A batch gives what its prompts give one at a time. Interventions at one place act in the order in which they are
        listed, those at different places in the order in which the model computes them. What is read is what the model
        goes on with, interventions included. A mistake is refused before the model runs.

        Arguments:
            prompts: one text or `Prompt`, or several, or lists of token ids, or an encoding, padded on either side.
            interventions: one or several (`interp.interventions.Intervention`).
            read: sites to read, in any spelling, e.g. `resid_post.* z.3.h0`.
            positions: where sites and logits are read, one spelling of `interp.positions` or several. In each prompt
                they count its own tokens.
            gradients_of: from logits (prompt, position, vocabulary) at `positions` and the numbers of their prompts to
                one number a prompt, (prompt,), on the path of gradients; the gradients of each at the sites in `read`
                are given. None: no gradients.
            logits: whether logits are given. Without them, and without `gradients_of` and `max_new_tokens`, a pass
                ends with the last site.
            max_new_tokens: new tokens behind each prompt at most; None: none, one forward pass.
            temperature, top_k, top_p, seed: how new tokens are drawn; temperature 0 takes the most probable. The draws
                of a prompt depend on its tokens and the seed, not on the prompts beside it.
            stop_ids: tokens behind which a prompt ends; None: the end tokens of the model's generation config.
            batch_size: prompts in a forward pass at most; None: what suits the device.
            padding_side: where shorter prompts of a batch are padded.
            keep_graph: give results on the path of gradients of the caller, e.g. to train a value. Otherwise they are
                detached.

        Returns:
            Logits, what was read, gradients, new tokens (`interp.activations.RunResult`).

        Raises:
            InterpError: a prompt, site, position, value or operation that does not fit, and what would.
        """
        function = resolve_name("interp.activations.run:run")
        return function(
            self,
            prompts,
            interventions,
            read=read,
            positions=positions,
            gradients_of=gradients_of,
            logits=logits,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=stop_ids,
            batch_size=batch_size,
            padding_side=padding_side,
            keep_graph=keep_graph,
        )
