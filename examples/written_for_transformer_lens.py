"""A notebook's worth of TransformerLens 4: cache, hooks, patching, attribution, on the demo model of this repository.

It was written for TransformerLens, and runs on it. To run it on `interp`, change `transformer_lens` to
`interp.compat.transformer_lens` in the imports; nothing else. The numbers are the same (a test compares them).
"""

from functools import partial

import torch
from transformer_lens import (
    ActivationCache,
    HookedRootModule,
    TransformerBridge,
    TransformerBridgeConfig,
    patching,
    utilities,
)
from transformer_lens.hook_points import HookPoint

results = {}

# --- A model, and a pair of prompts that differ in one token ---------------------------------------------------------

model = TransformerBridge.boot_transformers("pipeline/demo/model", device="cpu")
clean_prompt, corrupted_prompt = 'English: "dog" - Italiano: "', 'English: "cat" - Italiano: "'
clean_tokens, corrupted_tokens = model.to_tokens(clean_prompt), model.to_tokens(corrupted_prompt)
assert clean_tokens.shape == corrupted_tokens.shape
answer, other = model.to_single_token("cane"), model.to_single_token("gat")
print(model.to_str_tokens(clean_prompt), "->", model.to_string([answer, other]))


def logit_difference(logits):
    return (logits[:, -1, answer] - logits[:, -1, other]).mean()


utilities.test_prompt(clean_prompt, "cane", model, prepend_space_to_answer=False, top_k=3)
results["loss"] = model(clean_tokens, return_type="loss")
results["sizes"] = torch.tensor([model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model, model.cfg.d_head])

# --- Cache ------------------------------------------------------------------------------------------------------------

clean_logits, clean_cache = model.run_with_cache(clean_tokens)
corrupted_logits, corrupted_cache = model.run_with_cache(corrupted_tokens)
clean_baseline, corrupted_baseline = logit_difference(clean_logits), logit_difference(corrupted_logits)
results["baselines"] = torch.stack([clean_baseline, corrupted_baseline])
results["pattern"] = clean_cache["pattern", 3][0, :, -1]
results["same pattern"] = clean_cache["blocks.3.attn.hook_pattern"][0, :, -1]
results["queries"] = clean_cache["q", 3][0, -1]

_, last = model.run_with_cache(
    clean_tokens, names_filter=lambda name: name.endswith("hook_resid_post"), pos_slice=-1, remove_batch_dim=True
)
results["resid_post"] = torch.stack([last["resid_post", layer] for layer in range(model.cfg.n_layers)])[:, 0, :8]
_, halfway = model.run_with_cache(clean_tokens, stop_at_layer=4, names_filter=["blocks.3.hook_mlp_out"])
results["mlp_out"] = halfway["mlp_out", 3][0, -1, :8]

# --- Hooks ------------------------------------------------------------------------------------------------------------


def ablate_head(z, hook, head):
    z[:, :, head] = 0.0
    return z


effects = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
with torch.no_grad():
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            logits = model.run_with_hooks(
                clean_tokens,
                fwd_hooks=[(utilities.get_act_name("z", layer), partial(ablate_head, head=head))],
            )
            effects[layer, head] = logit_difference(logits) - clean_baseline
results["ablated heads"] = effects


def count(tensor, hook):
    hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1


model.add_hook(lambda name: name.endswith("hook_pattern"), count)
with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda resid, hook: resid * 1.5)]):
    results["scaled"] = logit_difference(model(clean_tokens))
calls = [point.ctx.get("calls", 0) for name, point in model.hook_dict.items() if name.endswith("hook_pattern")]
assert calls == [1] * model.cfg.n_layers
model.reset_hooks()
assert model.list_hooks() == {}

# --- Activation patching ----------------------------------------------------------------------------------------------


def recovered(logits):
    return (logit_difference(logits) - corrupted_baseline) / (clean_baseline - corrupted_baseline)


with torch.no_grad():
    results["patched resid_pre"] = patching.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, recovered)
    results["patched heads"] = patching.get_act_patch_attn_head_out_all_pos(
        model, corrupted_tokens, clean_cache, recovered
    )

    def set_last_two(corrupted, index, clean):
        corrupted[:, -2:] = clean[:, -2:]
        return corrupted

    results["patched attn_out"] = patching.generic_activation_patch(
        model, corrupted_tokens, clean_cache, recovered, set_last_two, "attn_out", index_axis_names=["layer"]
    )

# --- Attribution ------------------------------------------------------------------------------------------------------


def gradients(tokens, metric, names):
    model.reset_hooks()
    kept = {}

    def keep(gradient, hook):
        kept[hook.name] = gradient.detach()

    model.add_hook(lambda name: name in names, keep, "bwd")
    metric(model(tokens)).backward()
    model.reset_hooks()
    return ActivationCache(kept, model)


outputs = [f"blocks.{layer}.attn.hook_out" for layer in range(model.cfg.n_layers)]
slopes = gradients(corrupted_tokens, recovered, outputs)
results["attribution patching"] = torch.stack(
    [(slopes[name] * (clean_cache[name] - corrupted_cache[name])).sum(-1)[0] for name in outputs]
)

model.enable_compatibility_mode()  # norms folded into the weights, so that the stream decomposes at the logits
logits, cache = model.run_with_cache(clean_tokens)
results["folded log-probabilities"] = logits[0, -1].log_softmax(-1)[[answer, other]]
stream, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
attribution = cache.logit_attrs(stream, answer, pos_slice=-1, incorrect_tokens=other)
results["direct logit attribution"] = attribution[:, 0]
print({label: round(value, 2) for label, value in zip(labels, attribution[:, 0].tolist(), strict=True)})
heads = cache.stack_head_results(layer=-1, pos_slice=-1)
results["heads"] = cache.logit_attrs(heads, answer, pos_slice=-1, incorrect_tokens=other)[:, 0]
accumulated = cache.accumulated_resid(layer=-1, apply_ln=True, pos_slice=-1)
results["logit lens"] = (accumulated @ model.W_U)[:, 0, [answer, other]]

# --- A module of one's own --------------------------------------------------------------------------------------------


class Probe(HookedRootModule):
    def __init__(self, width):
        super().__init__()
        self.inside = torch.nn.Linear(width, 4, bias=False)
        torch.nn.init.constant_(self.inside.weight, 0.25)
        self.hook_inside = HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_inside(self.inside(x)).relu().sum()


config = TransformerBridgeConfig(d_model=128, d_head=32, n_layers=8, n_ctx=512)
probe = Probe(config.d_model)
_, kept = probe.run_with_cache(clean_cache["resid_post", 5], pos_slice=-1, incl_bwd=True)
results["probe"] = torch.stack([kept["hook_inside"][0, 0], kept["hook_inside_grad"][0, 0]])

for name, value in results.items():
    print(f"{name}: {tuple(value.shape)}, sum {value.sum().item():.4f}")
