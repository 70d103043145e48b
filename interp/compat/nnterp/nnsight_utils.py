"""nnterp's `nnsight_utils`: the parts of a model by name, and its activations.

The functions take a `StandardizedTransformer` and any nnsight model of a transformers causal language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor

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
    layer_number,
    project_on_vocab,
    set_layer_output,
    skip_layer,
    skip_layers,
)
from interp.errors import InterpError
from interp.prompts.given import is_ids, listed

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


Prompts = Any  # whatever nnsight traces: texts, token ids, encodings


def traced(prompts: Prompts) -> Any:
    """Prompts as a trace takes them; columns and arrays of texts as lists.

    Raises:
        InterpError: what is no list of prompts, such as a mapping without token ids, a table or a set.
    """
    if isinstance(prompts, Mapping) and {"input_ids", "inputs_embeds"} & prompts.keys():
        return prompts
    return prompts if isinstance(prompts, str | Tensor) else listed(prompts)


def several(prompts: Prompts, name: str = "prompts") -> list[Any]:
    """Prompts as a list of texts and lists of token ids, for batches of them.

    Raises:
        InterpError: something else, or none.
    """
    given = listed(prompts, name)
    given = [given] if is_ids(given) else given
    wrong = [each for each in given if not isinstance(each, str) and not is_ids(each)]
    if wrong or not given:
        raise InterpError(
            f"{name}: expected texts or lists of token ids, at least one, got {wrong[0] if wrong else given!r:.80}."
        )
    return given


def token_columns(nn_model: Any, index: int | Tensor) -> int | Tensor:
    """The columns of a padded batch in which prompts have a token; inside a trace, before its first layer.

    Arguments:
        nn_model: the model.
        index: the token in each prompt's own tokens, from the end where negative; one for all, or (row,).

    Returns:
        (row,), or -1 where that is every prompt's last token, which needs no mask.

    Raises:
        InterpError: a prompt is shorter.
    """
    if isinstance(index, int) and index == -1 and nn_model.tokenizer.padding_side == "left":
        return -1
    _, fed = nn_model.inputs
    mask = fed.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(fed["input_ids"])
    lengths = mask.sum(dim=1)
    wanted = torch.as_tensor(index, device=mask.device).expand(len(mask))
    own = torch.where(wanted < 0, lengths + wanted, wanted)
    outside = ((own < 0) | (own >= lengths)).nonzero().flatten().tolist()
    if outside:
        row = outside[0]
        raise InterpError(f"prompt {row} has {int(lengths[row])} tokens, none of them is token {int(wanted[row])}.")
    return mask.long().argmax(dim=1) + own


def at_columns(hidden: Tensor, columns: int | Tensor) -> Tensor:
    """(row, hidden) of (row, position, hidden), a copy."""
    if isinstance(columns, int):
        return hidden.detach()[:, columns].clone()
    columns = columns.to(hidden.device)
    return hidden.detach()[torch.arange(len(columns), device=hidden.device), columns]


def layer_numbers(nn_model: Any, layers: int | Iterable[int] | None) -> list[int]:
    """Layers counted from 0, in the order asked for; all of them for None.

    Raises:
        InterpError: none, or one that the model does not have.
    """
    if layers is None:
        return list(range(get_num_layers(nn_model)))
    wanted = [layer_number(nn_model, layer) for layer in ([layers] if isinstance(layers, int) else layers)]
    if not wanted:
        raise InterpError("layers: expected at least one, got none.")
    return wanted


def get_token_activations(
    nn_model: Any,
    prompts: Prompts = None,
    layers: int | Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool | str = False,
    idx: int | None = None,
    tracer: Any = None,
) -> Tensor:
    """What layers give at one token of each prompt.

    Arguments:
        nn_model: the model.
        prompts: the prompts; they may be left out inside a trace of theirs.
        layers: which, in any order, from the end where negative; None: all.
        get_activations: (model, layer) -> (prompt, position, hidden); None: the layer's output.
        remote: run on NDIF.
        idx: the token, counted in each prompt's own tokens; None: the last.
        tracer: the trace that is open; None: a new one, which stops after the last layer.

    Returns:
        (layer, prompt, hidden) in the model's dtype, in the order of `layers`; on the CPU, or inside an open trace on
        the device of the first.

    Raises:
        InterpError: neither prompts nor a trace, no such layer, or a prompt that has no such token.
    """
    if tracer is not None:
        return _read(nn_model, layers, get_activations, idx)
    if prompts is None:
        raise InterpError("expected prompts, or tracer=, the trace that is open.")
    activations: Tensor
    given = traced(prompts)
    with torch.no_grad(), nn_model.trace(given, remote=remote) as tracer:
        activations = nnsight.save(_read(nn_model, layers, get_activations, idx).cpu())
        tracer.stop()
    return activations


def _read(
    nn_model: Any, layers: int | Sequence[int] | None, get_activations: GetModuleOutput | None, idx: int | None
) -> Tensor:
    """Inside a trace. Layers are read in the order of the forward pass, each once."""
    wanted = layer_numbers(nn_model, layers)
    get = get_activations or get_layer_output
    columns = token_columns(nn_model, -1 if idx is None else idx)
    ascending = sorted(set(wanted))
    found: dict[int, Tensor] = {}
    for layer in ascending:
        found[layer] = at_columns(get(nn_model, layer), columns)
    device = found[ascending[0]].device
    return torch.stack([found[layer].to(device) for layer in wanted])


def collect_last_token_activations_session(
    nn_model: Any,
    prompts: Prompts,
    batch_size: int,
    layers: int | Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool | str = False,
    idx: int | None = None,
) -> Tensor:
    """`get_token_activations` over batches, in one nnsight session: for NDIF, one request.

    Arguments:
        batch_size: prompts in a forward pass; the rest as in `get_token_activations`.

    Returns:
        (layer, prompt, hidden), on the CPU.
    """
    prompts = _checked_batches(prompts, batch_size)
    activations: Tensor
    with torch.no_grad(), nn_model.session(remote=remote):
        parts = []
        for start in range(0, len(prompts), batch_size):
            with nn_model.trace(prompts[start : start + batch_size]) as tracer:
                part = nnsight.save(_read(nn_model, layers, get_activations, idx).cpu())
                tracer.stop()
            parts.append(part)
        activations = nnsight.save(torch.cat(parts, dim=1))
    return activations


def collect_token_activations_batched(
    nn_model: Any,
    prompts: Prompts,
    batch_size: int,
    layers: int | Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool | str = False,
    idx: int | None = None,
    tqdm: Callable[[Iterable[int]], Iterable[int]] | None = None,
    use_session: bool = True,
) -> Tensor:
    """`get_token_activations` over batches.

    Arguments:
        batch_size: prompts in a forward pass.
        tqdm: wraps the loop over batches, to show progress; None: nothing is shown.
        use_session: on NDIF, send one request for all batches; the rest as in `get_token_activations`.

    Returns:
        (layer, prompt, hidden), on the CPU.
    """
    prompts = _checked_batches(prompts, batch_size)
    if use_session and remote:
        return collect_last_token_activations_session(
            nn_model, prompts, batch_size, layers, get_activations, remote, idx
        )
    starts: Iterable[int] = range(0, len(prompts), batch_size)
    parts = [
        get_token_activations(nn_model, prompts[i : i + batch_size], layers, get_activations, remote, idx)
        for i in (starts if tqdm is None else tqdm(starts))
    ]
    return torch.cat(parts, dim=1)


def _checked_batches(prompts: Prompts, batch_size: int) -> list[Any]:
    if isinstance(prompts, str):
        raise InterpError(f"prompts: expected a list of at least one, got {prompts!r}.")
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    return several(prompts)


def compute_next_token_probs(nn_model: Any, prompt: Prompts, remote: bool | str = False) -> Tensor:
    """Probabilities of the next token of each prompt.

    Arguments:
        nn_model: the model.
        prompt: one or several.
        remote: run on NDIF.

    Returns:
        (prompt, vocabulary), float32, on the CPU, without gradients.
    """
    probs: Tensor
    given = traced(prompt)
    with torch.no_grad(), nn_model.trace(given, remote=remote):
        columns = token_columns(nn_model, -1)
        probs = nnsight.save(at_columns(nn_model.output.logits, columns).float().softmax(-1).cpu())
    return probs
