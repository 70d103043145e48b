"""Models as users write them: positions counted from the first column, no attention mask, few keywords."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class SmallConfig(PretrainedConfig):
    model_type = "small"

    def __init__(self, n_embd: int = 32, n_head: int = 4, n_layer: int = 3, **kwargs: Any) -> None:
        self.n_embd, self.n_head, self.n_layer, self.vocab_size, self.block_size = n_embd, n_head, n_layer, 400, 64
        self.hidden_size, self.num_attention_heads, self.num_hidden_layers = n_embd, n_head, n_layer
        super().__init__(**kwargs)


class Attention(nn.Module):
    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn, self.c_proj = nn.Linear(config.n_embd, 3 * config.n_embd), nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        return self.c_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(config.n_embd, 64), nn.Linear(64, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn, self.mlp = Attention(config), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SmallForCausalLM(PreTrainedModel, GenerationMixin):
    """nanoGPT's layout: `transformer.wte`, `wpe`, `h`, `ln_f`, `lm_head`. It swallows a mask and positions unread."""

    config_class = SmallConfig

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        parts = dict(
            wte=nn.Embedding(400, config.n_embd), wpe=nn.Embedding(64, config.n_embd), h=blocks,
            ln_f=nn.LayerNorm(config.n_embd),
        )  # fmt: skip
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, 400, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["wte"]

    def forward(self, input_ids: Tensor, **unread: Any) -> CausalLMOutput:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"](places)
        for block in self.transformer["h"]:  # type: ignore[attr-defined]
            x = block(x)
        return CausalLMOutput(logits=self.lm_head(self.transformer["ln_f"](x)))


class MaskedForCausalLM(SmallForCausalLM):
    """One that names the mask, as many do, and does not look at it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unread: Any) -> CausalLMOutput:
        return super().forward(input_ids)


def small_model(kind: type[SmallForCausalLM] = SmallForCausalLM) -> nn.Module:
    """A random one, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(SmallConfig())
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return model.eval()
