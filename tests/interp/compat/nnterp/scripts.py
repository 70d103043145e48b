"""Scripts as users of nnterp write them; `MODEL` is set before they run.

`EXAMPLES` go through what nnterp's README, documentation and demo show, page by page, on a model of 12 layers. `STUDY`
is a whole script on the demo model.
"""

from __future__ import annotations

README = """
import torch
from nnterp import StandardizedTransformer
from nnterp.interventions import TargetPrompt, logit_lens, patchscope_lens
from nnterp.prompt_utils import Prompt, run_prompts

model = StandardizedTransformer(MODEL)

with model.trace("The old bridge is in the city of"):
    attention = model.attentions_output[3]
    mlp = model.mlps_output[3]
    layer = model.layers_output[5]
    logits = model.logits.save()
assert logits.shape[-1] == model.vocab_size

with model.trace("Good morning"):
    attention = model.attentions_output[3]
    third = model.layers_output[3]
    fifth = model.layers_output[5]
    model.layers_output[10] = model.layers_output[10] + third

assert logit_lens(model, ["The old bridge is in"]).shape == (1, 12, model.vocab_size)
target = TargetPrompt("The old bridge is in", index_to_patch=-1)
patched = patchscope_lens(model, source_prompts=["The new town is in"], target_patch_prompts=target, layers=10)
assert patched.shape == (1, 1, model.vocab_size)

vector = torch.randn(model.hidden_size)
with model.trace("Good morning, how is it going?"):
    model.steer(layers=[5, 10], steering_vector=vector, factor=1.5)
with model.trace(["Good morning, how is it going?", "See you, friends!"]):
    model.steer(layers=5, steering_vector=vector, token_positions=0)
    model.steer(layers=5, steering_vector=vector, batch_index=0)
    model.steer(layers=6, steering_vector=vector, batch_index=1, token_positions=[0, 1])

words = {"right": "book", "wrong": ["dog", "king"]}
prompts = [Prompt.from_strings("The old bridge is in", words, model.tokenizer)]
plain = run_prompts(model, prompts)
by_layer = run_prompts(model, prompts, get_probs_func=logit_lens)
assert plain["right"].shape == (1, 1) and by_layer["wrong"].shape == (1, 12)
"""

BASIC_USAGE = """
import torch
from nnterp import StandardizedTransformer

model = StandardizedTransformer(MODEL)
print(model.device, model.num_layers, model.hidden_size, model.num_heads, model.vocab_size)

with model.trace("Good morning"):
    total = model.layers_output[3] + model.layers_output[5]
    eighth = model.mlps_output[8]
    model.layers_output[10] = total
    model.layers_output[11] = model.layers_output[11] + eighth
    result = model.logits.save()

with model.trace("Good morning"):
    model.skip_layer(1)
    model.skip_layers(2, 3)

with model.trace("Good morning") as tracer:
    sixth = model.layers_output[6].save()
    tracer.stop()
with model.trace("Good morning"):
    model.skip_layers(0, 6, skip_with=sixth)
    skipped = model.logits.save()
with model.trace("Good morning"):
    whole = model.logits.save()
assert torch.allclose(whole, skipped)

with model.trace("Good morning"):
    hidden = model.layers_output[5]
    logits = model.project_on_vocab(hidden)
with model.trace("Good morning"):
    model.steer(layers=[1, 3], steering_vector=torch.randn(model.hidden_size), factor=0.5)
with model.trace("Good morning") as tracer:
    last = model.layers_output[11][0, -1].save()
print(model.get_topk_closest_tokens(last, k=3))
"""

ADVANCED = """
import plotly.graph_objects as go
import torch
from nnterp import StandardizedTransformer
from nnterp.display import plot_topk_tokens, prompts_to_df
from nnterp.interventions import logit_lens, patchscope_lens, TargetPrompt, repeat_prompt
from nnterp.prompt_utils import Prompt, run_prompts

model = StandardizedTransformer(MODEL, enable_attention_probs=True)

with torch.no_grad():
    with model.trace("The dog sat on the chair"):
        second = model.attention_probabilities[2].save()
        fifth = model.attention_probabilities[5].save()
        fifth[:, :, 1:, 0] = 0
        fifth /= fifth.sum(dim=-1, keepdim=True)
        changed = model.logits.save()
    with model.trace("The dog sat on the chair"):
        unchanged = model.logits.save()
assert not torch.allclose(changed, unchanged)
sums = second.sum(dim=-1)
assert torch.allclose(sums, torch.ones_like(sums))
model.attention_probabilities.print_source()

prompt = Prompt.from_strings(
    "The fox (not the dog or the king) is", {"target": "brown", "traps": ["dog", "king"], "long": "the lazy fox"},
    model.tokenizer,
)
for name, tokens in prompt.target_tokens.items():
    print(name, model.tokenizer.convert_ids_to_tokens(tokens))
for target, probs in run_prompts(model, [prompt]).items():
    print(target, probs.shape)

results = run_prompts(model, [prompt], get_probs_func=logit_lens)
figure = go.Figure()
for category, probs in results.items():
    figure.add_trace(go.Scatter(x=list(range(len(probs[0]))), y=probs[0].tolist(), mode="lines+markers", name=category))
figure.update_layout(title="by layer", xaxis_title="Layer", yaxis_title="Probability")
figure.show()

probs = logit_lens(model, "The fox is")
plot_topk_tokens(probs[0], model.tokenizer, k=5, title="top tokens", width=1000, height=1000)
print(prompts_to_df([prompt], model.tokenizer))

sources = ["The fox is brown", "The dog is lazy"]
own = TargetPrompt("fox: brown\\ndog: lazy\\n?", -1)
other = repeat_prompt(words=["car", "cross", "azerty"], rel=":", sep="\\n\\n", placeholder="*")
for target in (own, other, repeat_prompt()):
    assert patchscope_lens(model, source_prompts=sources, target_patch_prompts=target).shape[:2] == (2, 12)
"""

COLLECTING = """
import torch
from nnterp import ModuleAccessor, StandardizedTransformer
from nnterp.interventions import steer
from nnterp.nnsight_utils import (
    collect_token_activations_batched, get_attention_output, get_layer_output, get_mlp_output, get_token_activations,
    project_on_vocab, skip_layers,
)
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

module = AutoModelForCausalLM.from_pretrained(MODEL)
own = TransformersModel(
    module, tokenizer=AutoTokenizer.from_pretrained(MODEL), task="text-generation",
    rename=dict(transformer="model", h="layers", ln_f="ln_final", attn="self_attn"),
)
for model in (StandardizedTransformer(MODEL), own):
    with model.trace("Good morning"):
        attention, mlp = get_attention_output(model, 3), get_mlp_output(model, 3)
        fifth = get_layer_output(model, 5)
    with model.trace("Good morning"):
        logits = project_on_vocab(model, get_layer_output(model, 5))
    with model.trace("Good morning"):
        skip_layers(model, 2, 5)
    prompts = ["The old bridge is in", "The weather is"]
    with model.trace(prompts) as tracer:
        activations = get_token_activations(model, prompts, idx=-1, tracer=tracer)
    many = [f"A short text {i}" for i in range(20)]
    batched = collect_token_activations_batched(model, many, batch_size=16, layers=[3, 9, 11], idx=-1)
    assert batched.shape == (3, 20, 32)
    with model.trace("The weather is"):
        steer(model, layers=[5, 10], steering_vector=torch.randn(32))
accessor = ModuleAccessor(module)
assert accessor.get_attention(3) is module.transformer.h[3].attn
"""

RENAMING = """
import torch
from nnterp import StandardizedTransformer
from nnterp.rename_utils import AttnProbFunction, RenameConfig

class Probabilities(AttnProbFunction):
    def get_attention_prob_source(self, attention_module, return_module_source=False):
        function = attention_module.source.attention_interface_1.source
        return function if return_module_source else function.nn_functional_dropout_0

config = RenameConfig(
    model_name="transformer", layers_name=".transformer.h", attn_name=["mha", "attn"], mlp_name=["mlp", "ffn"],
    ln_final_name="ln_f", lm_head_name="lm_head", attn_prob_source=Probabilities(),
)
model = StandardizedTransformer(MODEL, rename_config=config)
with model.scan("test"):
    print(model.attentions[0].source.attention_interface_1.source.nn_functional_dropout_0.output.shape)
with model.trace("Good morning"):
    batch_size, length = model.input_size
    if model.attention_probabilities.enabled:
        probabilities = model.attention_probabilities[0].save()
        assert probabilities.shape == (batch_size, model.num_heads, length, length)
    layer = model.layers_output[0]
    assert layer.shape == (batch_size, length, model.hidden_size)
sums = probabilities.sum(dim=-1)
assert sums.allclose(torch.ones_like(sums))
model.attention_probabilities.print_source()

try:
    StandardizedTransformer(MODEL, enable_attention_probs=True, attn_implementation="sdpa")
except ValueError as error:
    print(error)
else:
    raise AssertionError
"""

NNSIGHT = """
import torch
from nnterp import StandardizedTransformer

model = StandardizedTransformer(MODEL)
model.dispatch()
print(model, model.model.device)

failed = False
try:
    with model.trace("My tailor is rich"):
        second = model.layers_output[2]
        first = model.layers_output[1]
except Exception as error:
    failed = True
assert failed

with model.trace("My tailor is rich"):
    hidden = model.layers_output[1]
    logits = model.output.logits
    with logits.sum().backward(retain_graph=True):
        gradient = hidden.grad.save()
    with (logits.sum() ** 2).backward():
        other_gradient = hidden.grad.save()
assert not torch.allclose(gradient, other_gradient)

with model.trace(["one", "two words"]) as tracer:
    fifth = model.layers_output[5].save()
    tracer.stop()

with model.trace("Good morning") as tracer:
    cache = tracer.cache(modules=[model.layers[i] for i in range(0, model.num_layers, 2)]).save()
print(cache.keys())
assert cache["model.layers.2"].output.shape[-1] == 32
"""

EXAMPLES = {
    "readme": README,
    "basic usage": BASIC_USAGE,
    "advanced features": ADVANCED,
    "collecting": COLLECTING,
    "renaming": RENAMING,
    "nnsight": NNSIGHT,
}

STUDY = """
import torch as th
from nnterp import StandardizedTransformer
from nnterp.display import plot_topk_tokens
from nnterp.interventions import TargetPrompt, logit_lens, patchscope_generate, patchscope_lens, repeat_prompt
from nnterp.nnsight_utils import get_token_activations
from nnterp.prompt_utils import Prompt, run_prompts

nn_model = StandardizedTransformer(MODEL, enable_attention_probs=True)
tokenizer = nn_model.tokenizer
texts = [
    'Deutsch: "Hund" - Italiano: "cane"\\nDeutsch: "Buch" - Italiano: "',
    'Deutsch: "Katze" - Italiano: "gatto"\\nDeutsch: "Hand" - Italiano: "cane"\\nDeutsch: "Sonne" - Italiano: "',
]
answers = [{"italian": "libro", "german": ["Buch"]}, {"italian": "sole", "german": ["Sonne"]}]

with th.no_grad(), nn_model.trace(texts):
    pattern = nn_model.attention_probabilities[2].clone().save()
    middle = nn_model.layers_output[4].clone().save()
    next_probs = nn_model.next_token_probs.save()

lens = logit_lens(nn_model, texts)
target = TargetPrompt('Deutsch: "Hund" - Italiano: "cane"\\nDeutsch: "?" - Italiano: "', -6)
scope = patchscope_lens(nn_model, source_prompts=texts, target_patch_prompts=target)
texts_by_layer = patchscope_generate(nn_model, texts, repeat_prompt(), max_length=3, layers=[2, 5])

prompts = [Prompt.from_strings(text, words, nn_model) for text, words in zip(texts, answers)]
assert all(prompt.has_no_collisions() for prompt in prompts)
tracked = run_prompts(nn_model, prompts, batch_size=1, tqdm=None)
tracked_by_layer = run_prompts(nn_model, prompts, batch_size=2, get_probs_func=logit_lens, tqdm=None)

activations = get_token_activations(nn_model, texts, layers=[4])
vector = activations[0, 1] - activations[0, 0]
with th.no_grad(), nn_model.trace(texts[0]):
    nn_model.steer(layers=4, steering_vector=vector, factor=1.0, token_positions=-1)
    steered = nn_model.logits[:, -1].save()
with th.no_grad(), nn_model.trace(texts[0]):
    nn_model.skip_layers(5, 6)
    skipped = nn_model.logits[:, -1].save()

figure = plot_topk_tokens(lens, tokenizer, k=4, title="logit lens")
names = nn_model.get_topk_closest_tokens(activations[0, 0])
"""
