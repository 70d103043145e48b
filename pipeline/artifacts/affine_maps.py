"""Write and read the affine maps of a run: fitted to text by the stage `tune`, read by the stage `lens`.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102, sections 2 and 4.1: least squares from a layer's residual
streams to another layer's. They lie beside the tuned lens, in `tuned_lens/affine.safetensors`; the manifest says what
they were fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InterpError
from interp.translators.affine_maps import AffineFit, AffineMap, AffinePairs
from interp.translators.data import TokenSequence
from interp.translators.states import batches_of_tokens, token_states

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["AFFINE_FILE", "AffineMaps", "fit_affine", "load_affine"]

AFFINE_FILE = "affine.safetensors"
MANIFEST = "manifest.json"
ROWS_AT_ONCE = 512  # states that are held in float64 together
AffineMaps = AffineMap | AffinePairs


def fit_affine(
    model: StandardizedTransformer,
    sequences: Iterable[TokenSequence],
    *,
    layers: Sequence[int],
    pairs: bool,
    max_tokens: int,
    batch_tokens: int,
    ridge: float = 0.0,
) -> tuple[AffineMaps, int]:
    """Fit maps between layers by least squares, from one pass over text.

    A layer's map to itself is the identity, which is not fitted. The first token of each sequence is left out: where a
    model keeps an attention sink there, its few states would decide the squares of all others.

    Arguments:
        model: the model.
        sequences: the text; as much as is needed is taken.
        layers: source layers, and with `pairs` target layers; the model's last is always one of both.
        pairs: from each layer to each, else to the last.
        max_tokens: states of a layer at most.
        batch_tokens: tokens in a forward pass at most.
        ridge: weight of the penalty on the maps' size.

    Returns:
        The maps, and how many states they were fitted to.

    Raises:
        InterpError: too little text, or states that are not finite.
    """
    last = model.num_layers - 1
    held = tuple(sorted({*layers, last}))
    fit = AffineFit(
        len(held),
        model.hidden_size,
        model.hidden_size,
        num_targets=len(held) if pairs else None,
        device=model.device if model.device is not None and model.device.type == "cuda" else None,
    )
    for batch in batches_of_tokens(sequences, batch_tokens):
        states = token_states(model, batch, held)
        counted = torch.tensor([place > 0 for sequence in batch for place in range(len(sequence.ids))], device="cpu")
        rows = counted.nonzero()[: max_tokens - fit.num_rows, 0]
        for some in rows.split(ROWS_AT_ONCE):
            stacked = torch.stack([states.by_layer[layer][some.to(model.device)].to(model.device) for layer in held])
            fit.add(stacked, stacked if pairs else stacked[-1:])  # (layer, row, hidden_size)
        if fit.num_rows >= max_tokens:
            break
    try:
        weight, bias = fit.solve(ridge)  # (layer, target, hidden_size, hidden_size)
    except InterpError as error:
        raise InterpError(
            f"tune.affine: {error} Choose tune=text with more text, a larger tune.affine_tokens, or tune.affine_ridge."
        ) from None
    for place, layer in enumerate(held):
        own = place if pairs else 0
        if pairs or layer == last:
            weight[place, own], bias[place, own] = torch.eye(model.hidden_size, dtype=torch.float32, device="cpu"), 0.0
    made = AffinePairs(held, held, weight, bias) if pairs else AffineMap(held, weight[:, 0], bias[:, 0])
    return made, fit.num_rows


def load_affine(folder: str | Path, model: StandardizedTransformer) -> tuple[AffineMaps, dict[str, Any]]:
    """Read the maps of a run.

    Arguments:
        folder: the artifact of the stage `tune`.
        model: which they must be of.

    Returns:
        The maps, and what the manifest says of them: `maps`, `layers`, `tokens`, `fitted_to`, `text`, `ridge`, `model`.

    Raises:
        InterpError: there are none, or they are another model's.
    """
    manifest = Path(folder) / MANIFEST
    told = json.loads(manifest.read_text(encoding="utf-8")).get("affine") if manifest.is_file() else None
    if told is None:
        raise InterpError(
            f"{folder} holds no affine maps. Set tune.affine=last (or pairs) with tune=default or tune=text, and run "
            "the stage `tune` again."
        )
    if told["model"] != model.digest():
        raise InterpError(f"the affine maps in {folder} are of another model. Run the stage `tune` again.")
    kind = AffinePairs if told["maps"] == "pairs" else AffineMap
    return kind.load(Path(folder) / AFFINE_FILE), told
