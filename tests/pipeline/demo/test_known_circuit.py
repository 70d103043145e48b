"""The model whose circuit is known: it solves its task by that circuit, and its folder is what the script makes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import StandardizedTransformer
from pipeline.demo.known_circuit import (
    CIRCUIT_EDGES,
    CIRCUIT_NODES,
    FOLDER,
    HEADS,
    LAYERS,
    ROLES,
    circuit_pairs,
    known_circuit,
    write_folder,
)


def test_the_model_solves_its_task() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    pairs = circuit_pairs(200, seed=5)
    for prompts, answers in ((pairs.clean, pairs.clean_answers), (pairs.corrupted, pairs.corrupted_answers)):
        with torch.no_grad():
            logits = model(**tokenizer(list(prompts), return_tensors="pt")).logits[:, -1]
        right = torch.tensor(tokenizer.convert_tokens_to_ids(list(answers)))
        assert torch.equal(logits.argmax(-1), right)
        assert float(logits.softmax(-1).gather(1, right[:, None]).min()) > 0.9


def test_pairs_differ_everywhere_and_are_the_same_for_a_seed() -> None:
    pairs = circuit_pairs(50, seed=1)
    for clean, corrupted, *answers in zip(
        pairs.clean, pairs.corrupted, pairs.clean_answers, pairs.corrupted_answers, strict=True
    ):
        assert all(one != other for one, other in zip(clean.split(), corrupted.split(), strict=True))
        assert answers[0] != answers[1]
        letters = clean.split()
        assert letters[letters.index(letters[-1]) + 1].upper() == answers[0]
    assert circuit_pairs(20, seed=1).clean == pairs.clean[:20] != circuit_pairs(20, seed=2).clean


def test_the_folder_is_what_the_script_makes_and_is_small(tmp_path: Path) -> None:
    write_folder(tmp_path)
    shipped = {file.name: file.read_bytes() for file in FOLDER.iterdir()}
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(made) == set(shipped)
    for name in ("model.safetensors", "circuit.json", "README.md"):
        assert made[name] == shipped[name], name
    assert sum(map(len, shipped.values())) <= 300_000


def test_its_nodes_are_places_of_the_model() -> None:
    model = StandardizedTransformer(FOLDER)
    truth = known_circuit()
    assert truth["nodes"] == list(CIRCUIT_NODES) and truth["edges"] == list(CIRCUIT_EDGES)
    assert len(ROLES) == 1 + LAYERS * (HEADS + 1) and set(truth["nodes"]) <= {*ROLES, "logits"}
    for node in [*ROLES, "logits"]:
        assert model.has(node)
    for edge in truth["edges"]:
        sender, receiver = edge.split(" -> ")
        assert sender in truth["nodes"] and model.has(receiver)


def test_only_the_circuit_moves_the_answer() -> None:
    """With every head and MLP outside the circuit silenced, the difference of the answers' logits stays as it was."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    pairs = circuit_pairs(50, seed=6)
    ids = tokenizer(list(pairs.clean), return_tensors="pt")
    right, wrong = (
        torch.tensor(tokenizer.convert_tokens_to_ids(list(answers)))[:, None]
        for answers in (pairs.clean_answers, pairs.corrupted_answers)
    )

    def difference() -> torch.Tensor:
        with torch.no_grad():
            logits = model(**ids).logits[:, -1]
        return (logits.gather(1, right) - logits.gather(1, wrong))[:, 0]

    whole = difference()
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            for head in range(HEADS):
                if f"head_out.{layer}.h{head}" not in CIRCUIT_NODES:
                    size = block.attn.head_dim
                    block.attn.c_proj.weight[head * size : (head + 1) * size] = 0
            if f"mlp_out.{layer}" not in CIRCUIT_NODES:
                block.mlp.c_proj.weight.zero_()
    assert float((difference() / whole - 1).abs().max()) < 0.1
    with torch.no_grad():  # and without a part of the circuit it is gone
        model.transformer.h[0].attn.c_proj.weight.zero_()
    assert float(difference().abs().max()) < 0.2 * float(whole.min())
