"""Methods of a model that run prompts: what they do stands in `interp.activations`, above the model.

A method finds its function when it is called, so that no import runs up (as `interp.results` finds what draws).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.sites import Site, Spelling

if TYPE_CHECKING:
    from interp.activations import ActivationCache, CacheBlocks, Hook, HookPair
    from interp.activations.run_result import RunResult
    from interp.forward import FrozenPrefix
    from interp.interventions import Intervention

__all__ = ["Runs"]


class Runs:
    """The ways to run a `StandardizedTransformer` on prompts without a trace."""

    def run(
        self,
        prompts: Any,
        interventions: Intervention | Iterable[Intervention] = (),
        *,
        images: Any = None,
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
        prefix: FrozenPrefix | None = None,
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
                Behind a `prefix`: what follows it, texts without the tokenizer's start token.
            interventions: one or several (`interp.interventions.Intervention`).
            images: of the prompts, for a model that sees: of one prompt an image or several; of several prompts an
                entry each, None, an image or several (PIL images, paths, arrays). Or `Prompt`s have them.
            read: sites to read, as of `run_with_cache`, e.g. `resid_post.* z.3.h0`; none unless they are named.
            positions: where sites and logits are read, one spelling of `interp.positions` or several. In each prompt
                they count its own tokens, behind a prefix those that follow it, as those of interventions do.
            gradients_of: from logits (prompt, position, vocabulary) at `positions` and the numbers of their prompts to
                one number a prompt, (prompt,), on the path of gradients; the gradients of each at the sites in `read`
                are given. None: no gradients.
            logits: whether logits are given. Without them, and without `gradients_of` and `max_new_tokens`, a pass
                ends with the last site.
            max_new_tokens: new tokens behind each prompt at most; None: none, one forward pass.
            temperature, top_k, top_p, seed: how new tokens are drawn; temperature 0 takes the most probable. The draws
                of a prompt depend on its tokens and the seed, not on the prompts beside it.
            stop_ids: tokens behind which a prompt ends; None: the end tokens of the model's generation config.
            prefix: what `freeze_prefix` gave; the prompts go on from it, and give what whole prompts give. Keys of
                `scores` and `pattern`, read or written, count from its first token. The prompts of another run, from
                which a value is taken, are whole ones.
            batch_size: prompts in a forward pass at most; None: what suits the device.
            padding_side: where shorter prompts of a batch are padded; behind a prefix they are on the right.
            keep_graph: give results on the path of gradients of the caller, e.g. to train a value. Otherwise they are
                detached.

        Returns:
            Logits, what was read, gradients, new tokens (`interp.activations.RunResult`).

        Raises:
            InterpError: a prompt, site, position, value or operation that does not fit, and what would; a prefix that
                would give other numbers here.
        """
        function = resolve_name("interp.activations.prompt_runs:run")
        return function(
            self,
            prompts,
            interventions,
            images=images,
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
            prefix=prefix,
            batch_size=batch_size,
            padding_side=padding_side,
            keep_graph=keep_graph,
        )

    # Caches and hooks -------------------------------------------------------------------------------------------------

    def run_with_cache(
        self,
        prompts: Any,
        *,
        images: Any = None,
        sites: Spelling | Sequence[Spelling] | None = None,
        positions: str | int | Sequence[str | int] | Sequence[Sequence[int]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        gradients: Spelling | Sequence[Spelling] | None = None,
        gradients_of: Callable[[Tensor], Tensor] | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        prefix: FrozenPrefix | None = None,
        interventions: Intervention | Iterable[Intervention] = (),
        batch_size: int | None = None,
        padding_side: Literal["left", "right"] = "left",
    ) -> tuple[Tensor, ActivationCache]:
        """Run prompts once, and keep copies of what the model computes on the way.

            logits, cache = model.run_with_cache("The Eiffel Tower is in", sites="resid_post.* z.3")
            cache["resid_post.3"]  # (example, position, hidden)

        A batch gives what its prompts give one at a time; hooks of the model act before what is kept. Without
        `gradients` the pass runs without gradients, and everything is detached.

        Arguments:
            prompts: one text or `Prompt`, or several, lists of token ids, or an encoding, padded on either side. Behind
                a `prefix`: what follows it, texts without the tokenizer's start token. With `start_at_layer`: a
                residual stream (example, position, hidden), NaN behind the last position of a shorter example.
            images: of the prompts, as of `run`.
            sites: what is kept, in any spelling (`interp.sites`), exactly these; `*` stands for the layers that have
                the site. `all`: every site of the model. None: all but those that cost more than a copy (`q`, `k`,
                `v`, `scores`, `pattern`, `head_out`) and the logits, which are the output.
            positions: at which tokens: spellings of `interp.positions`, or a list of indices for each prompt. None:
                all. They count each prompt's own tokens, behind a prefix those that follow it.
            device: where copies lie; None: where they are computed.
            dtype: of the copies; None: the model's.
            gradients: sites whose gradients are kept, as `cache.gradients`.
            gradients_of: from the output to the number whose gradients these are: `lambda logits: logits[0, -1, 7]`.
            stop_at_layer: the pass ends before this layer, and its output is the residual stream that enters it;
                counted from the end where negative. The number of layers: after the last, without the head.
            start_at_layer: the pass begins with this layer; layers below do not run.
            prefix: what `freeze_prefix` gave; the prompts go on from it.
            interventions: one or several (`interp.interventions`), as of `run`; what is kept is what the model goes on
                with. Behind a prefix their positions count what follows it.
            batch_size: prompts in a forward pass at most; None: all.
            padding_side: where shorter prompts of a pass are padded.

        Returns:
            The output: logits (example, position, vocabulary), each prompt's own tokens from the first on and NaN
            behind its last; or the residual stream at which the pass ended. And the cache.

        Raises:
            InterpError: a name that is no site (with the nearest ones), a site that the model or the pass does not
                come by, a position that a prompt lacks, or a prefix or start that would give other numbers here.
        """
        return resolve_name("interp.activations.cached_run:run_with_cache")(
            self,
            prompts,
            images=images,
            sites=sites,
            positions=positions,
            device=device,
            dtype=dtype,
            gradients=gradients,
            gradients_of=gradients_of,
            stop_at_layer=stop_at_layer,
            start_at_layer=start_at_layer,
            prefix=prefix,
            interventions=interventions,
            batch_size=batch_size,
            padding_side=padding_side,
        )

    def cache_blocks(
        self,
        prompts: Any,
        *,
        images: Any = None,
        sites: Spelling | Sequence[Spelling] | None = None,
        positions: str | int | Sequence[str | int] | Sequence[Sequence[int]] | None = None,
        dtype: torch.dtype | None = None,
        block_size: int = 64,
    ) -> CacheBlocks:
        """The cache of many prompts, block by block, for what is too large to be in memory at once.

        Arguments:
            prompts, images, sites, positions, dtype: as of `run_with_cache`.
            block_size: prompts in a block.

        Returns:
            An iterable of caches on the CPU, each of some prompts, all with the same axes; a block is run when it is
            asked for (`interp.activations.CacheBlocks`). `pipeline.store.write_cache` writes them to disk.

        Raises:
            InterpError: as `run_with_cache`.
        """
        return resolve_name("interp.activations.cache_blocks:CacheBlocks.of")(
            self, prompts, images=images, sites=sites, positions=positions, dtype=dtype, block_size=block_size
        )

    def run_with_hooks(
        self,
        prompts: Any,
        *,
        images: Any = None,
        hooks: Iterable[HookPair] = (),
        backward_hooks: Iterable[HookPair] = (),
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        prefix: FrozenPrefix | None = None,
        batch_size: int | None = None,
        padding_side: Literal["left", "right"] = "left",
    ) -> Tensor:
        """Run prompts with hooks, under the caller's grad mode; afterwards the hooks are gone, whatever happens.

            def ablate(tensor, site):
                tensor[:, :, 0] = 0  # or return another tensor

            logits = model.run_with_hooks("The Eiffel Tower is in", hooks=[("z.3", ablate)])

        A hook sees the batch as the model has it: (row, column, ...). Prompts of different lengths run with those of
        their own length, for a hook cannot tell padding from tokens.

        Arguments:
            prompts, images: as of `run_with_cache`.
            hooks: (where, function) each, in the order in which those at one site act. Where: a site in any spelling,
                several, or a predicate of a `Site`. The function is given a copy of the tensor, and the `Site`; it may
                change the copy in place or return another tensor, which the model then goes on with.
            backward_hooks: the same of gradients: these act in the backward pass of the output, whenever that is.
            stop_at_layer, start_at_layer, prefix, padding_side: as of `run_with_cache`.
            batch_size: prompts in a forward pass at most; None: all.

        Returns:
            The output, as of `run_with_cache`, on the path of gradients where these are on.

        Raises:
            InterpError: as `run_with_cache`; a predicate that is true of no site; what a hook returns has another
                shape; backward hooks where gradients are off.
        """
        return resolve_name("interp.activations.model_hooks:run_with_hooks")(
            self,
            prompts,
            images=images,
            hooks=hooks,
            backward_hooks=backward_hooks,
            stop_at_layer=stop_at_layer,
            start_at_layer=start_at_layer,
            prefix=prefix,
            batch_size=batch_size,
            padding_side=padding_side,
        )

    def hooks(
        self, hooks: Iterable[HookPair] = (), backward_hooks: Iterable[HookPair] = ()
    ) -> AbstractContextManager[list[Hook]]:
        """Context manager: hooks for the time of a block, in whatever runs the model there.

        Runs, `trace`, each step of `generate`, what follows a frozen prefix. With the block they are gone, also after
        an exception: a backward pass that comes later sees nothing of them.

        Arguments:
            hooks, backward_hooks: as of `run_with_hooks`.

        Raises:
            InterpError: as `add_hook`.
        """
        return resolve_name("interp.activations.model_hooks:hooks_for_a_while")(self, hooks, backward_hooks)

    def add_hook(
        self,
        site: Spelling | Sequence[Spelling] | Callable[[Site], bool],
        function: Callable[[Tensor, Site], Tensor | None],
        *,
        direction: Literal["forward", "backward"] = "forward",
        permanent: bool = False,
        prepend: bool = False,
    ) -> list[Hook]:
        """Put a hook on the model; it stays until it is removed.

        Arguments:
            site: where: a site in any spelling, several, or a predicate of a `Site`.
            function: given a copy of the tensor (`backward`: of its gradient) and the `Site`; what it returns, or
                leaves in the copy, is what the model goes on with.
            direction: `forward`, or `backward`: in backward passes.
            permanent: `reset_hooks()` leaves it.
            prepend: before the hooks that are there, not after them.

        Returns:
            A `Hook` for each site, with `remove()`.

        Raises:
            InterpError: no such site, no function, or a predicate that is true of no site.
        """
        return resolve_name("interp.activations.model_hooks:add_hook")(
            self, site, function, direction=direction, permanent=permanent, prepend=prepend
        )

    def reset_hooks(
        self, *, including_permanent: bool = False, direction: Literal["forward", "backward"] | None = None
    ) -> None:
        """Remove the hooks of the model.

        Arguments:
            including_permanent: the permanent ones too.
            direction: those of one direction alone.
        """
        resolve_name("interp.activations.model_hooks:reset_hooks")(
            self, including_permanent=including_permanent, direction=direction
        )

    def list_hooks(self) -> list[Hook]:
        """The hooks of the model, forward and then backward, in the order in which those at one site act."""
        return resolve_name("interp.activations.model_hooks:list_hooks")(self)

    def freeze_prefix(self, prompts: Any, *, images: Any = None) -> FrozenPrefix:
        """Compute the keys and values of a prefix once, to go on from it many times with `prefix=`.

            prefix = model.freeze_prefix("A long prompt that all share.")
            logits, cache = model.run_with_cache([" One end", " Another"], prefix=prefix)

        What follows gives what whole prompts give, in `run`, `run_with_cache` and `run_with_hooks`. Hooks and
        interventions act on what follows; the prefix is what the model computes without them.

        Arguments:
            prompts: one prefix, or several of one length; continuation i goes on from row i modulo these.
            images: of the prefixes, as of `run`; what follows is text. Tried with a few tokens behind these images.

        Raises:
            InterpError: prefixes of several lengths, or a model that keeps more than keys and values of what came
                before (state-space and recurrent layers), whose images see what follows them (PaliGemma) or are counted
                in rows and columns (Qwen-VL), where a continuation would give other numbers.
        """
        return resolve_name("interp.activations.behind_prefix:freeze_prefix")(self, prompts, images)
