"""nnterp's check that every layer takes and gives hidden states of the right shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.compat.nnterp.renaming import IgnoreType, RenamingError
from interp.compat.nnterp.utils import try_with_scan
from interp.errors import InterpError

__all__ = ["check_io", "check_model_renaming"]


def check_io(std_model: Any, model_name: str, ignores: Sequence[IgnoreType]) -> None:
    """Check the shape of what every layer, its attention and its MLP take and give; inside a trace or a scan.

    Arguments:
        std_model: a `StandardizedTransformer`.
        model_name: what it is called in a message.
        ignores: what it has no module for.

    Raises:
        RenamingError: the first value that is not (batch, position, hidden).
    """
    rows, positions = std_model.input_size
    expected = (rows, positions, std_model.hidden_size)

    def check(name: str, value: Any, shape: tuple[int, ...] = expected) -> None:
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if came != shape:
            raise RenamingError(
                f"{model_name}: expected {name} to be {shape}, got {came}. Say where it is in rename_config=."
            )

    embeddings = std_model.token_embeddings  # some models project them to the hidden size afterwards
    check("token_embeddings", embeddings, (rows, positions, embeddings.shape[-1]))
    for layer in range(std_model.num_layers):
        check(f"layers_input[{layer}]", std_model.layers_input[layer])
        for part, role, site in (("attentions", "attention", "attn_in"), ("mlps", "mlp", "mlp_in")):
            if role not in ignores and std_model.has(f"{site}.{layer}"):
                check(f"{part}_input[{layer}]", getattr(std_model, f"{part}_input")[layer])
                check(f"{part}_output[{layer}]", getattr(std_model, f"{part}_output")[layer])
        check(f"layers_output[{layer}]", std_model.layers_output[layer])
    head = std_model.get(std_model.architecture.head)  # `lm_head` is another module in ModernBERT's decoder
    check("lm_head.output", head.output, (rows, positions, std_model.vocab_size))


def check_model_renaming(
    std_model: Any,
    model_name: str,
    ignores: Sequence[IgnoreType],
    allow_dispatch: bool,
    allow_multimodal: bool = False,
) -> None:
    """`check_io` in a scan, or where that fails in a trace of three tokens.

    Layers may be of different kinds: each is checked for what it has.

    Arguments:
        std_model, model_name, ignores: as in `check_io`.
        allow_dispatch: as in `try_with_scan`.
        allow_multimodal: of nnterp, and of no use here.

    Raises:
        RenamingError: a value is not what its name says.
    """
    error = RenamingError(f"{model_name}: what its layers take and give cannot be reached.")
    raised = (RenamingError, InterpError)
    try_with_scan(
        std_model,
        lambda: check_io(std_model, model_name, ignores),
        error,
        allow_dispatch,
        warn_if_scan_fails=False,
        errors_to_raise=raised,
    )
