"""Packages installed apart from the others: had beside transformers, they change what every process prints."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def torchao_quantization() -> Any:
    """The module `torchao.quantization`, from the folder `torchao` of the virtual environment.

    transformers imports torchao wherever it finds it, and that warns of each of its libraries that wants a GPU.
    """
    folder = Path(sys.prefix) / "torchao"
    if not folder.is_dir():
        raise ModuleNotFoundError(f"{folder} is not there: `make install` puts torchao into it.")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return import_module("torchao.quantization")
