"""The modules, tokenizer and processor of a `HookedModel`, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.compat.easyroutine.input_batch import InputBatch
from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["ModuleMethods"]

_INDEX = re.compile(r"\[(-?\d+)\]")


class ModuleMethods:
    """What a `HookedModel` gives of its model."""

    standardized: StandardizedTransformer
    hf_model: Any
    hf_tokenizer: Any

    def _begin(self) -> None:
        self._forward_hooks: list[Any] = []
        self._language_model_only = False

    # Tokens -----------------------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Any:
        """The processor, or the tokenizer of a model of text alone."""
        processor = self.get_processor()
        return self.hf_tokenizer if processor is None else processor

    def get_text_tokenizer(self) -> Any:
        """The tokenizer, also of a model with a processor."""
        return self.hf_tokenizer

    def get_processor(self) -> Any:
        """The processor; None for a model of text alone."""
        return getattr(self.standardized, "processor", None)

    def is_multimodal(self) -> bool:
        """Whether the model has a processor."""
        return self.get_processor() is not None

    def get_image_placeholder(self) -> str:
        """What stands for an image in a text.

        Raises:
            InterpError: the model takes none.
        """
        processor = self.get_processor()
        if processor is None:
            raise InterpError(f"{type(self.hf_model).__name__} has no processor, and so takes no images.")
        # In some families the processor writes around the token that the user does not write.
        written = getattr(processor, "boi_token", None) if hasattr(processor, "full_image_sequence") else None
        return str(written or processor.image_token)

    def to_string_tokens(self, tokens: list[int] | Tensor) -> list[str]:
        """The text of each token; of a token that is part of a character, its piece in the vocabulary.

        Arguments:
            tokens: token ids, also as a batch of one.

        Raises:
            InterpError: several examples, or what is no token.
        """
        ids = torch.as_tensor(tokens)
        if ids.dim() > 1 and ids.numel() != ids.shape[-1]:
            raise InterpError(f"to_string_tokens: expected the tokens of one example, got shape {tuple(ids.shape)}.")
        found = []
        for token in ids.flatten().tolist():
            text = self.hf_tokenizer.decode([token], clean_up_tokenization_spaces=False)
            piece = self.hf_tokenizer.convert_ids_to_tokens(token)
            if piece is None:
                raise InterpError(f"to_string_tokens: {token} is no token of this tokenizer.")
            found.append(piece if "\ufffd" in text else text)
        return found

    # The language model alone -----------------------------------------------------------------------------------------

    def use_language_model(self) -> None:
        """Take texts alone from now on, and paths of modules from the language model on; its numbers are the same.

        Of a model of text alone nothing changes.
        """
        self._language_model_only = self.is_multimodal()

    use_language_model_only = use_language_model

    def use_full_model(self) -> None:
        """Take images again, and paths from the whole model on."""
        self._language_model_only = False

    def read_batch(self, inputs: Any, pivots: Any = None) -> InputBatch:
        """A batch as its examples; arguments as of `InputBatch.of`.

        Raises:
            InterpError: what the model cannot be fed; images, while the language model alone is used.
        """
        batch = InputBatch.of(self.standardized, inputs, pivots)
        if self._language_model_only and any(one.media is not None for one in batch.encoded):
            raise InterpError("inputs: the language model alone takes no images. Call use_full_model() first.")
        return batch

    # Modules ----------------------------------------------------------------------------------------------------------

    def get_module_from_string(self, component: str) -> nn.Module:
        """A module by its path, `model.layers.0.self_attn` or `model.layers[0].self_attn`.

        Raises:
            InterpError: there is none, with the nearest ones.
        """
        path = _INDEX.sub(r".\1", component).strip(".")
        modules = dict(self.hf_model.named_modules())
        if self._language_model_only:  # as a language model of its own has them
            root = self.standardized.architecture.layers.rpartition(".")[0]
            own = {f"model{name.removeprefix(root)}": part for name, part in modules.items() if name.startswith(root)}
            modules = {**modules, **own}
        if path not in modules:
            raise InterpError(f"there is no module {component!r}.{nearest(path, _near(path, modules))}")
        return modules[path]

    def get_lm_head(self) -> Tensor:
        """The weight of the head, (vocabulary, hidden)."""
        head: Any = self.standardized.lm_head
        weight: Tensor = head._module.weight
        return weight

    def get_last_layernorm(self) -> nn.Module:
        """The norm behind the last layer.

        Raises:
            InterpError: the model has none.
        """
        path = self.standardized.architecture.final_norm
        if path is None:
            raise InterpError(f"{type(self.hf_model).__name__} has no norm behind its last layer.")
        return self.hf_model.get_submodule(path)

    def device(self) -> torch.device:
        """Where the model is; of one on several devices, the first."""
        first: Tensor = next(self.hf_model.parameters())
        return first.device

    def eval(self) -> None:
        """Set the model to evaluation mode."""
        self.hf_model.eval()

    def register_forward_hook(self, component: str, hook_function: Callable[[nn.Module, Any, Any], Any]) -> None:
        """Call a function in every forward pass from now on, until `clean_forward_hooks`.

        Arguments:
            component: the module, as `get_module_from_string` takes it.
            hook_function: called as `hook_function(module, input, output)`; what it returns goes on in the output's
                place,
                None: the output.

        Raises:
            InterpError: there is no such module.
        """
        self._forward_hooks.append(self.get_module_from_string(component).register_forward_hook(hook_function))

    def clean_forward_hooks(self) -> None:
        """Remove what `register_forward_hook` added."""
        for handle in self._forward_hooks:
            handle.remove()
        self._forward_hooks.clear()


def _near(path: str, modules: dict[str, nn.Module]) -> list[str]:
    """Names of modules that a wrong path may have meant: those beside its longest right part."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        begin = ".".join(parts[:depth])
        if begin in modules:
            return [f"{begin}.{name}".strip(".") for name, _ in modules[begin].named_children()] or [begin]
    return []
