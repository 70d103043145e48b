"""The same works with five tools, a class each; a worker imports the one that it is for.

Each is written as a careful user of that tool would: its own functions where it has them, batches of 32, no gradients,
the head for the last token alone where the tool lets one ask for that, generation with a key/value cache.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from benchmarks.lenses.works import Inputs, Result

__all__ = ["LABELS", "TOOLS", "Tool", "load"]


class Tool(Protocol):
    """A tool with the model loaded; a method for each kind of work."""

    def patchscope(self, inputs: Inputs) -> Result:
        """`KINDS` says what each returns."""

    def patchscope_end_to_end(self, inputs: Inputs) -> Result: ...

    def logit_lens(self, inputs: Inputs) -> Result: ...

    def collect(self, inputs: Inputs) -> Result: ...

    def few_shot(self, inputs: Inputs) -> Result: ...

    def generate(self, inputs: Inputs) -> Result: ...


# By name, as on the command line: module and class. The first is the reference that all others must agree with.
TOOLS = {
    "transformers": "with_transformers:WithTransformers",
    "nnterp": "with_nnterp:WithNnterp",
    "nnsight": "with_nnsight:WithNnsight",
    "transformer_lens": "with_transformer_lens:WithTransformerLens",
    "interpipe": "with_interpipe:WithInterpipe",
}
LABELS = {
    "transformers": "transformers 5.23, hooks",
    "nnterp": "nnterp 1.3.0",
    "nnsight": "nnsight 0.8.1",
    "transformer_lens": "TransformerLens 4.3",
    "interpipe": "Interpipe",
}


def load(tool: str, folder: str) -> Tool:
    """Import a tool and load the model of a folder with it."""
    module, name = TOOLS[tool].split(":")
    loaded: Tool = getattr(importlib.import_module(f"benchmarks.lenses.tools.{module}"), name).load(folder)
    return loaded
