"""The tuned lens: what does a layer know of the answer, in whatever code it writes?

A learned affine map for each layer, its translator, carries the residual stream to what the last layer would make of
it, then the model's own readout reads that. A translator is trained to say what the model will say, so the lens tells
what can be read off a layer linearly, which need not be what later layers read; and it holds for the model and the kind
of text that it was trained on. In plain nnsight, with weight (layer, hidden, hidden) and bias (layer, hidden):

    log_prob = {}
    with model.trace(prompt):
        for layer in layers:
            hidden = model.layers_output[layer][:, -1]
            hidden = hidden + hidden @ weight[layer].T + bias[layer]
            log_prob[layer] = model.lm_head(model.ln_final(hidden)).log_softmax(-1)

Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023), arXiv 2303.08112. The lens
itself, its training and its files are `interp.translators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.lenses.logit_lens import read_carried
from interp.lenses.reading import LensPrompt, Positions, Targets
from interp.lenses.sources import Latents
from interp.results import LensResult
from interp.translators.layer_translators import TunedLens

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["tuned_lens"]


def tuned_lens(
    model: StandardizedTransformer,
    lens: TunedLens,
    source: LensPrompt | Sequence[LensPrompt] | Latents,
    targets: Targets | None = None,
    *,
    images: Any = None,
    layers: Sequence[int] | None = None,
    positions: Positions = "last",
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 256,
    batch_tokens: int | None = None,
) -> LensResult:
    """Tuned lens (Belrose et al. 2023): translate hidden states of inner layers, then read them out as the last one's.

    Arguments:
        model: the model.
        lens: its tuned lens.
        source, targets, images, positions, policy, top_k, batch_size, batch_tokens: as in `logit_lens`.
        layers: ascending, layers of the lens and the model's last, which is read as it is; None: all of these, or all
            that there are latents of.

    Returns:
        The lens, axes as in `logit_lens`; logarithms in nats.

    Raises:
        InterpError: as `logit_lens` does; layers that the lens does not have.
    """
    every = source.all_layers(model.num_layers) if isinstance(source, Latents) else (*lens.layers, model.num_layers - 1)
    return read_carried(
        model,
        source,
        targets,
        lens.translate,
        images=images,
        layers=every if layers is None else layers,
        positions=positions,
        policy=policy,
        top_k=top_k,
        inverted=False,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
    )
