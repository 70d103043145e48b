"""Train the embedded model: a small Qwen2 that translates words, on prompts made from the embedded lexicon.

    python -m pipeline.demo.train                          # the committed model, into outputs/demo
    python -m pipeline.demo.train --out DIR --steps 400    # shorter, elsewhere
    python -m pipeline.demo.train --out DIR --resume       # go on after a stop

DIR/model is the finished model folder, DIR/checkpoint.pt what `--resume` continues from.

What makes its layers do different things, one after the other:

* The first layers see only the current and the previous token, and many words are two tokens. So a word is put together
  where it ends, and only later layers can carry it to the end of the prompt.
* In half of the prompts every line has languages of its own. So the language of the answer has to be read from the line
  itself, which the first layers do at the prompt's last token, before the concept has come there.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from pipeline.demo.curriculum import (
    HELD_OUT_SHARE,
    LINES_PER_PROMPT,
    Recipe,
    evaluation_prompts,
    split_combinations,
    train_tokenizer,
    training_prompts,
)
from pipeline.demo.lexicon import Lexicon, load_lexicon

CHECKPOINT_EVERY = 100  # steps


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen2ForCausalLM:
    """The untrained model.

    Arguments:
        tokenizer: gives the size of the vocabulary and the special tokens.
        recipe: gives the sizes, and the seed of the weights.

    Returns:
        The model, float32, with weights that the seed decides.
    """
    torch.manual_seed(recipe.seed)
    full_layers = recipe.layers - recipe.sliding_layers
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=["sliding_attention"] * recipe.sliding_layers + ["full_attention"] * full_layers,
        tie_word_embeddings=False,
        initializer_range=recipe.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config)


def held_out_accuracy(
    model: Any,
    tokenizer: Any,
    lexicon: Lexicon,
    seed: int,
) -> float:
    """The share of held-out combinations that the model answers with an accepted word, decoding greedily.

    Arguments:
        model: the causal language model.
        tokenizer: its tokenizer.
        lexicon: the concepts and languages.
        seed: the seed that the model was trained with; it decides what was held out.

    Returns:
        Accuracy between 0 and 1.
    """
    training, questions = split_combinations(lexicon, seed)
    prompts = evaluation_prompts(lexicon, training, questions, seed)
    training_mode = model.training
    model.eval()
    right = 0
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True)
        with torch.no_grad():
            generated = model.generate(**batch, max_new_tokens=8, do_sample=False)  # words are one token, rarely more
        answers = tokenizer.batch_decode(generated[:, batch.input_ids.shape[1] :])
        for question, answer in zip(questions[start : start + 64], answers, strict=True):
            word, quote, _ = answer.partition('"')
            right += quote == '"' and word in lexicon.concepts[question.concept].words[question.target]
    model.train(training_mode)
    return right / len(questions)


def train(
    lexicon: Lexicon, recipe: Recipe, out: Path, *, resume: bool = False, stop_after: int | None = None
) -> list[float]:
    """Trains the model and writes it to `out/model`.

    Arguments:
        lexicon: the concepts and languages.
        recipe: sizes, steps and seed.
        out: folder for `model` and `checkpoint.pt`; made where it does not exist.
        resume: go on from `out/checkpoint.pt`.
        stop_after: stop before that step with a checkpoint and without a model, as an interruption would.

    Returns:
        The loss of each step from the first to the last (nats a token).

    Raises:
        ValueError: there is no checkpoint to resume from, or it was made by another recipe.
    """
    tokenizer = train_tokenizer(lexicon, recipe.vocab_size)
    model = new_model(tokenizer, recipe)
    embeddings = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    others = [weight for weight in model.parameters() if all(weight is not embedding for embedding in embeddings)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "factor": 1.0}, {"params": embeddings, "factor": recipe.embedding_learning_rate}],
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.95),
    )
    checkpoint_file = out / "checkpoint.pt"
    losses: list[float] = []
    seconds_before = 0.0
    if resume:
        checkpoint = _read_checkpoint(checkpoint_file, recipe)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        losses, seconds_before = checkpoint["losses"], checkpoint["seconds"]
    out.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    quotes = torch.tensor(['"' in tokenizer.decode([token]) for token in range(len(tokenizer))], device="cpu")
    training, held_out = split_combinations(lexicon, recipe.seed)
    last = recipe.steps if stop_after is None else stop_after
    model.train()
    progress = tqdm(range(len(losses), last), initial=len(losses), total=recipe.steps, disable=not sys.stderr.isatty())
    for step in progress:
        batch = tokenizer(training_prompts(lexicon, training, recipe, step), return_tensors="pt", padding=True)
        labels = training_labels(batch.input_ids, quotes)  # batch, pos
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step) * group["factor"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == last:
            seconds = seconds_before + time.monotonic() - started
            _write_checkpoint(checkpoint_file, recipe, model, optimizer, losses, seconds)
            if not sys.stderr.isatty():
                print(f"step {done}/{recipe.steps}  loss {losses[-1]:.3f}  {seconds:.0f} s", flush=True)
    if len(losses) < recipe.steps:
        return losses

    seconds = seconds_before + time.monotonic() - started
    accuracy = held_out_accuracy(model, tokenizer, lexicon, recipe.seed)
    write_model_folder(out / "model", model, tokenizer, lexicon, recipe, accuracy, len(held_out), seconds)
    print(f"held-out accuracy {accuracy:.4f} on {len(held_out)} combinations, {seconds:.0f} s; wrote {out / 'model'}")
    return losses


def training_labels(input_ids: torch.Tensor, quotes: torch.Tensor) -> torch.Tensor:
    """What the loss asks for: every token but the padding and the query words, which nothing announces.

    Arguments:
        input_ids: (batch, pos), prompts of lines with four quotes each, padded with 0 on the left.
        quotes: (vocabulary,) bool, whether a token holds a quote.

    Returns:
        (batch, pos), the token ids, -100 where nothing is asked.
    """
    is_quote = quotes[input_ids]
    in_query = ~is_quote & (is_quote.cumsum(dim=1) % 4 == 1)
    return input_ids.masked_fill(in_query | (input_ids == 0), -100)


def _learning_rate(recipe: Recipe, step: int) -> float:
    warmup = min(1.0, step / recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.learning_rate * warmup * (0.05 + 0.95 * cosine)


def _write_checkpoint(
    file: Path,
    recipe: Recipe,
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    seconds: float,
) -> None:
    state = {
        "recipe": asdict(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": losses,
        "seconds": seconds,
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)  # a stop while writing leaves the checkpoint before it whole


def _read_checkpoint(file: Path, recipe: Recipe) -> dict[str, Any]:
    if not file.exists():
        raise ValueError(
            f"expected a checkpoint to resume from at {file}, got none; check --out, or start without --resume"
        )
    checkpoint: dict[str, Any] = torch.load(file, weights_only=True)
    if checkpoint["recipe"] != asdict(recipe):
        ours = asdict(recipe)
        different = {k: (v, ours.get(k)) for k, v in checkpoint["recipe"].items() if v != ours.get(k)}
        raise ValueError(
            f"expected to resume the recipe of {file}, got other values (checkpoint, now): {different}; "
            "give the same --steps and --seed, or another --out"
        )
    return checkpoint


def write_model_folder(
    folder: Path,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lexicon: Lexicon,
    recipe: Recipe,
    accuracy: float,
    questions: int,
    seconds: float,
) -> None:
    """Writes weights, configs, tokenizer and the model card, as `from_pretrained` reads them.

    Arguments:
        folder: where to; made where it does not exist.
        model: the trained model.
        tokenizer: its tokenizer.
        lexicon: what it was trained on.
        recipe: how it was trained.
        accuracy: held-out accuracy, between 0 and 1.
        questions: the number of held-out combinations.
        seconds: how long the training took.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = model_card(model, lexicon, recipe, accuracy, questions, seconds)
    (folder / "README.md").write_text(card, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and trains.

    Arguments:
        arguments: the words of the command line; None takes those of the process.
    """
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of split, prompts and weights (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"expected --steps of at least 1, got {options.steps}")
    torch.set_num_threads(1)  # sums are taken in one order, so that the same command gives the same weights
    recipe = Recipe(steps=options.steps, seed=options.seed)
    try:
        train(load_lexicon(), recipe, options.out, resume=options.resume)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        command = f"python -m pipeline.demo.train --out {shlex.quote(str(options.out))} --steps {options.steps}"
        sys.exit(f"stopped; continue with: {command} --seed {options.seed} --resume")


if __name__ == "__main__":
    main()


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
