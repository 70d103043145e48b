"""nnterp's `utils`: small things that its users import."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import nnsight
import torch
import transformers
from torch import Tensor

from interp.errors import InterpError

__all__ = [
    "NNSIGHT_VERSION",
    "TRANSFORMERS_VERSION",
    "ArchitectureNotFound",
    "DummyCache",
    "RenamingError",
    "TraceTensor",
    "display_markdown",
    "display_source",
    "dummy_inputs",
    "is_notebook",
    "try_with_scan",
    "unpack_tuple",
]


NNSIGHT_VERSION = nnsight.__version__
TRANSFORMERS_VERSION = transformers.__version__
TraceTensor = Tensor  # values inside a trace are real tensors

_MODEL_CLASSES = (
    "OPTForCausalLM", "MixtralForCausalLM", "BloomForCausalLM", "GPT2LMHeadModel", "Qwen2MoeForCausalLM",
    "DbrxForCausalLM", "GPTJForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen2ForCausalLM",
)  # fmt: skip


class ArchitectureNotFound:
    """Stands for a model class that the installed transformers does not have."""


class DummyCache:
    """What nnterp returned beside the hidden state from a skipped layer; here nothing needs one."""

    def to_legacy_cache(self) -> None:
        return None


def __getattr__(name: str) -> Any:
    if name in _MODEL_CLASSES:  # imported on first use: each brings its whole family's module
        return getattr(transformers, name, ArchitectureNotFound)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def display_markdown(text: str) -> None:
    """Show Markdown in a notebook."""
    notebook = import_module("IPython.display")
    notebook.display(notebook.Markdown(text))


def display_source(source: str) -> None:
    """Show Python source in a notebook."""
    display_markdown(f"```py\n{source}\n```")


def dummy_inputs() -> dict[str, Tensor]:
    """One prompt of three tokens, `{"input_ids": (1, 3)}`."""
    return {"input_ids": torch.tensor([[0, 1, 1]], device="cpu")}


def unpack_tuple(tensor_or_tuple: Any) -> Any:
    """The first item of a tuple; anything else as it is."""
    return tensor_or_tuple[0] if isinstance(tensor_or_tuple, tuple) else tensor_or_tuple


def try_with_scan(
    model: Any,
    function: Callable[[], Any],
    error_to_throw: Exception,
    allow_dispatch: bool,
    warn_if_scan_fails: bool = True,
    errors_to_raise: tuple[type[Exception], ...] | type[Exception] | None = None,
) -> bool:
    """Call a function in a scan of the model (shapes, no weights), or where that fails in a trace of three tokens.

    Arguments:
        model: an nnsight model.
        function: what is called there, without arguments.
        error_to_throw: raised where neither goes through.
        allow_dispatch: whether a trace may load weights that are not loaded yet.
        warn_if_scan_fails: say so in a warning.
        errors_to_raise: raised as they are, at once.

    Returns:
        Whether the scan went through.
    """
    raised: tuple[type[Exception], ...] = ()
    if errors_to_raise is not None:
        raised = errors_to_raise if isinstance(errors_to_raise, tuple) else (errors_to_raise,)
    try:
        with model.scan(dummy_inputs(), use_cache=False) as tracer:
            function()
            tracer.stop()
        return True
    except raised:
        raise
    except Exception as scan_error:  # whatever the user's function raises
        if not (allow_dispatch or model.dispatched):
            raise error_to_throw from scan_error
        if warn_if_scan_fails:
            warnings.warn(f"the scan failed ({scan_error}); a trace is tried, which loads weights.", stacklevel=2)
    try:
        with model.trace(dummy_inputs(), use_cache=False) as tracer:
            function()
            tracer.stop()
        return False
    except raised:
        raise
    except Exception as trace_error:
        raise error_to_throw from trace_error


class RenamingError(InterpError):
    """A model's modules are not where they were looked for, or do not give what their names say."""
