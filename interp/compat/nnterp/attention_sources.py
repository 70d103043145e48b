"""Where attention patterns are computed, as nnsight's `source` names it, for `RenameConfig(attn_prob_source=...)`.

interp finds patterns without them. They need a model that was loaded with eager attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = [
    "AttnProbFunction",
    "bloom_attention_prob_source",
    "default_attention_prob_source",
    "gpt2_attention_prob_source",
    "gptj_attention_prob_source",
]


class AttnProbFunction(ABC):
    """Where the attention pattern is computed in an attention module, for `RenameConfig(attn_prob_source=...)`."""

    @abstractmethod
    def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
        """The nnsight operation whose output is the pattern.

        Arguments:
            attention_module: the envoy of the attention module.
            return_module_source: give the source that the operation is in, in its place.
        """

    def __call__(self, attention_module: Any, return_module_source: bool = False) -> Any:
        return self.get_attention_prob_source(attention_module, return_module_source)


def default_attention_prob_source(attention_module: Any, return_module_source: bool = False) -> Any:
    """Dropout inside the family's eager attention function, for families that go through `AttentionInterface`."""
    function = attention_module.source.attention_interface_1.source
    return function if return_module_source else function.nn_functional_dropout_0


gpt2_attention_prob_source = default_attention_prob_source


def bloom_attention_prob_source(attention_module: Any, return_module_source: bool = False) -> Any:
    """Dropout inside Bloom's attention."""
    return attention_module.source if return_module_source else attention_module.source.self_attention_dropout_0


def gptj_attention_prob_source(attention_module: Any, return_module_source: bool = False) -> Any:
    """Dropout inside GPT-J's `_attn`."""
    method = attention_module.source.self__attn_0.source
    return method if return_module_source else method.self_attn_dropout_0
