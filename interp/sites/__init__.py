"""The vocabulary of sites: what can be read and written in a model, and every spelling of it.

A site is a kind, for most kinds a layer, and for some a head: `resid_post.3`, `pattern.2.h0`, `embed`. Where several
are asked for, layers and heads are a list, a range (both ends included), counted from the end, or all:
`resid_post.0,4-6,-1`, `attn_out.*`, `z.3-5.h0`, `q.2.h*`. Without heads, a site is the tensor of all heads.

| kind | what it is | shape |
|---|---|---|
| `embed` | residual stream that enters layer 0 | batch, position, hidden |
| `resid_pre`, `resid_mid`, `resid_post` | residual stream before, inside, after a layer | batch, position, hidden |
| `attn_in`, `mixer_in`, `mlp_in` | what attention, the other token mixer (Mamba, linear attention, convolution, \
recurrent block) and the MLP receive, after their norm | batch, position, hidden |
| `q` | queries, as the attention function receives them | batch, head, position, head_dim |
| `k`, `v` | keys and values, as the attention function receives them | batch, key-value head, position, head_dim |
| `scores`, `pattern` | before and after the softmax of attention | batch, head, query, key |
| `z` | what each head gives before the output projection | batch, position, head, head_dim |
| `head_out` | what each head adds; with the bias, the sum is `attn_out` | batch, position, head, hidden |
| `attn_out`, `mixer_out`, `mlp_out` | what each adds to the residual stream | batch, position, hidden |
| `mlp_post` | neurons: what the MLP's output projection receives | batch, position, mlp_width |
| `final_norm` | after the model's last norm | batch, position, hidden |
| `logits` | the model's own output | batch, position, vocabulary |

A model that sees has `vision.resid_pre` and `vision.resid_post` too, the residual stream of its vision tower (image or
tile, patch, width), in traces alone.

What other systems call these places is read too: `blocks.3.hook_resid_post`, `resid_out_3`, `layers_output[3]`,
`hidden_states[4]`. The tables are in `interp.sites.spellings`.
"""

from interp.sites.kinds import (
    ATTENTION_KINDS,
    HEAD_KINDS,
    HIDDEN_KINDS,
    KINDS,
    LAYER_KINDS,
    MAP_KINDS,
    SHAPES,
    VISION_KINDS,
    VISION_SHAPES,
    Site,
)
from interp.sites.parsing import (
    Spelling,
    canonical,
    check_layers,
    check_sites,
    layers_by_kind,
    parse_layers,
    parse_site,
    parse_sites,
)

__all__ = [
    "ATTENTION_KINDS",
    "HEAD_KINDS",
    "HIDDEN_KINDS",
    "KINDS",
    "LAYER_KINDS",
    "MAP_KINDS",
    "SHAPES",
    "VISION_KINDS",
    "VISION_SHAPES",
    "Site",
    "Spelling",
    "canonical",
    "check_layers",
    "check_sites",
    "layers_by_kind",
    "parse_layers",
    "parse_site",
    "parse_sites",
]
