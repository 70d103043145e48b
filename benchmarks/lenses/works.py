"""What is measured: the kinds of work, and the prompts of each. Imported by every tool's worker: no interp in here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["HEADER", "KINDS", "NEW_TOKENS", "SOURCE_LENGTHS", "TOP_K", "Inputs", "Result", "Work", "make_inputs"]

# By name, what a tool does in one run, and what it returns.
KINDS = {
    "patchscope": "latents given, written at each layer in turn: (source, layer) probability of a token and of the top",
    "patchscope_end_to_end": "the same from source prompts, their last tokens' activations collected first",
    "logit_lens": "(source, layer) probability of a token, entropy, top-10 of the prompts' last tokens",
    "collect": "(layer, source, hidden) activations of the last tokens of ragged prompts",
    "few_shot": "the same of prompts that begin with one header",
    "generate": "from source prompts: (source, layer, new) tokens generated greedily from patched target prompts",
}
SOURCE_LENGTHS = (10, 60)  # tokens of a source prompt, evenly spread
HEADER, QUESTION_LENGTHS = 50, (5, 20)  # few-shot prompts: the tokens that they share, and those of their own
TOP_K = {"logit_lens": 10}
NEW_TOKENS = 20
_FIRST_WORD = 10  # ids below are the tokenizer's own

Result = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """One line of the benchmark: a kind of work at a size."""

    kind: str
    sources: int
    target_length: int = 0  # 0: no target prompt

    @property
    def name(self) -> str:
        """How it is called in the table and in the JSON."""
        target = f", target of {self.target_length} tokens" if self.target_length else ""
        return f"{self.kind.replace('_', ' ')}{target}, {self.sources} sources"


@dataclass(frozen=True)
class Inputs:
    """What a tool is given for a run, the same for all of them."""

    kind: str
    source_ids: list[list[int]]
    target_ids: list[int]  # one target prompt for all sources, patched at its last token
    answers: list[int]  # per source, the token whose probability is wanted
    top_k: int
    new_tokens: int
    latents: Tensor | None = None  # (layer, source, hidden), for `patchscope`

    def first(self, sources: int) -> Inputs:
        """The same work on fewer sources."""
        latents = None if self.latents is None else self.latents[:, :sources]
        return replace(self, source_ids=self.source_ids[:sources], answers=self.answers[:sources], latents=latents)

    def save(self, folder: Path) -> None:
        """Write them for a worker."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "inputs.json").write_text(json.dumps({**asdict(replace(self, latents=None))}), encoding="utf-8")
        if self.latents is not None:
            save_file({"latents": self.latents.contiguous()}, folder / "latents.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Inputs:
        """Read them back."""
        given = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        path = folder / "latents.safetensors"
        given["latents"] = load_file(path)["latents"] if path.exists() else None
        return cls(**{field.name: given[field.name] for field in fields(cls)})


def make_inputs(work: Work, vocabulary: int) -> Inputs:
    """The prompts of a work, drawn with a seed; latents are added by who has collected them.

    Lengths are spread evenly over their range, then shuffled: ten times the prompts are ten times the tokens.
    """
    generator = torch.Generator().manual_seed(work.sources)

    def words(count: int) -> list[int]:
        return torch.randint(_FIRST_WORD, vocabulary, (count,), generator=generator).tolist()

    header = words(HEADER) if work.kind == "few_shot" else []
    shortest, longest = QUESTION_LENGTHS if work.kind == "few_shot" else SOURCE_LENGTHS
    spread = torch.linspace(shortest, longest, work.sources).round().long()
    lengths = spread[torch.randperm(work.sources, generator=generator)].tolist()
    return Inputs(
        kind=work.kind,
        source_ids=[header + words(length) for length in lengths],
        target_ids=words(work.target_length),
        answers=words(work.sources),
        top_k=TOP_K.get(work.kind, 1),
        new_tokens=NEW_TOKENS if work.kind == "generate" else 0,
    )
