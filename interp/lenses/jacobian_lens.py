"""The Jacobian lens: what is a state of layer l disposed to make the model say, now or later?

A state h of layer l is carried to the last layer by the average Jacobian J_l = E[d h_last / d h_l] over prompts, source
positions and later target positions, and read there: softmax(W_U norm(J_l h)). The average is over later positions too,
so it is no prediction of the next token; and it holds for the checkpoint that it was fitted to alone. At the last layer
J is the identity: there the lens is the model's own output. In plain nnsight, with jacobian (layer, hidden, hidden):

    log_prob = {}
    with model.trace(prompt):
        for layer in layers:
            hidden = model.layers_output[layer][:, -1] @ jacobian[layer].T
            log_prob[layer] = model.lm_head(model.ln_final(hidden)).log_softmax(-1)

Gurnee, Sofroniew, Lindsey et al., "Verbalizable Representations Form a Global Workspace in Language Models" (2026).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.logit_lens import read_carried
from interp.lenses.reading import LensPrompt, Positions, Targets
from interp.lenses.sources import Latents
from interp.results import LensResult
from interp.translators import AffineMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["jacobian_lens", "load_jacobians"]


def load_jacobians(path: str | Path) -> AffineMap:
    """Read the matrices of a fitted Jacobian lens, as its authors' library `jlens` and Neuronpedia publish them.

    Arguments:
        path: a `.pt` file: a mapping with `J`, from layers to (hidden_size, hidden_size) matrices that a state after
            the layer is multiplied by. Read without running what a pickle may hold.

    Returns:
        The map of each layer, float32, without bias.

    Raises:
        InterpError: there is no such file, or it holds something else.
    """
    path = Path(path).expanduser()
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InterpError(f"expected the matrices of a Jacobian lens at {path}, found none.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InterpError(f"{path}: expected a file of torch.save, got: {str(error).splitlines()[0]}") from None
    matrices = held.get("J") if isinstance(held, dict) else None
    square = isinstance(matrices, dict) and all(
        isinstance(layer, int) and isinstance(matrix, Tensor) and matrix.dim() == 2 and len(set(matrix.shape)) == 1
        for layer, matrix in matrices.items()
    )
    if not matrices or not square or len({matrix.shape for matrix in matrices.values()}) != 1:
        raise InterpError(
            f"{path}: expected a mapping with `J`, from layers to square matrices of one size, got "
            f"{sorted(held) if isinstance(held, dict) else type(held).__name__}."
        )
    layers = tuple(sorted(matrices))
    weight = torch.stack([matrices[layer].float() for layer in layers])
    return AffineMap(layers, weight, torch.zeros(weight.shape[:2], dtype=torch.float32, device="cpu"))


def jacobian_lens(
    model: StandardizedTransformer,
    jacobians: AffineMap,
    source: LensPrompt | Sequence[LensPrompt] | Latents,
    targets: Targets | None = None,
    *,
    images: Any = None,
    layers: Sequence[int] | None = None,
    positions: Positions = "last",
    policy: str = "first_token",
    top_k: int = 5,
    inverted: bool = False,
    batch_size: int = 256,
    batch_tokens: int | None = None,
) -> LensResult:
    """Jacobian lens (Gurnee et al. 2026): carry hidden states to the last layer by a matrix a layer, and read them out.

    Arguments:
        model: the model.
        jacobians: the matrix of each layer (`load_jacobians`). The model's last layer needs none: it is read as it is.
        source, targets, images, positions, policy, top_k, inverted, batch_size, batch_tokens: as in `logit_lens`.
        layers: ascending; None: those that there are matrices of and the last, or all that there are latents of.

    Returns:
        The lens, axes as in `logit_lens`; logarithms in nats.

    Raises:
        InterpError: as `logit_lens` does; a layer that there is no matrix for.
    """
    last = model.num_layers - 1

    def carry(hidden: Tensor, layers: tuple[int, ...]) -> Tensor:
        states, inner = hidden.float(), [at for at, layer in enumerate(layers) if layer != last]
        if inner:
            states = states.clone()
            states[inner] = jacobians(states[inner], [layers[at] for at in inner])
        return states

    own = sorted({*jacobians.layers, last})
    every = source.all_layers(model.num_layers) if isinstance(source, Latents) else own
    return read_carried(
        model,
        source,
        targets,
        carry,
        images=images,
        layers=every if layers is None else layers,
        positions=positions,
        policy=policy,
        top_k=top_k,
        inverted=inverted,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
    )
