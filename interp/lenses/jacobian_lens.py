"""The Jacobian lens: what is a state of layer l disposed to make the model say, now or later?

Gurnee, Sofroniew, Lindsey et al., "Verbalizable Representations Form a Global Workspace in Language Models" (2026). A
state h of layer l is carried to the last layer by the average Jacobian J_l = E[d h_last / d h_l] over prompts, source
positions and later target positions, and read there: softmax(W_U norm(J_l h)). In plain torch, for hidden (layer,
example, hidden) and jacobian (layer, hidden, hidden):

    carried = torch.einsum("lij,lej->lei", jacobian, hidden)
    log_probs = model.lm_head(model.model.norm(carried)).log_softmax(-1)

The average is over later positions too, so it is no prediction of the next token; and it holds for the checkpoint that
it was fitted to alone. At the last layer J is the identity: there the lens is the model's own output.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.logit_lens import logit_lens
from interp.readout import Groups
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


@torch.no_grad()
def jacobian_lens(
    model: StandardizedTransformer,
    jacobians: AffineMap,
    hidden: Tensor,
    groups: Groups,
    *,
    layers: Sequence[int],
    top_k: int = 5,
    batch_size: int = 256,
    reference: Tensor | None = None,
    inverted: bool = False,
) -> LensResult:
    """Jacobian lens (Gurnee et al. 2026): carry hidden states to the last layer by a matrix a layer, and read them out.

    Arguments:
        model: the model.
        jacobians: the matrix of each layer (`load_jacobians`). The model's last layer needs none: it is read as it is.
        hidden: (layer, example, hidden_size), residual streams after layers, one token an example; any device and
            float dtype.
        groups: per example, per group: token ids whose probability is summed.
        layers: what the axis `layer` of `hidden` stands for, ascending.
        top_k: how many top tokens are kept.
        batch_size: examples that are carried and read out at once.
        reference: (example, hidden_size), the residual stream after the model's last layer at the same token, which
            gives `surprisal` and `model_top_id`; None: not known.
        inverted: negate after the final norm: the tokens that a state lowers.

    Returns:
        The lens over all examples, axes `example` and `layer`; logarithms in nats, `kl` from the last of `layers`.

    Raises:
        InterpError: shapes that do not fit, a layer that there is no matrix for, token ids outside the vocabulary.
    """
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    if hidden.dim() != 3 or hidden.shape[:2] != (len(layers), len(groups)):
        raise InterpError(
            f"hidden: expected shape (layer, example, hidden_size) = ({len(layers)}, {len(groups)}, "
            f"{model.hidden_size}), got {tuple(hidden.shape)}."
        )
    if reference is not None and len(reference) != len(groups):
        raise InterpError(f"reference: expected {len(groups)} examples, got {len(reference)}.")
    last = model.num_layers - 1
    carried = [at for at, layer in enumerate(layers) if layer != last]
    parts = []
    for start in range(0, max(len(groups), 1), batch_size):
        rows = slice(start, start + batch_size)
        states = hidden[:, rows].float()
        if carried:
            states = states.clone()
            states[carried] = jacobians(states[carried], [layers[at] for at in carried])
        parts.append(
            logit_lens(
                model,
                states,
                groups[rows],
                layers=layers,
                top_k=top_k,
                batch_size=batch_size,
                reference=None if reference is None else reference[rows],
                inverted=inverted,
            )
        )
    return LensResult.concatenate(parts)
