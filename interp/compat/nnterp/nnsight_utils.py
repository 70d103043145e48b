"""nnterp's `nnsight_utils`: the parts of a model by name, and its activations.

The functions take a `StandardizedTransformer` and any nnsight model of a transformers causal language model.
"""

from interp.compat.nnterp.collecting import (
    collect_last_token_activations_session,
    collect_token_activations_batched,
    compute_next_token_probs,
    get_token_activations,
)
from interp.compat.nnterp.modules import (
    GetModuleOutput,
    ModuleAccessor,
    get_attention,
    get_attention_output,
    get_embed_tokens,
    get_layer,
    get_layer_input,
    get_layer_output,
    get_layers,
    get_logits,
    get_mlp,
    get_mlp_output,
    get_next_token_probs,
    get_num_layers,
    get_unembed,
    get_unembed_norm,
    project_on_vocab,
    set_layer_output,
    skip_layer,
    skip_layers,
)

__all__ = [
    "GetModuleOutput",
    "ModuleAccessor",
    "collect_last_token_activations_session",
    "collect_token_activations_batched",
    "compute_next_token_probs",
    "get_attention",
    "get_attention_output",
    "get_embed_tokens",
    "get_layer",
    "get_layer_input",
    "get_layer_output",
    "get_layers",
    "get_logits",
    "get_mlp",
    "get_mlp_output",
    "get_next_token_probs",
    "get_num_layers",
    "get_token_activations",
    "get_unembed",
    "get_unembed_norm",
    "project_on_vocab",
    "set_layer_output",
    "skip_layer",
    "skip_layers",
]
