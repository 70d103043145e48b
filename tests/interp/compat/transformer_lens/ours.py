"""Our pieces, as `scenarios.py` takes them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from interp.compat import transformer_lens
from tests.interp.compat.transformer_lens.scenarios import SCENARIOS

OURS = SimpleNamespace(
    HookPoint=transformer_lens.HookPoint,
    HookedRootModule=transformer_lens.HookedRootModule,
    Config=transformer_lens.TransformerBridgeConfig,
    KeyValueCache=transformer_lens.TransformerLensKeyValueCache,
    utilities=transformer_lens.utilities,
)


def done(name: str) -> dict[str, Any]:
    """What our pieces do in a scenario, as it was recorded of TransformerLens's."""
    return dict(json.loads(json.dumps(SCENARIOS[name](OURS))))
