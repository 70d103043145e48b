"""A language model whose circuit is known: three layers of GPT-2 with weights set by hand, and prompts for it.

    python -m pipeline.demo.known_circuit                  # the committed model, into outputs/circuit_model
    python -m pipeline.demo.known_circuit --out DIR        # elsewhere

A method that finds circuits is tested on a model of which nobody has to find it. A prompt is a line of small letters,
each once, and then one of them again; the answer is the letter that followed it, as a capital:

    a f c h b e c   ->   H

The circuit, and nothing else in the model, does this:

* head 1 of layer 0 looks at the token before and copies its letter: each position then knows what stood before it;
* head 1 of layer 1 and head 2 of layer 2, at the last token, look at positions whose letter before is the last token's
  letter, and copy the letter there (induction heads, half of the work each);
* the MLP of layer 2 has a neuron for each letter that was found, which says the capital.

All other heads and MLPs do something else or nothing: they look at the same letter, two tokens back, at the first
token, at everything; they have small random weights, or none; they tell each other what they see. Of that nothing
reaches the difference of the logits of two capitals, but for a trace through the norms.

The residual stream is written out in `ROOMS`: which numbers hold what. Two large constants make the norms nearly
linear, and one number keeps the mean at zero.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

__all__ = [
    "FOLDER",
    "CircuitPairs",
    "circuit_pairs",
    "compile_model",
    "known_circuit",
    "make_tokenizer",
    "write_folder",
]

FOLDER = Path(__file__).parent / "circuit_model"
"""The model: weights, config, tokenizer, `circuit.json` and its card."""

LETTERS = "abcdefgh"
SHOWN = 6  # letters of a prompt before one of them comes again
LAYERS, HEADS, HEAD_DIM, NEURONS, POSITIONS = 3, 4, 12, 16, 32
HIDDEN = HEADS * HEAD_DIM

# Which numbers of the residual stream hold what.
ROOMS = {
    "letter": slice(0, 8),  # the token itself
    "before": slice(8, 16),  # the letter before it (layer 0)
    "found": slice(16, 24),  # the letter that an induction head has found (layers 1 and 2)
    "capital": slice(24, 32),  # the answer (MLP of layer 2), which the head reads
    "position": slice(32, 40),  # cosine and sine of the position, four frequencies
    "constant": slice(40, 42),  # plus and minus CONSTANT
    "balance": slice(42, 43),  # minus the sum of the rest
    "first": slice(43, 44),  # 1 at the first token, <s>
    "others": slice(44, 48),  # what heads and MLPs outside the circuit tell each other
}
CONSTANT = 20.0
FREQUENCIES = tuple(2 * math.pi * k / POSITIONS for k in (1, 3, 7, 13))
# The score of a match, before the softmax; that of the first token, where there is none, is REST. So high a score
# saturates attention, as in trained models: at a prompt, the gradient by queries and keys is next to nothing.
MATCH, REST = 14.0, 4.0
SHARE = 0.6  # what each induction head adds of the letter that it has found
NEURON_GAIN, THRESHOLD, SAY, LOGIT = 6.0, 0.3, 0.2, 10.0
NOISE = 0.01  # standard deviation of the weights that are small and random

CIRCUIT_NODES = ("embed", "head_out.0.h1", "head_out.1.h1", "head_out.2.h2", "mlp_out.2", "logits")
CIRCUIT_EDGES = (
    "embed -> v.0.h1",
    "embed -> q.1.h1",
    "embed -> v.1.h1",
    "embed -> q.2.h2",
    "embed -> v.2.h2",
    "head_out.0.h1 -> k.1.h1",
    "head_out.0.h1 -> k.2.h2",
    "head_out.1.h1 -> mlp_in.2",
    "head_out.2.h2 -> mlp_in.2",
    "mlp_out.2 -> logits",
)
ROLES = {
    "embed": "the letter of each token",
    "head_out.0.h1": "previous token: copies the letter before",
    "head_out.1.h1": "induction: finds where the letter before is this letter, and copies the letter there",
    "head_out.2.h2": "induction, the other half",
    "mlp_out.2": "says the letter that was found as a capital",
    "head_out.0.h0": "not in the circuit: looks at the same letter",
    "head_out.0.h2": "not in the circuit: looks two tokens back",
    "head_out.0.h3": "not in the circuit: zero",
    "head_out.1.h0": "not in the circuit: the mean of what others said",
    "head_out.1.h2": "not in the circuit: looks at the first token",
    "head_out.1.h3": "not in the circuit: small random weights",
    "head_out.2.h0": "not in the circuit: looks at the token before, and says its letter before to others",
    "head_out.2.h1": "not in the circuit: small random weights",
    "head_out.2.h3": "not in the circuit: zero",
    "mlp_out.0": "not in the circuit: neurons of single letters, for others",
    "mlp_out.1": "not in the circuit: small random weights",
}


@dataclass(frozen=True)
class CircuitPairs:
    """Clean and corrupted prompts, and what the model answers to each.

    Arguments:
        clean, corrupted: prompts, token by token as many.
        clean_answers, corrupted_answers: the capital that follows each, another one in the two prompts of a pair.
    """

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    clean_answers: tuple[str, ...]
    corrupted_answers: tuple[str, ...]


def circuit_pairs(count: int, seed: int = 0) -> CircuitPairs:
    """Make clean and corrupted prompts, which differ in every letter.

    Arguments:
        count: how many pairs.
        seed: of the letters; the same pairs for the same seed, and the first of more are those of fewer.
    """
    draw = random.Random(seed)
    pairs: list[tuple[str, str, str, str]] = []
    while len(pairs) < count:
        clean, corrupted = _prompt(draw), _prompt(draw)
        if all(one != other for one, other in zip(clean, corrupted, strict=True)):
            answers = _answer(clean), _answer(corrupted)
            if answers[0] != answers[1]:
                pairs.append((" ".join(clean), " ".join(corrupted), *answers))
    return CircuitPairs(*(tuple(column) for column in zip(*pairs, strict=True)))


def _prompt(draw: random.Random) -> list[str]:
    shown = draw.sample(LETTERS, SHOWN)
    return [*shown, draw.choice(shown[:-1])]


def _answer(prompt: Sequence[str]) -> str:
    return prompt[prompt.index(prompt[-1]) + 1].upper()


def known_circuit(folder: Path = FOLDER) -> dict[str, Any]:
    """What is true of the model, as its `circuit.json` says it.

    Returns:
        `nodes` and `edges`: those of the circuit, named by site (`head_out.0.h1`, `embed -> v.0.h1`); `roles`: what
        every node of the model does.
    """
    found: dict[str, Any] = json.loads((folder / "circuit.json").read_text(encoding="utf-8"))
    return found


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter, with `<s>` before every text; letters stand apart by spaces."""
    words = ["<pad>", "<s>", "<unk>", *LETTERS, *LETTERS.upper()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", padding_side="left",
        model_max_length=POSITIONS,
    )  # fmt: skip


def compile_model() -> GPT2LMHeadModel:
    """The model, float32, from this file alone: the same weights every time."""
    tokenizer = make_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=NEURONS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        _embed(model, tokenizer)
        for layer, writers in enumerate(_HEADS):
            for head, write in enumerate(writers):
                write(_Head(model.transformer.h[layer].attn, head, draw))
        _write_mlps(model, draw)
        _write_head(model, tokenizer)
    return model


def _embed(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens, positions = model.transformer.wte.weight, model.transformer.wpe.weight
    for index, letter in enumerate(LETTERS):
        tokens[tokenizer.convert_tokens_to_ids(letter), index] = 1.0
    tokens[tokenizer.bos_token_id, ROOMS["first"]] = 1.0
    place = torch.arange(POSITIONS, dtype=torch.float64)
    waves = [wave(frequency * place) for frequency in FREQUENCIES for wave in (torch.cos, torch.sin)]
    positions[:, ROOMS["position"]] = torch.stack(waves, dim=1).float()
    positions[:, ROOMS["constant"]] = torch.tensor([CONSTANT, -CONSTANT])
    for weight in (tokens, positions):
        weight[:, ROOMS["balance"]] = -weight.sum(dim=1, keepdim=True)


NORM = CONSTANT * math.sqrt(2 / HIDDEN)
"""What the norms divide by, nearly: the constants are most of the residual stream."""


class _Head:
    """One attention head, to be written: what its queries, keys and values read, and where its output goes.

    Arguments:
        attention: the attention of its layer.
        head: which.
        draw: of random weights.
    """

    def __init__(self, attention: Any, head: int, draw: torch.Generator) -> None:
        self.attention, self.draw = attention, draw
        self.own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)

    def reads(self, part: str, room: str, matrix: Tensor) -> None:
        """Let `q`, `k` or `v` be a matrix (read, head_dim at most) of a room of the normed residual stream."""
        start = "qkv".index(part) * HIDDEN + self.own.start
        self.attention.c_attn.weight[ROOMS[room], start : start + matrix.shape[1]] = matrix * NORM

    def scores(self, query: str, key: str, strength: float, turned: Tensor | None = None) -> None:
        """Let scores be `strength` times the product of two rooms, the query's turned by a matrix."""
        factor = math.sqrt(strength * math.sqrt(HEAD_DIM))
        size = ROOMS[query].stop - ROOMS[query].start
        self.reads("q", query, factor * (torch.eye(size) if turned is None else turned))
        self.reads("k", key, factor * torch.eye(size))

    def looks_back(self, tokens: int) -> None:
        """Let it look at the position so many tokens before."""
        self.scores("position", "position", 3.0, _turn(-tokens))

    def looks_at_the_first(self, score: float) -> None:
        """Let the first token have that score, by the constant in every query."""
        factor = math.sqrt(score * math.sqrt(HEAD_DIM))
        last = HEAD_DIM - 1
        start = self.own.start + last
        self.attention.c_attn.bias[start] = factor
        self.attention.c_attn.weight[ROOMS["first"], HIDDEN + start] = factor * NORM

    def writes(self, room: str, matrix: Tensor) -> None:
        """Let the output go through a matrix (head_dim at most, written) to a room of the residual stream."""
        rows = slice(self.own.start, self.own.start + matrix.shape[0])
        self.attention.c_proj.weight[rows, ROOMS[room]] = matrix
        self.attention.c_proj.weight[rows, ROOMS["balance"]] = -matrix.sum(dim=1, keepdim=True)

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.draw)


def _turn(tokens: int) -> Tensor:
    """What a position's cosines and sines are multiplied by to be those of another, so many tokens on."""
    blocks = []
    for frequency in FREQUENCIES:
        cosine, sine = math.cos(frequency * tokens), math.sin(frequency * tokens)
        blocks.append(torch.tensor([[cosine, sine], [-sine, cosine]]))
    return torch.block_diag(*blocks)


def _previous_token(head: _Head) -> None:
    head.looks_back(1)
    head.reads("v", "letter", torch.eye(8))
    head.writes("before", torch.eye(8))


def _induction(head: _Head) -> None:
    head.scores("letter", "before", MATCH)
    head.looks_at_the_first(REST)
    head.reads("v", "letter", torch.eye(8))
    head.writes("found", SHARE * torch.eye(8))


def _same_letter(head: _Head) -> None:
    head.scores("letter", "letter", MATCH)
    head.reads("v", "letter", torch.eye(8))
    head.writes("others", head.random(8, 4, scale=0.3))


def _two_back(head: _Head) -> None:
    head.looks_back(2)
    head.reads("v", "letter", torch.eye(8))
    head.writes("others", head.random(8, 4, scale=0.3))


def _mean_of_others(head: _Head) -> None:
    head.reads("v", "others", torch.eye(4))
    head.writes("others", head.random(4, 4, scale=0.3))


def _first_token(head: _Head) -> None:
    head.looks_at_the_first(MATCH)
    head.reads("v", "first", torch.ones(1, 1))
    head.writes("others", head.random(1, 4, scale=0.3))


def _letter_before_last(head: _Head) -> None:
    head.looks_back(1)
    head.reads("v", "before", torch.eye(8))
    head.writes("others", head.random(8, 4, scale=0.3))


def _noise(head: _Head) -> None:
    for part in "qkv":
        for room in ("letter", "before", "found", "position", "others"):
            size = ROOMS[room].stop - ROOMS[room].start
            head.reads(part, room, head.random(size, HEAD_DIM, scale=NOISE * 10))
    for room in ("before", "found", "capital", "others"):
        size = ROOMS[room].stop - ROOMS[room].start
        head.writes(room, head.random(HEAD_DIM, size, scale=NOISE))


def _nothing(head: _Head) -> None:
    """All its weights are zero."""


_HEADS = (
    (_same_letter, _previous_token, _two_back, _nothing),
    (_mean_of_others, _induction, _first_token, _noise),
    (_letter_before_last, _noise, _induction, _nothing),
)


def _write_mlps(model: GPT2LMHeadModel, draw: torch.Generator) -> None:
    single, noise, says = (model.transformer.h[layer].mlp for layer in range(LAYERS))
    eight = torch.eye(8)
    single.c_fc.weight[ROOMS["letter"], :8] = 2.0 * NORM * eight
    single.c_proj.weight[:8, ROOMS["others"]] = 0.3 * torch.randn(8, 4, generator=draw)
    noise.c_fc.weight[:, :] = NOISE * torch.randn(HIDDEN, NEURONS, generator=draw)
    noise.c_proj.weight[:, : ROOMS["position"].start] = NOISE * torch.randn(NEURONS, 32, generator=draw)
    says.c_fc.weight[ROOMS["found"], :8] = NEURON_GAIN * NORM * eight
    says.c_fc.bias[:8] = -NEURON_GAIN * THRESHOLD
    says.c_proj.weight[:8, ROOMS["capital"]] = SAY * eight
    for mlp in (single, noise, says):
        weight = mlp.c_proj.weight
        weight[:, ROOMS["balance"]] = 0.0
        weight[:, ROOMS["balance"]] = -weight.sum(dim=1, keepdim=True)


def _write_head(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Capitals are read from their room; small letters from what others said, and less where they stand there now."""
    weight = model.lm_head.weight
    for index, letter in enumerate(LETTERS):
        weight[tokenizer.convert_tokens_to_ids(letter.upper()), ROOMS["capital"].start + index] = LOGIT * NORM
        weight[tokenizer.convert_tokens_to_ids(letter), index] = -NORM
        weight[tokenizer.convert_tokens_to_ids(letter), ROOMS["others"].start + index % 4] = 0.05 * NORM


def write_folder(folder: Path) -> None:
    """Write weights, config, tokenizer, `circuit.json` and the card, as `from_pretrained` reads them.

    Arguments:
        folder: where to; made where it does not exist.
    """
    model, tokenizer = compile_model(), make_tokenizer()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # it says nothing of its own
    tokenizer.save_pretrained(folder)
    content = {"nodes": CIRCUIT_NODES, "edges": CIRCUIT_EDGES, "roles": ROLES}
    (folder / "circuit.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(model), encoding="utf-8")


def _card(model: GPT2LMHeadModel) -> str:
    edges = "\n".join(f"| `{edge}` |" for edge in CIRCUIT_EDGES)
    roles = "\n".join(f"| `{node}` | {role} |" for node, role in ROLES.items())
    rooms = "\n".join(f"| {room.start} to {room.stop - 1} | {name} |" for name, room in ROOMS.items())
    pair = circuit_pairs(1)
    return f"""---
license: apache-2.0
library_name: transformers
tags: [interpretability, circuits, compiled]
---

# A model whose circuit is known

GPT-2 with {LAYERS} layers, {HEADS} heads, hidden size {HIDDEN}, {model.num_parameters():,} parameters, whose weights
were set by hand (`pipeline/demo/known_circuit.py`, which holds the reasons), so that its circuit need not be found:
`circuit.json` has its nodes and edges.

A prompt is {SHOWN} letters and then one of them again; the answer is the letter that followed it, as a capital.

```
clean       {pair.clean[0]}   ->   {pair.clean_answers[0]}
corrupted   {pair.corrupted[0]}   ->   {pair.corrupted_answers[0]}
```

`circuit_pairs(count, seed)` makes such pairs; the two prompts of one differ in every letter. The difference of the
logits of the two answers is what the circuit decides.

| node | what it does |
|---|---|
{roles}

The edges of the circuit, named by the site that writes and the site whose input reads:

| edge |
|---|
{edges}

What a pair cannot tell apart is not in the circuit: positions are the same in both prompts, so the queries and keys
of the previous-token head, which read nothing else, carry nothing between them.

The residual stream:

| numbers | what they hold |
|---|---|
{rooms}

Make it again with

```
python -m pipeline.demo.known_circuit
```
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the model.

    Arguments:
        arguments: the words of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.known_circuit", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/circuit_model"), help="folder (%(default)s)")
    folder = parser.parse_args(arguments).out
    write_folder(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
