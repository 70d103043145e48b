"""nnterp's interface over `interp`: change the import, and a script written for nnterp 1.0 to 1.3 runs.

from interp.compat.nnterp import StandardizedTransformer
from interp.compat.nnterp.interventions import logit_lens, patchscope_lens

What differs from nnterp 1.3.0, beside the errors that it made:

* Tokens count in each prompt's own tokens: `idx`, `index_to_patch` and `attn_idx_patch` are right whichever side is
  padded. `steer` and accessors count in the padded batch, as they did.
* Probabilities are float32, of models in half precision too; activations keep the model's dtype.
* Attention probabilities can be read without `enable_attention_probs`.
* Errors are `interp.InterpError`, a ValueError, and `RenamingError` and `TokenizationError` are two of them.
* `python -m nnterp run_tests` is `python -m interp check MODEL...`; importing sets no log handler.
"""

from interp.compat.nnterp.interventions import TargetPrompt, logit_lens, patchscope_lens
from interp.compat.nnterp.nnsight_utils import ModuleAccessor
from interp.compat.nnterp.prompt_utils import Prompt, run_prompts
from interp.compat.nnterp.rename_utils import get_rename_dict
from interp.compat.nnterp.standardized_transformer import StandardizedTransformer

__all__ = [
    "ModuleAccessor",
    "Prompt",
    "StandardizedTransformer",
    "TargetPrompt",
    "get_rename_dict",
    "logit_lens",
    "patchscope_lens",
    "run_prompts",
]
