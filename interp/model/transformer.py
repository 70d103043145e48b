"""`StandardizedTransformer`: load a decoder language model; read and write its inside by one set of names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.modeling.tp import TPFragments
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from interp.architectures import Architecture, Candidates, RenameConfig, candidates, config_value
from interp.attention import AttentionAccess
from interp.errors import InterpError
from interp.model.accessors import NamedValues, aliases, merged
from interp.model.digest import model_digest
from interp.model.fed import Fed, position_limit
from interp.model.following import RESERVED, Given, ModuleTree, follow
from interp.model.head import ReadoutParts, Tail, plain_head
from interp.model.keywords import check_inputs, check_keywords, check_prompts, has_images
from interp.model.loading import (
    check_options,
    execution_device,
    load_model,
    load_skeleton,
    load_tokenizer,
    reject_load_options,
    unwrapped,
)
from interp.model.model_spec import ModelSpec
from interp.model.padding import PaddingWatch, guard_padding
from interp.model.places import TraceMemory
from interp.model.processor import processor_of, quiet_pipeline
from interp.model.resolve import Attentions
from interp.model.runs import Runs
from interp.model.verdicts import verdicts_of
from interp.model.verify import failures, never_reached, prove
from interp.model.vision_sites import Sees
from interp.passes import ThreadInterleaver, before, check_not_open, turn

__all__ = ["StandardizedTransformer"]


class StandardizedTransformer(NamedValues, Sees, Runs, TransformersModel):
    """A decoder language model whose inside has the same names in every family.

    A subclass of nnsight's `TransformersModel`: `trace`, `generate`, `session`, `edit` and the modules' own names are
    all there. Inside a trace, ask for sites in the order in which the model computes them (`in_order`).

        model = StandardizedTransformer("openai-community/gpt2")
        with torch.no_grad(), model.trace("The Eiffel Tower is in"):
            hidden = model.read("resid_post.3").clone().save()
            model.write("attn_out.5", torch.zeros_like(model.read("attn_out.5")))
            logits = model.logits.save()

    Attributes:
        architecture: the record of this family, `interp.architectures.Architecture`.
        spec: the model's config in one set of names, `interp.model.model_spec.ModelSpec`.
        num_layers, num_heads, num_kv_heads, head_dim, hidden_size, vocab_size: sizes.
        parallel: attention and MLP read the same residual stream, so there is no `resid_mid`.
        layers, embed_tokens, ln_final, lm_head: nnsight envoys of these modules; `layers[i]`, `layers[i].self_attn`,
            `layers[i].mlp` of one layer, where it has them. The model's own names stay.
        tokenizer: pads on the left, so that `[:, -1]` is every prompt's last token.
        processor: of a model that sees images, what makes inputs of them; None: there is none, and `no_processor` says
            why.
    """

    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase
    no_processor: str
    spec: ModelSpec
    tail: Tail
    parallel: bool
    attention_access: AttentionAccess
    fed: Fed
    position_limit: int | None  # positions that it has a table for; None: it computes them
    trace_memory: TraceMemory
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    _num_layers: int
    _vocab_size: int
    _given: Given
    _tree: ModuleTree | None = ModuleTree()  # None: modules were replaced, and the names do not fit

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        processor: ProcessorMixin | str | Path | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        verify: bool = True,
        rename_config: RenameConfig | None = None,
        rename: Mapping[Any, Any] | None = None,
        envoys: Mapping[Any, Any] | None = None,
        remote: bool = False,
        **options: Any,
    ) -> None:
        """Load a model, or wrap one that is in memory, and prove that its names mean what they say.

        Arguments:
            model: a local folder, a hub id, or a transformers model in memory (put into eval mode), also in the wrapper
                of peft, `torch.compile` or `DataParallel`: the model inside is used, its adapters stay active.
            tokenizer: an object, or where to load it from; None: from where the model is. A model in memory needs
                one. An object is set to pad on the left.
            tokenizer_kwargs: keyword arguments of the tokenizer's `from_pretrained`.
            processor: of a model that sees images, an object or where to load it from; None: from where the model is.
                Its tokenizer is the model's, unless one is given.
            revision: branch, tag or commit on the hub.
            dtype: `float32`, `bfloat16`, `float16` or torch's; None: the checkpoint's own.
            device_map: accelerate's placement: `auto`, `cpu`, `cuda:0`, a mapping; None: the CPU.
            attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None: transformers' choice.
            trust_remote_code: run code that the hub repository carries.
            verify: run the proofs (`interp.model.verify`): a few forward passes over five tokens. A family that has no
                record is proved whatever this says.
            rename_config: where things are, for a family that has no record, or has it wrong.
            rename: further names of modules, as nnsight takes them: own name -> further name.
            envoys: classes of envoys for some modules, as nnsight takes them.
            remote: load no weights: traces run elsewhere (`trace(..., remote=True)`). Nothing is proved.
            options: any other keyword argument of transformers' `from_pretrained`, or a field of the config to change.
                nnterp's `check_renaming` (here `verify`), `allow_dispatch`, `enable_attention_probs`,
                `check_attn_probs_with_trace` and `allow_multimodal` are taken too; but for the first they ask for what
                is always so here.

        Raises:
            InterpError: no such model or tokenizer, incomplete weights, an unknown architecture or keyword, a
                proof that fails; the message says what to do.
        """
        verify = bool(options.pop("check_renaming", verify)) and not remote
        for needless in ("allow_dispatch", "enable_attention_probs", "check_attn_probs_with_trace", "allow_multimodal"):
            options.pop(needless, None)
        if "torch_dtype" in options:
            dtype = options.pop("torch_dtype")
        if isinstance(model, nn.Module):
            model = module = unwrapped(model)
            check_options(options, getattr(module, "config", None))
            reject_load_options(
                revision=revision,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                **options,
            )
            if tokenizer is None and processor is None:
                raise InterpError("a model in memory needs its tokenizer: pass tokenizer=, an object or a folder.")
        elif remote:
            module = load_skeleton(
                model,
                revision=revision,
                trust_remote_code=trust_remote_code,
                options=options,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
            )
        else:
            module = load_model(
                model,
                revision=revision,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                options=options,
            )
        processor, no_processor = processor_of(
            processor, module, model, revision, trust_remote_code=trust_remote_code, options=options
        )
        if tokenizer is None and processor is not None and not tokenizer_kwargs:
            tokenizer = processor.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            where, at = (tokenizer, None) if tokenizer is not None else (model, revision)
            assert isinstance(where, str | Path)
            tokenizer = load_tokenizer(
                where, revision=at, trust_remote_code=trust_remote_code, options=tokenizer_kwargs
            )
        config: Any = getattr(module, "config", None)
        if config is None or not hasattr(config, "model_type"):
            raise InterpError(f"expected a transformers model, which has a config, got {type(module).__name__}.")
        found = candidates(config, module, rename_config)
        # Without a device, the pipeline that nnsight builds would move a model on the CPU to the first GPU.
        placed = {} if hasattr(module, "hf_device_map") else {"device": module.device}
        names = merged(self._standard_names(found.records[0], module), rename, reserved=RESERVED)
        interleaver = ThreadInterleaver.new(TPFragments())
        with quiet_pipeline():
            super().__init__(
                module.eval(), tokenizer=tokenizer, rename=names, envoys=envoys, interleaver=interleaver, **placed
            )
        self.no_processor = no_processor
        self.processor = processor  # not nnsight's: its pipeline is of text
        if processor is not None:
            processor.tokenizer = self.tokenizer
        if isinstance(model, str | Path):
            self.repo_id, self.revision = str(model), revision
            if trust_remote_code:  # what a server is asked to load
                self.kwargs: dict[str, Any] = {**self.kwargs, "trust_remote_code": True}
        self.fed, self.trace_memory = Fed(), TraceMemory()
        verdicts_of(self).clear()  # the module may have been wrapped before, and changed since
        self._given = Given(rename_config, rename, verify)
        self._choose(found, config)

    @staticmethod
    def _standard_names(record: Architecture, module: nn.Module) -> dict[Any, list[str]]:
        """What nnsight is told to call modules, beside their own names."""
        return aliases(record, module)

    def follow(self) -> None:
        """Take up modules that were replaced since the model was wrapped; every trace begins with this.

        Raises:
            InterpError: the names do not fit the model any more, and what to do.
        """
        if self.interleaver.interleaving or self._follows():
            return
        with turn(self._module):  # another thread may be at it
            if not self._follows():
                follow(self)

    def _follows(self) -> bool:
        return self._tree is not None and self._tree.is_current()

    def _take_sizes(self, config: Any) -> None:
        given = self._given.rename_config or RenameConfig()
        sizes = (
            ("hidden_size", given.hidden_size_config_key, "hidden_size_config_key"),
            ("vocab_size", given.vocab_size_config_key, "vocab_size_config_key"),
            ("num_heads", given.attn_head_config_key, "attn_head_config_key"),
        )
        for name, key, argument in sizes:
            value = config_value(config, key, argument)
            value = getattr(self.spec, name) if value is None else value
            setattr(self, "_vocab_size" if name == "vocab_size" else name, value)
        # A model without attention has no heads.
        self.num_kv_heads = self.spec.num_kv_heads or 0
        self.head_dim = self.spec.head_dim or 0

    def _choose(self, found: Candidates, config: Any) -> None:
        """Take the record, or of several guesses the first that is proved."""
        self._tree = ModuleTree(self._module)
        nearest: tuple[int, str] | None = None  # of the records that failed, the one with the fewest failures
        for record in found.records:
            self._take(record, config)
            if found.known and not self._given.verify:
                return
            try:
                failed = [proof.message(self) for proof in failures(prove(self))]
            except OutOfOrderError as error:
                failed = [never_reached(self, error)]
            if not failed:
                return
            if nearest is None or len(failed) < nearest[0]:
                nearest = len(failed), failed[0]
        assert nearest is not None  # there is at least one record
        if found.known:
            raise InterpError(nearest[1])
        raise InterpError(
            f"unknown architecture {config.model_type!r}: no record of it, and though it has the modules of "
            f"{len(found.records)} known layouts, it does not compute as they do. The nearest: {nearest[1]}"
        )

    def _take(self, record: Architecture, config: Any) -> None:
        self.architecture = record
        self.spec = ModelSpec.from_model(self._module, architecture=record)
        self._take_sizes(config.get_text_config())
        self.parallel = record.parallel
        self._num_layers = len(self.get(record.layers))
        self.position_limit = position_limit(self._module.get_submodule(record.layers.rpartition(".")[0]))
        self.tail = Tail.of(record, config.get_text_config(), self._module)
        given = self._given.rename_config
        source = None if given is None else given.attn_prob_source
        self.attention_access = AttentionAccess(
            Attentions(self), config.get_text_config().model_type, pattern_source=source
        )
        guard_padding(record, self._module)

    @property
    def num_layers(self) -> int:
        """How many layers the model has now."""
        self.follow()
        return self._num_layers

    @property
    def vocab_size(self) -> int:
        """How many logits the model gives now."""
        self.follow()
        return self._vocab_size

    @property
    def device(self) -> torch.device:
        """Where prompts go: the device on which the token embedding runs."""
        device = execution_device(self._module.get_submodule(self.architecture.embedding))
        return self._module.device if device is None else device  # quantized embeddings may have no parameters

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights, which is that of its activations."""
        return self._module.dtype

    @property
    def takes_position_ids(self) -> bool:
        """Whether the forward pass is given positions; families without (Bloom, MPT) know distances alone."""
        return "position_ids" in inspect.signature(type(self._module).forward).parameters

    def layer(self, layer: int) -> Any:
        """The envoy of one layer, counted from 0."""
        return self.get(self.architecture.layers)[layer]

    def trace(self, *inputs: Any, **kwargs: Any) -> Any:
        """nnsight's trace, of the modules that the model has now.

        Raises:
            InterpError: a trace of this model is open in this thread, or its modules were changed and its names do not
                fit any more.
        """
        check_not_open(self)
        self.follow()  # before there is a tracer: the proofs are traces too
        return TransformersModel.trace(self, *inputs, **kwargs)

    def scan(self, *inputs: Any, **kwargs: Any) -> Any:
        """nnsight's trace of shapes alone, of the modules that the model has now."""
        self.follow()
        return TransformersModel.scan(self, *inputs, **kwargs)

    def interleave(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """nnsight's driver of a trace; what the trace switched on is switched off, whatever happens.

        Another thread's trace of the model waits until this one is over.
        """
        check_inputs(args, kwargs)
        check_keywords(self, fn, kwargs)
        with turn(self._module):
            padding = PaddingWatch(self).watch()
            watch = before(self._module, lambda _, given, named: self.fed.take(self, given, named))
            try:
                # Not super(): on a server this method is rebuilt from its source, where super() finds no class.
                return TransformersModel.interleave(self, fn, *args, **kwargs)
            finally:
                padding.remove()
                watch.remove()
                self.attention_access.release()
                self.trace_memory.values.clear()

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        if has_images(inputs, kwargs):
            rows: int = resolve_name("interp.model.image_inputs:rows_of")(inputs, kwargs)
            return rows
        return TransformersModel._batch_size(self, *inputs, **kwargs)

    def _batch(self, invokes: list[Any], fn: Any) -> Any:
        for given, _ in invokes:
            check_prompts(given)
        if any(has_images(given, named) for given, named in invokes):
            # By name: with what it imports, this method goes to servers.
            read = resolve_name("interp.model.image_inputs:inputs_of_invokes")
            return (), read(self, invokes, generates=getattr(fn, "__name__", None) == "generate")
        # nnsight makes masks and positions on torch's default device, which need not be where the prompts are.
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            return TransformersModel._batch(self, invokes, fn)

    def _remote_backend(self, *args: Any, **kwargs: Any) -> Any:
        # A server has no `interp`: its source travels with the request. Not before there is one: what is pickled by
        # value loses its class in other processes (an InterpError from a worker would be no InterpError any more).
        nnsight.register("interp")
        return super()._remote_backend(*args, **kwargs)

    def _remoteable_class(self) -> type:
        return TransformersModel  # a server knows nnsight's class; the names go with what is sent

    # Readout ------------------------------------------------------------------------------------------------------

    def readout(self, hidden: Tensor, *, negate: bool = False) -> Tensor:
        """From a residual stream to the vocabulary through the model's own tail: norm, head, scale, softcap.

        Plain torch under the caller's grad mode; inside a trace the modules are called without being taken for the
        forward pass. At the last layer it gives the model's logits exactly.

        Arguments:
            hidden: (..., hidden), moved to the device and dtype of the model's last norm.
            negate: negate after the norm: the tokens that the direction lowers.

        Returns:
            Logits (..., vocabulary), on the device of the head.

        Raises:
            InterpError: the last axis is not `hidden_size`.
        """
        hidden = self.tail_input(hidden)
        if self.interleaver.interleaving:
            return self.tail(hidden, self.get, negate=negate)
        return self.tail(hidden, self._module.get_submodule, negate=negate)

    def readout_parts(self, *, negate: bool = False) -> ReadoutParts | None:
        """The readout with its head as a matrix, for logits of some tokens alone; as it is now, to be asked for anew.

        Arguments:
            negate: as in `readout`.

        Returns:
            None where the head is more than a matrix in memory (quantized, offloaded, hooked, adapted), or a trace
            runs: then `readout` alone says what the logits are.
        """
        head = self._module.get_submodule(self.tail.paths[-1])
        if self.interleaver.interleaving or not plain_head(head):
            return None
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()

        @torch.no_grad()
        def states(hidden: Tensor) -> Tensor:
            hidden = self.tail.before_head(self.tail_input(hidden), self._module.get_submodule, negate=negate)
            return hidden.to(device=weight.device)

        return ReadoutParts(states, weight, bias, self.tail)

    def tail_input(self, hidden: Tensor) -> Tensor:
        """A hidden state on the device and in the dtype in which the tail's first module takes it."""
        if hidden.shape[-1:] != (self.hidden_size,):
            raise InterpError(f"readout: expected hidden (..., {self.hidden_size}), got shape {tuple(hidden.shape)}.")
        first = self._module.get_submodule(self.tail.paths[0])
        return hidden.to(device=execution_device(first) or hidden.device, dtype=self.dtype)

    def digest(self) -> str:
        """SHA-256 of config and weights, 64 hexadecimal digits; the same on every device and from every folder."""
        return model_digest(self._module)
