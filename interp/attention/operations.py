"""Attention computed inside a module's forward pass: which operations take or give q, k, v, scores and pattern.

Operations are named as nnsight's `source` names them; `print(envoy.source)` lists those of a module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.source import compiled, decorator_chain
from torch import Tensor

from interp.attention.points import await_location
from interp.tracing import check_not_passed

__all__ = ["OPERATIONS", "Operation", "OperationPoint", "operations_of"]


@dataclass(frozen=True)
class Operation:
    """Where a point is in the forward pass of an attention module.

    Arguments:
        name: the operation; `outer/inner` for one inside the function that an operation calls.
        side: `input` or `output` of it.
        item: which positional argument, or which item of what it gives; None: what it gives is the value.
        transposed: the last two axes are swapped.
        flat: batch and heads are one axis.
        uncached: where the forward pass is given no cache, so that this operation does not run, the one in its place.
    """

    name: str
    side: str = "output"
    item: int | None = None
    transposed: bool = False
    flat: bool = False
    uncached: Operation | None = None


def _argument(name: str, item: int = 0, *, transposed: bool = False, flat: bool = False) -> Operation:
    return Operation(name, "input", item, transposed, flat)


def _method(softmax: str) -> dict[str, Operation]:
    """Attention in a method of its own, `_attn(query, key, value, ...)`."""
    return {
        "q": _argument("self__attn_0", 0),
        "k": _argument("self__attn_0", 1),
        "v": _argument("self__attn_0", 2),
        "scores": _argument(f"self__attn_0/{softmax}"),
        "pattern": _argument("self__attn_0/self_attn_dropout_0"),
    }


def _scaled_dot_product(call: str) -> dict[str, Operation]:
    """Torch's fused attention: it forms no scores."""
    name = f"torch_nn_functional_scaled_dot_product_attention_{call}"
    return {"q": _argument(name, 0), "k": _argument(name, 1), "v": _argument(name, 2)}


def _xglm(softmax: str) -> dict[str, Operation]:
    return {
        "q": Operation("query_states_1"),
        "k": Operation("key_states_3", flat=True),
        "v": Operation("value_states_3", flat=True),
        "scores": _argument(softmax, flat=True),
        "pattern": Operation("attn_weights_reshaped_0"),
    }


# Model type -> kind -> operation. Where a forward pass branches, the model type is followed by the branch.
OPERATIONS: dict[str, dict[str, Operation]] = {
    "bloom": {
        "q": Operation("query_layer_0", flat=True),
        "k": Operation("key_layer_0", flat=True, transposed=True),
        "v": Operation("value_layer_0", flat=True),
        "scores": _argument("F_softmax_0"),
        "pattern": _argument("self_attention_dropout_0"),
    },
    "codegen": _method("call_0"),
    "gpt_neo": _method("nn_functional_softmax_0"),
    "gptj": _method("nn_functional_softmax_0"),
    "openai-gpt": {**_method("nn_functional_softmax_0"), "k": _argument("self__attn_0", 1, transposed=True)},
    "mpt": {
        "q": Operation("query_states_0"),
        "k": Operation("past_key_values_update_0", item=0, uncached=Operation("key_states_0")),
        "v": Operation("past_key_values_update_0", item=1, uncached=Operation("value_states_0")),
        "scores": _argument("nn_functional_softmax_0"),
        "pattern": _argument("nn_functional_dropout_0"),
    },
    "xglm": _xglm("nn_functional_softmax_1"),
    "xglm float16": _xglm("nn_functional_softmax_0"),
    "falcon sdpa": _scaled_dot_product("0"),
    "falcon sdpa alibi": _scaled_dot_product("1"),
    "falcon eager": {
        "q": Operation("apply_rotary_pos_emb_0", item=0),
        "k": Operation("key_layer_transpose_1", transposed=True),
        "scores": _argument("F_softmax_0"),
        "pattern": Operation("F_softmax_0"),
    },
    "falcon eager alibi": {
        "q": Operation("query_layer_0"),
        "k": Operation("key_layer_transpose_2", transposed=True),
        "scores": _argument("F_softmax_1"),
        "pattern": _argument("self_attention_dropout_0"),
    },
}

# Model type and branch -> why the points that have no operation have none.
_MISSING = {
    "falcon sdpa": "under sdpa Falcon never forms it. Load with attn_implementation='eager' for scores and pattern.",
    "falcon eager": "Falcon's eager attention hands it to no operation. Load with attn_implementation='sdpa' for v.",
}
# In the attention module, the one whose forward pass it is.
_INNER = {"gpt_neo": "attention"}


def operations_of(model_type: str, envoy: Any) -> tuple[Any, Mapping[str, Operation], str] | None:
    """How the points of an attention module are reached through its operations.

    Arguments:
        model_type: of the model's config.
        envoy: the attention module.

    Returns:
        The envoy of the module whose forward pass it is, by kind the operation, and why the kinds that are not there
        is not available; None where the family has no record.
    """
    inner = _INNER.get(model_type)
    if inner is not None and inner in envoy._module._modules:
        envoy = envoy.get(inner)
    module = envoy._module
    branch = model_type
    if model_type == "falcon":
        branch += " sdpa" if module.config._attn_implementation == "sdpa" else " eager"
    missing = _MISSING.get(branch, "")
    if model_type == "falcon" and module.config.alibi:
        branch += " alibi"
    if model_type == "xglm" and module.q_proj.weight.dtype == torch.float16:
        branch += " float16"
    if branch not in OPERATIONS:
        return None
    own, _ = decorator_chain(type(module).forward)
    there = set(compiled(own).names)
    operations = {kind: op for kind, op in OPERATIONS[branch].items() if op.name.split("/")[0] in there}
    if len(operations) < len(OPERATIONS[branch]):
        missing = (
            f"the forward pass of {type(module).__name__} has no operation that takes or gives it, as eager attention "
            "of this family has in transformers 5.23. Load with attn_implementation='eager'."
        )
    return envoy, operations, missing


@dataclass(frozen=True)
class OperationPoint:
    """A point at an operation, inside a trace's body.

    Arguments:
        envoy: the module whose forward pass has the operation.
        operation: which.
    """

    envoy: Any
    operation: Operation

    def read(self) -> Tensor:
        """The model's live tensor, by batch and head."""
        return self._shown(self._live())

    def write(self, value: Tensor) -> None:
        """Replace it."""
        operation, node = self.operation, self._node()
        live = self._live()
        if operation.transposed:
            value = value.transpose(-1, -2)
        if operation.flat:
            value = self._spread(live, value)
        if operation.side == "input":
            args, kwargs = node.inputs
            node.inputs = (_with_item(args, operation.item, value), kwargs)
        else:
            node.output = value if operation.item is None else _with_item(node.output, operation.item, value)

    def _node(self) -> Any:
        interleaver, path = self.envoy.interleaver, self.envoy.path
        Mediator.current(f"{path}.{self.operation.name}")  # outside a trace: nnsight's error, before anything is done
        node = self.envoy
        for step, name in enumerate(self.operation.name.split("/")):
            if step:  # the function that the outer operation calls is handed over when it is called
                await_location(interleaver, path, f"{node.path}.fn")
            node = getattr(node.source, name)
        await_location(interleaver, path, f"{node.path}.{self.operation.side}")
        check_not_passed(f"{node.path}.{self.operation.side}", f"{node.path}.{self.operation.side}")
        return node

    def _live(self) -> Tensor:
        node = self._node()
        if self.operation.side == "input":
            return node.inputs[0][self.operation.item]
        return node.output if self.operation.item is None else node.output[self.operation.item]

    def _shown(self, live: Tensor) -> Tensor:
        if self.operation.flat:
            first, count = self._rows(live)
            live = live.unflatten(0, (-1, self.envoy._module.num_heads))[first : first + count]
        return live.transpose(-1, -2) if self.operation.transposed else live

    def _spread(self, live: Tensor, value: Tensor) -> Tensor:
        """The rows of this invoke back among all rows, batch and heads as one axis."""
        first, count = self._rows(live)
        every = live.unflatten(0, (-1, self.envoy._module.num_heads))
        return torch.cat([every[:first], value, every[first + count :]]).flatten(0, 1)

    def _rows(self, live: Tensor) -> tuple[int, int]:
        """The first row, and the number of rows, of the invoke that asks; nnsight does not know them on a flat axis."""
        heads = self.envoy._module.num_heads
        rows = live.shape[0] // heads
        batcher = self.envoy.interleaver.batcher
        group = Mediator.current(self.operation.name).batch_group
        if heads == 1 or group is None or not batcher.batching or rows != batcher.total:
            return 0, rows
        return group[0], group[1]


def _with_item(values: Any, item: int | None, value: Tensor) -> tuple[Any, ...]:
    return tuple(value if index == item else old for index, old in enumerate(values))
