"""easyroutine's interface over `interp`: change the import, and what its documentation shows runs.

    from interp.compat.easyroutine import ExtractionConfig, HookedModel

    model = HookedModel.from_pretrained("meta-llama/Llama-3.2-1B")
    cache = model.extract_cache(dataloader, ["last"], extraction_config=ExtractionConfig(extract_resid_out=True))

Names of token positions stand in `interp.compat.easyroutine.named_positions`. What differs from easyroutine 1.1.5
stands in `docs/migrating.md`.
"""

from interp.compat.easyroutine.cached_lens import LogitLens
from interp.compat.easyroutine.extraction_config import ExtractionConfig, HookedModelConfig
from interp.compat.easyroutine.hooked_model import HookedModel
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.compat.easyroutine.later_interventions import Intervention
from interp.compat.easyroutine.saved_caches import ActivationLoader, ActivationSaver

__all__ = [
    "ActivationCache",
    "ActivationLoader",
    "ActivationSaver",
    "ExtractionConfig",
    "HookedModel",
    "HookedModelConfig",
    "Intervention",
    "LogitLens",
]
