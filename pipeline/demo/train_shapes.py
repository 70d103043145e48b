"""Train the embedded model that sees: a small LLaVA (CLIP and Qwen2) that names colours and shapes.

    python -m pipeline.demo.train_shapes                        # the committed model, into outputs/shapes_model
    python -m pipeline.demo.train_shapes --out DIR --steps 400  # shorter, elsewhere

It learns two things, each on fresh draws at every step:

* to answer questions about an image (`pipeline.demo.shapes`), for its colour or its shape;
* to repeat a word, without any image, so that a patchscope can ask it to: `red red`, `bar bar`, `pink`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from pipeline.demo.shapes import COLOURS, SHAPES, SIDE, draw, draw_scene

__all__ = [
    "FOLDER",
    "Recipe",
    "accuracy_of",
    "draw_prompt",
    "draw_words",
    "held_out",
    "main",
    "make_processor",
    "new_model",
    "train",
]

FOLDER = Path(__file__).parent / "shapes_model"
"""The model: weights, configs, tokenizer, image processor and its card."""

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
PATCH = 8  # pixels of a patch's side, each of which is an image token
HELD_OUT = 256  # questions that say how well it learned
NOTHING = -100  # where the loss asks for no token
REPEATED, WORDS = 8, 6  # every eighth step is about words that are repeated, six in a prompt


@dataclass(frozen=True)
class Recipe:
    """How the model is made.

    Arguments:
        steps, batch_size: of the training.
        learning_rate, warmup_steps, weight_decay: of AdamW; the rate falls along half a cosine.
        hidden_size, intermediate_size, layers, heads: of the language model.
        sliding_layers: how many of its layers, from the first on, see only the current and the previous token, so that
            later ones have to bring what was seen and what is asked to the end of the prompt.
        vision_size, vision_layers: of the vision tower, with as many heads.
        vocab_size: of the tokenizer at most.
        initializer_range: standard deviation of the language model's weights before training.
        seed: of weights and draws.
    """

    steps: int = 1000
    batch_size: int = 48
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    hidden_size: int = 64
    intermediate_size: int = 160
    layers: int = 6
    heads: int = 4
    sliding_layers: int = 2
    vision_size: int = 64
    vision_layers: int = 3
    vocab_size: int = 560
    initializer_range: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Questions:
    """A prompt of questions and their answers.

    Arguments:
        parts: what is asked, with `<image>` for each image, and the answer, a word with the space before it, in turns.
        images: (height, width, 3) each.
    """

    parts: list[str]
    images: list[NDArray[np.uint8]] = field(default_factory=list)


def draw_prompt(draws: random.Random, asked: int) -> Questions:
    """Draw an image, and one question about it or both.

    Arguments:
        draws: where chance comes from.
        asked: how many questions.
    """
    scene = draw_scene(draws)
    possible = [("What colour is it?", scene.colour), ("What shape is it?", scene.shape)]
    drawn = draws.sample(possible, asked)
    parts = [part for question, answer in drawn for part in (f"\n{question} Answer:", f" {answer}")]
    return Questions(["<image>" + parts[0], *parts[1:]], [draw(scene)])


def draw_words(draws: random.Random, count: int) -> Questions:
    """Draw words, each to be repeated; a prompt without an image."""
    words = draws.sample([*COLOURS, *SHAPES], count)
    parts = [part for word in words for part in (f"\n{word}", f" {word}")]
    return Questions([words[0], *parts[1:]])


def make_processor(recipe: Recipe) -> LlavaProcessor:
    """The tokenizer, in which every word is one token, and the image processor."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    words = [*COLOURS, *SHAPES]
    text = [" ".join(words), *words, *(f" {word}" for word in words)]
    text += ["\nWhat colour is it? Answer: What shape is it?"]
    bpe.train_from_iterator(
        text * 3,
        trainers.BpeTrainer(
            vocab_size=recipe.vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        additional_special_tokens=["<image>"], model_max_length=256,
    )  # fmt: skip
    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def new_model(recipe: Recipe, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The untrained model, float32, with weights that the seed decides."""
    torch.manual_seed(recipe.seed)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=recipe.vision_size,
        intermediate_size=2 * recipe.vision_size,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.heads,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=recipe.vision_size,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=["sliding_attention"] * recipe.sliding_layers
        + ["full_attention"] * (recipe.layers - recipe.sliding_layers),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return LlavaForConditionalGeneration(config)


def inputs_of(processor: LlavaProcessor, asked: Sequence[Questions]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What a forward pass is fed for some prompts with their answers, padded on the left, and its labels.

    Images are normalised as the image processor does it; the loss asks for the answers alone.
    """
    tokenizer, image = processor.tokenizer, "<image>" * (SIDE // PATCH) ** 2
    ids, labels = [], []
    for one in asked:
        parts = tokenizer([part.replace("<image>", image) for part in one.parts], add_special_tokens=False).input_ids
        ids.append([tokenizer.bos_token_id, *(token for part in parts for token in part)])
        wanted = [[NOTHING] * len(part) if turn % 2 == 0 else part for turn, part in enumerate(parts)]
        labels.append([NOTHING, *(token for part in wanted for token in part)])
    longest = max(map(len, ids))
    padding = [longest - len(own) for own in ids]
    batch = {
        "input_ids": torch.tensor([[tokenizer.pad_token_id] * n + own for n, own in zip(padding, ids, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (longest - n) for n in padding]),
    }
    if pixels := [image for one in asked for image in one.images]:
        values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        batch["pixel_values"] = (values - 0.5) / 0.5
    return batch, torch.tensor([[NOTHING] * n + own for n, own in zip(padding, labels, strict=True)])


def accuracy_of(model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: Sequence[Questions]) -> float:
    """The share of answers that are the model's most probable next token, after the right answers before them."""
    batch, labels = inputs_of(processor, asked)
    training = model.training
    model.eval()
    with torch.no_grad():
        said = model(**batch).logits[:, :-1].argmax(dim=-1)
    model.train(training)
    wanted = labels[:, 1:]
    return float((said == wanted)[wanted != NOTHING].float().mean())


def held_out(count: int) -> list[Questions]:
    """Fresh prompts, one question each."""
    draws = random.Random("held out")
    return [draw_prompt(draws, 1) for _ in range(count)]


def train(recipe: Recipe, out: Path) -> float:
    """Train the model and write it to a folder.

    Arguments:
        recipe: sizes, steps and seed.
        out: the folder; made where it does not exist.

    Returns:
        The accuracy on fresh questions.
    """
    processor = make_processor(recipe)
    model = new_model(recipe, processor)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)
    )
    draws = random.Random(recipe.seed)
    started = time.monotonic()
    model.train()
    for step in tqdm(range(recipe.steps), disable=not sys.stderr.isatty()):
        if step % REPEATED == REPEATED - 1:
            prompts = [draw_words(draws, WORDS) for _ in range(recipe.batch_size)]
        else:
            prompts = [draw_prompt(draws, 2) for _ in range(recipe.batch_size)]
        batch, labels = inputs_of(processor, prompts)
        logits = model(**batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NOTHING)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 and not sys.stderr.isatty():
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{recipe.steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    seconds = time.monotonic() - started
    model = model.to(torch.bfloat16)  # as it is kept
    accuracy = accuracy_of(model.float(), processor, held_out(HELD_OUT))
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)
    (out / "README.md").write_text(model_card(model, recipe, accuracy, seconds), encoding="utf-8")
    print(f"accuracy {accuracy:.4f} on {HELD_OUT} fresh questions, {seconds:.0f} s; wrote {out}")
    return accuracy


def _learning_rate(recipe: Recipe, step: int) -> float:
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def model_card(model: LlavaForConditionalGeneration, recipe: Recipe, accuracy: float, seconds: float) -> str:
    """The model card, with the numbers that a test reads in its head."""
    shown = {"accuracy": round(accuracy, 4), "steps": recipe.steps, "seed": recipe.seed}
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [interpretability, demo]
held_out: {json.dumps(shown)}
---

# The embedded model that sees

A small LLaVA that names the colours and shapes of images like those in `pipeline/demo/shapes`. It is made to be looked
into, and knows nothing else.

| | |
|---|---|
| architecture | CLIP vision tower ({recipe.vision_layers} layers, hidden size {recipe.vision_size}, patches of \
{PATCH} x {PATCH} pixels, {(SIDE // PATCH) ** 2} image tokens), Qwen2 ({recipe.layers} layers, the first \
{recipe.sliding_layers} attend to two tokens, hidden size {recipe.hidden_size}, {recipe.heads} heads) |
| parameters | {model.num_parameters():,}, kept in bfloat16 |
| tokenizer | byte-level BPE, {model.config.text_config.vocab_size} entries; every colour and shape is one token |
| data | drawn anew at every step (`pipeline/demo/shapes.py`): {len(COLOURS)} colours, {len(SHAPES)} shapes, one in \
an image, of any size and place; both questions; every {REPEATED}th step words that are repeated, without an image |
| training | {recipe.steps} steps of {recipe.batch_size} prompts, AdamW {recipe.learning_rate:g}, weight decay \
{recipe.weight_decay:g}, cosine decay, seed {recipe.seed}, one thread, {seconds / 60:.0f} minutes |
| accuracy | {accuracy:.4f} of {HELD_OUT} questions about fresh images |

A prompt:

```
<image>
What colour is it? Answer:
```

Train it again with `python -m pipeline.demo.train_shapes`.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train.

    Arguments:
        arguments: the words of the command line; None takes those of the process.
    """
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.train_shapes", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/shapes_model"), help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of weights and draws (%(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"expected --steps of at least 1, got {options.steps}")
    torch.set_num_threads(1)  # sums are taken in one order, so that the same command gives the same weights
    train(Recipe(steps=options.steps, seed=options.seed), options.out)


if __name__ == "__main__":
    main()
