"""`HookedModel`: a model under easyroutine's names, called as easyroutine's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interp.compat.easyroutine.extraction_config import HookedModelConfig
from interp.compat.easyroutine.extraction_methods import ExtractionMethods
from interp.compat.easyroutine.generation_calls import GenerationCalls
from interp.compat.easyroutine.hook_lists import HookLists
from interp.compat.easyroutine.module_methods import ModuleMethods
from interp.compat.easyroutine.pair_patching import PairPatching
from interp.compat.easyroutine.query_methods import QueryMethods
from interp.model import StandardizedTransformer

__all__ = ["HookedModel"]


class HookedModel(ExtractionMethods, QueryMethods, PairPatching, GenerationCalls, HookLists, ModuleMethods):
    """A language model, also one that sees, with easyroutine's flags, named positions and queries.

        model = HookedModel.from_pretrained("meta-llama/Llama-3.2-1B")
        cache = model.forward(inputs, target_token_positions=["last"], extract_resid_out=True)

    Attributes:
        config: how it was loaded.
        standardized: the same model under interp's names.
        hf_model: the transformers model.
    """

    def __init__(self, config: HookedModelConfig) -> None:
        """Load a model.

        Arguments:
            config: which, and how; `model_name` may be interp's own model, which is taken as it is.

        Raises:
            InterpError: it cannot be loaded, or is no decoder that interp knows; the message says what to do.
        """
        self.config = config
        given = config.model_name
        if not isinstance(given, StandardizedTransformer):
            given = StandardizedTransformer(
                given,
                dtype=config.torch_dtype,
                device_map=_placement(config.device_map),
                attn_implementation=config.attn_implementation.removeprefix("custom_"),
            )
        self.standardized = given
        self.hf_model: Any = given._module
        self.hf_tokenizer: Any = given.tokenizer
        self._begin()

    @classmethod
    def from_pretrained(cls, model_name: str | Path | StandardizedTransformer, **kwargs: Any) -> HookedModel:
        """Load a model; `kwargs` are fields of `HookedModelConfig`."""
        return cls(HookedModelConfig(model_name=model_name, **kwargs))

    def __repr__(self) -> str:
        return f"HookedModel(model_name={self.name}):\n{self.hf_model!r}"

    @property
    def name(self) -> str:
        """What the model is called."""
        given = self.config.model_name
        return type(self.hf_model).__name__ if isinstance(given, StandardizedTransformer) else str(given)


def _placement(device_map: Any) -> Any:
    return "cpu" if device_map in ("balanced", "auto") and not torch.cuda.is_available() else device_map
