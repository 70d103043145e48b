"""Stage `collect` with a simulated server, in a process of its own; prints how many sessions were sent.

python -c "from tests.pipeline.stages.simulated import main; main()"        # in a run folder
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from nnsight.intervention.backends.local import LocalSimulationBackend

from interp import StandardizedTransformer
from pipeline.stages import collect as stage


class WithoutInterp(LocalSimulationBackend):
    """nnsight's simulation hides all packages that a server may lack; another thread writes to zarr meanwhile."""

    def _hide_local_modules(self) -> dict[str, Any]:
        names = [name for name in sys.modules if name.split(".")[0] == "interp"]
        return {"modules": {name: sys.modules.pop(name) for name in names}, "paths": []}


def main() -> None:
    """Collect as for a server, whose weights are those of the model's folder; the log goes to standard error."""
    logging.basicConfig(level=logging.DEBUG)
    sessions: list[Any] = []

    def backend(self: Any, *args: Any, **kwargs: Any) -> LocalSimulationBackend:
        sessions.append(self)
        return WithoutInterp(self)

    StandardizedTransformer._remote_backend = backend  # type: ignore[method-assign]
    stage.load_model = lambda config: StandardizedTransformer(config.source)  # type: ignore[attr-defined]
    stage.collect_activations()
    print(len(sessions))
