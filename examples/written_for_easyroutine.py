"""A notebook's worth of easyroutine: extraction over a dataloader, averages, ablation and patching, on the demo model.

It is written as easyroutine's documentation shows it. To run it on `interp`, change `easyroutine.interpretability` to
`interp.compat.easyroutine` in the import; nothing else. (easyroutine itself loads none but the models that it lists.)
"""

import torch
from easyroutine.interpretability import ExtractionConfig, HookedModel, HookedModelConfig

results = {}

# --- A model, and a dataloader ---------------------------------------------------------------------------------------

model = HookedModel(HookedModelConfig(model_name="pipeline/demo/model", device_map="cpu", torch_dtype=torch.float32))
tokenizer = model.get_text_tokenizer()
words, answers = ["dog", "water", "white sheep"], ["cane", "acqua", "pecora"]


def batch_of(some):
    return dict(tokenizer([f'English: "{word}" - Italiano: "' for word in some], padding=True, return_tensors="pt"))


dataloader = [{**batch_of(words[:2]), "labels": answers[:2]}, {**batch_of(words[2:]), "labels": answers[2:]}]
results["first predictions"] = {word: model.predict(k=3, inputs=batch_of([word])) for word in words}
print(model.to_string_tokens(dataloader[1]["input_ids"]))

# --- Activations of all examples, at named positions -----------------------------------------------------------------

config = ExtractionConfig(extract_resid_out=True, extract_head_out=True, attn_heads=[{"layer": 4, "head": 1}])
cache = model.extract_cache(
    dataloader, ["last", "last-2", "all"], batch_saver=lambda rest: {"labels": rest["labels"]}, extraction_config=config
)
print(repr(cache), cache.memory_tree(grouped_tree=True))
results["labels"] = cache["labels"]
results["last"] = cache.map_to_dict("resid_out_3")["last"]
results["mapping_index"] = {name: len(places) for name, places in cache["mapping_index"].items()}

attention = model.extract_cache(
    dataloader,
    ["first", "last"],
    extract_attn_pattern=True,
    attn_pattern_avg="mean",
    attn_pattern_row_positions=["last"],
)
results["attention to the first token"] = torch.stack([attention[f"pattern_L{layer}H0"][:, 0, 0] for layer in range(8)])

# --- Ablation and patching -------------------------------------------------------------------------------------------

batch = batch_of(words[:1])
clean = model.forward(batch)["logits"]
ablated = model.forward(
    batch,
    ["last"],
    ablation_queries=[{"type": "std", "elem-to-ablate": "@all", "head-layer-couple": [[0, 5], [1, 5]]}],
)["logits"]
results["change by ablation"] = (clean - ablated).abs().max()

first_ids = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
patched = model.compute_patching(
    target_token_positions=["last"],
    base_dataloader=[batch_of(["water"])],
    target_dataloader=[batch_of(["dog"])],
    patching_query=[{"patching_elem": "@last", "layers_to_patch": [6], "activation_type": "resid_out_{}"}],
    base_dictonary_idxs=[[first_ids[1]]],
    target_dictonary_idxs=[[first_ids[0]]],
    return_logit_diff=True,
)
results["logit differences"] = [
    float(patched[f"logit_diff_{which}"]) for which in ("in_clean", "in_patched", "variation")
]
print(results["logit differences"])
