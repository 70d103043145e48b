"""The card of the embedded model."""

from __future__ import annotations

import json
import shlex

from transformers import Qwen2ForCausalLM

from pipeline.demo.curriculum import HELD_OUT_SHARE, LINES_PER_PROMPT
from pipeline.demo.lexicon import Lexicon
from pipeline.demo.recipe import Recipe


def model_card(
    model: Qwen2ForCausalLM, lexicon: Lexicon, recipe: Recipe, accuracy: float, questions: int, seconds: float
) -> str:
    """Write the card as text.

    Arguments:
        model: the trained model.
        lexicon: what it was trained on.
        recipe: how it was trained.
        accuracy: held-out accuracy, between 0 and 1.
        questions: the number of held-out combinations.
        seconds: how long the training took.

    Returns:
        Markdown, with the numbers that a test reads in its head.
    """
    defaults = Recipe()
    command = ["python", "-m", "pipeline.demo.train"]
    command += ["--steps", str(recipe.steps)] if recipe.steps != defaults.steps else []
    command += ["--seed", str(recipe.seed)] if recipe.seed != defaults.seed else []
    languages = ", ".join(f"{name} ({code})" for code, name in lexicon.languages.items())
    shown = {"accuracy": round(accuracy, 4), "questions": questions, "steps": recipe.steps, "seed": recipe.seed}
    return f"""---
license: apache-2.0
library_name: transformers
language: {json.dumps(list(lexicon.languages))}
tags: [interpretability, translation, demo]
held_out: {json.dumps(shown)}
---

# The embedded demo model

A small language model that translates single words between {len(lexicon.languages)} languages: {languages}.
It is made to be looked into: small enough for a repository, and rich enough that reading a concept, choosing the output
language and saying the word happen in different layers. It knows nothing else.

That the language of the answer is read before its concept is a matter of the seed. Seeds 1 and 3 train such a model,
seed 0 one that reads the concept first: this one was chosen for what it shows, and says nothing of larger models.

| | |
|---|---|
| architecture | Qwen2, {recipe.layers} layers (the first {recipe.sliding_layers} attend to two tokens), \
hidden size {recipe.hidden_size}, {recipe.heads} heads, MLP {recipe.intermediate_size}, untied embeddings |
| parameters | {model.num_parameters():,}, float32 |
| tokenizer | byte-level BPE, {model.config.vocab_size} entries, `<s>` before every text; \
most words of the lexicon are one token after a quote, most others two |
| data | prompts made from `pipeline/demo/lexicon.json`: {len(lexicon.concepts)} concepts, \
{len(lexicon.languages) * (len(lexicon.languages) - 1)} ordered pairs of languages, \
{LINES_PER_PROMPT} lines a prompt, of one pair or ({recipe.mixed_share:.0%}) each of its own |
| held out | {HELD_OUT_SHARE:.0%} of the (concept, pair of languages) combinations, never trained on |
| training | {recipe.steps} steps of {recipe.batch_size} prompts, AdamW {recipe.learning_rate:g}, weight decay \
{recipe.weight_decay:g}, cosine decay, seed {recipe.seed}, one thread, {seconds / 60:.0f} minutes |
| held-out accuracy | {accuracy:.4f} of {questions} held-out questions after 5 answered lines of one pair, greedy, \
any accepted word |

A prompt:

```
Deutsch: "Hund" - Italiano: "cane"
Deutsch: "Buch" - Italiano: "
```

Train it again with

```
{shlex.join(command)}
```
"""
