"""A run folder as it stands before `evaluate`: tokens and lens stores with made-up but consistent distributions.

Every array follows from one table of probabilities (example, layer, token), so that tests can compute expectations on
their own. The concepts' words take over from each other along the layers as in Dumas et al. 2025.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import OmegaConf

from pipeline.store import ArraySpec, StoreWriter

SCRIPT = "<script>alert(1)</script>"
NUM_LAYERS = 12
CONCEPTS = ["book", "dog", "house", "water", "tree", "night", "bread", "king"]
WORDS = {
    "it": [" libro", " cane", " casa", " acqua", " albero", " notte", " pane", " re"],
    "es": ["libro", "perro", "casa", "agua", "árbol", "noche", "pan", "rey"],
    "en": ["book", "dog", "house", "water", "tree", "night", "bread", "king"],
}
OTHERS = [SCRIPT, "\n", "\t", "", "\u202eabc", "日本", "</s>", " the", "ing", "\ufffd", '"', "&amp;", "\x00", "{{ 7 }}"]
VOCABULARY = [word for language in WORDS.values() for word in language] + OTHERS
GROUP_LABELS = {
    "answer": "concept in the target language (it)",
    "latent_en": "concept in en",
    "target_concept_target_language": "target concept in the target language (es)",
    "target_concept_source_language": "target concept in the source's output language (it)",
    "source_concept_source_language": "source concept in the source's output language (it)",
    "source_concept_target_language": "source concept in the target language (es)",
    "source_concept_en": "source concept in en",
    "target_concept_en": "target concept in en",
}
PROMPT_GROUPS, PAIR_GROUPS = list(GROUP_LABELS)[:2], list(GROUP_LABELS)[2:]
PROMPTS_GROUPED = {"answer": "it", "latent_en": "en"}
SHOTS = 'Deutsch: "Baum" - Italiano: "albero"\nDeutsch: "Nacht" - Italiano: "notte"\n'


def token_of(concept: int, language: str) -> int:
    """The id of a concept's word."""
    return list(WORDS).index(language) * len(CONCEPTS) + concept


def _dataset(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as stream, pa.ipc.new_stream(stream, schema) as out:
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


_COMMON = [
    ("labels", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
    (
        "answers",
        pa.list_(
            pa.struct([("group", pa.string()), ("words", pa.list_(pa.string())), ("token_ids", pa.list_(pa.int32()))])
        ),
    ),
]
_ROWS = pa.schema(
    [
        ("prompt", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.struct([("name", pa.string()), ("start", pa.int32()), ("stop", pa.int32())]))),
        *_COMMON,
    ]
)
_PAIRS = pa.schema([("sources", pa.list_(pa.int32())), ("target", pa.int32()), *_COMMON])


def _answers(groups: dict[str, tuple[int, str]]) -> list[dict[str, Any]]:
    return [
        {"group": group, "words": [WORDS[language][concept].strip()], "token_ids": [token_of(concept, language)]}
        for group, (concept, language) in groups.items()
    ]


def _labels(**labels: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in labels.items()]


def pair_answers(source: int, target: int) -> dict[str, tuple[int, str]]:
    """Group -> (concept, language) of a pair."""
    languages = {"target_language": "es", "source_language": "it", "en": "en"}
    pick = {"source": source, "target": target}
    return {group: (pick[group.split("_", 1)[0]], languages[group.split("_concept_", 1)[1]]) for group in PAIR_GROUPS}


def pairs() -> list[tuple[int, int]]:
    """(source concept, target concept) of every pair."""
    return [(s, t) for s in range(len(CONCEPTS)) for t in range(len(CONCEPTS)) if s != t][:40]


def write_tokens(folder: Path, script: bool = True) -> None:
    """Write `tokens/`: eight prompts in two source languages, eight targets, forty pairs."""
    prompts, targets = [], []
    for concept, name in enumerate(CONCEPTS):
        for language in ("de", "nl"):
            query = f'{SHOTS}{language}: "{name.upper()}" - Italiano: "'
            prompts.append(
                {
                    "prompt": (SCRIPT if script and concept == 0 else "") + query,
                    "input_ids": [1, 5, 6, 7],
                    "spans": [{"name": "query", "start": 2, "stop": 3}],
                    "labels": _labels(concept=name, source_language=language, collides="no"),
                    "answers": _answers({group: (concept, words) for group, words in PROMPTS_GROUPED.items()}),
                }
            )
        targets.append(
            {
                "prompt": f'Français: "{name}" - Español: "',
                "input_ids": [1, 8, 9],
                "spans": [{"name": "query", "start": 1, "stop": 2}],
                "labels": _labels(concept=name),
                "answers": _answers({"answer": (concept, "es")}),
            }
        )
    rows = [
        {
            "sources": [2 * source, 2 * source + 1],
            "target": target,
            "labels": _labels(source_concept=CONCEPTS[source], target_concept=CONCEPTS[target]),
            "answers": _answers(pair_answers(source, target)),
        }
        for source, target in pairs()
    ]
    _dataset(folder / "tokens/prompts", prompts, _ROWS)
    _dataset(folder / "tokens/targets", targets, _ROWS)
    _dataset(folder / "tokens/pairs", rows, _PAIRS)
    labels = dict(GROUP_LABELS)
    if script:
        labels["source_concept_en"] += f" {SCRIPT}"
    manifest = {
        "format": "interpipe.tokens/1",
        "kind": "translation",
        "tokenizer_digest": "a" * 64,
        "data_digest": "b" * 64,
        "prompts_digest": "c" * 64,
        "tokens": 64,
        "counts": {"prompts": 16, "targets": 8, "pairs": 40, "pairs_dropped_shared_tokens": 16},
        "groups": labels,
        "read_as": "",
        "notes": [{"what": "prompts that end in a space", "count": 2, "examples": ["prompt 3 'a '", "prompt 4 'b '"]}],
    }
    (folder / "tokens/manifest.json").write_text(json.dumps(manifest))


def bump(layers: np.ndarray, center: float, width: float) -> np.ndarray:
    """1 around `center`, falling to 0 within some `width`."""
    return np.exp(-(((layers - center) / width) ** 2))


def distributions(
    answers: list[dict[str, tuple[int, str]]], rise: dict[str, tuple[float, float, float]], seed: int
) -> np.ndarray:
    """Probabilities (example, layer, token): per group a bump (height, center, width) over the layers in the logit."""
    generator = np.random.default_rng(seed)
    layers = np.arange(NUM_LAYERS)
    logits = generator.normal(0, 1, (len(answers), NUM_LAYERS, len(VOCABULARY)))
    for example, groups in enumerate(answers):
        for group, (height, center, width) in rise.items():
            token = token_of(*groups[group])
            logits[example, :, token] += (height + generator.normal(0, 1)) * bump(layers, center, width)
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def write_lens(
    folder: Path,
    name: str,
    table: np.ndarray,
    answers: list[dict[str, tuple[int, str]]],
    *,
    examples: str,
    config: dict[str, Any],
    labels: dict[str, str],
    model_top: np.ndarray,
    empty: tuple[int, str] | None = None,
    top_k: int = 5,
) -> dict[str, np.ndarray]:
    """Write one store of `lens.zarr` that follows from `table` (example, layer, token); returns its arrays.

    `empty` names one example's group that has no tokens there; `model_top` (example) is the model's own token, -1
    where unknown.
    """
    groups = list(answers[0])
    num_examples = len(table)
    ids = np.array([[token_of(*row[group]) for group in groups] for row in answers], dtype=np.int64)
    log_table = np.log(table)
    order = np.argsort(-table, axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1)
    pick = ids[:, None, :].repeat(NUM_LAYERS, 1)
    log_prob, rank = np.take_along_axis(log_table, pick, -1), np.take_along_axis(ranks, pick, -1)
    if empty is not None:
        log_prob[empty[0], :, groups.index(empty[1])] = np.nan
        rank[empty[0], :, groups.index(empty[1])] = -1
    last = table[:, -1:]
    reference = log_table[:, -1]
    top = order[..., :top_k]
    surprisal = -np.take_along_axis(reference[:, None, :], top[..., :1], -1)[..., 0]
    arrays = {
        "log_prob": log_prob.astype(np.float32),
        "rank": rank.astype(np.int32),
        "top_ids": top.astype(np.int32),
        "top_log_prob": np.take_along_axis(log_table, top, -1).astype(np.float32),
        "entropy": -(table * log_table).sum(-1).astype(np.float32),
        "kl": (last * (np.log(last) - log_table)).sum(-1).astype(np.float32),
        "surprisal": np.where(model_top[:, None] < 0, np.nan, surprisal).astype(np.float32),
        "model_top_id": model_top.astype(np.int32),
    }
    dimensions: dict[str, tuple[str, ...]] = {
        "log_prob": ("example", "layer", "group"),
        "rank": ("example", "layer", "group"),
        "top_ids": ("example", "layer", "top"),
        "top_log_prob": ("example", "layer", "top"),
        "entropy": ("example", "layer"),
        "kl": ("example", "layer"),
        "surprisal": ("example", "layer"),
        "model_top_id": ("example",),
    }
    if examples == "pairs":
        for side, height in (("target", 0.7), ("source", 0.6)):
            values = np.full((num_examples, len(groups)), np.log(0.001))
            values[:, groups.index(f"{side}_concept_{side}_language")] = np.log(height)
            arrays[f"baseline_{side}_log_prob"] = values.astype(np.float32)
            dimensions[f"baseline_{side}_log_prob"] = ("example", "group")
    writer = StoreWriter(
        folder / "lens.zarr" / name,
        [ArraySpec(key, dimensions[key], value.shape, value.dtype.name) for key, value in arrays.items()],
        unit="example",
        block_size=16,
        attributes={
            "format": "interpipe.lens/1",
            "name": name,
            "kind": config["kind"],
            "examples": examples,
            "layers": list(range(NUM_LAYERS)),
            "groups": groups,
            "group_labels": {group: labels[group] for group in groups},
            "top_k": top_k,
            "units": "nats",
            "vocabulary": {
                str(i): VOCABULARY[i] for i in sorted({*top.ravel().tolist(), *model_top.tolist()}) if i >= 0
            },
            "config": config,
            "model": {"name": "demo", "source": "pipeline/demo/model", "revision": None, "digest": "d" * 64},
        },
        static={"row": (("example",), np.arange(num_examples, dtype=np.int32))},
    )
    for block, rows in enumerate(writer.blocks):
        writer.write(block, {key: value[rows.start : rows.stop] for key, value in arrays.items()})
    writer.finish()
    return arrays


def write_activations(folder: Path) -> None:
    """Write activations.zarr: the residual stream of four prompts after every layer, at two tokens."""
    writer = StoreWriter(
        folder / "activations.zarr",
        [ArraySpec("resid_post", ("layer", "prompt", "position", "hidden"), (NUM_LAYERS, 4, 2, 8), "float32")],
        unit="prompt",
        block_size=4,
        attributes={
            "sites": {"resid_post": list(range(NUM_LAYERS))},
            "position_names": ["last", "query.last"],
            "model": {"digest": "d" * 64},
        },
        static={},
    )
    writer.write(0, {"resid_post": np.zeros((NUM_LAYERS, 4, 2, 8), dtype=np.float32)})
    writer.finish()


PATCHSCOPE = {
    "kind": "patchscope", "site": "resid_post", "source_position": "last", "target": "task", "target_prompt": "king",
    "target_position": "last", "patch": "one_layer", "sources": "first", "layers": "*", "top_k": 5, "batch_size": 64,
}  # fmt: skip
QUERY = {"source_position": "query.last", "target_position": "query.last", "patch": "from_layer", "sources": "mean"}
LENSES: dict[str, dict[str, Any]] = {
    "logit_lens": {
        "kind": "logit_lens", "site": "resid_post", "position": "last", "layers": "*", "top_k": 5, "batch_size": 256,
    },
    "patchscope": PATCHSCOPE,
    "patchscope_query_mean": PATCHSCOPE | QUERY,
    "patchscope_identity": PATCHSCOPE | {"target": "identity", "target_prompt": "cat"},
}  # fmt: skip
RISES: dict[str, dict[str, tuple[float, float, float]]] = {
    "logit_lens": {"answer": (7, 11, 2.5), "latent_en": (5, 7, 2)},
    "patchscope_identity": {"answer": (6, 9, 4), "latent_en": (6, 5, 2)},
    "patchscope": {
        "target_concept_target_language": (7, 0, 4),
        "target_concept_source_language": (6, 6, 2),
        "source_concept_source_language": (8, 11, 4),
    },
    "patchscope_query_mean": {
        "source_concept_target_language": (7, 2, 4),
        "target_concept_target_language": (7, 11, 4),
        "source_concept_en": (4, 5, 3),
    },
}


def make_run(
    folder: Path,
    *,
    lenses: tuple[str, ...] = tuple(LENSES),
    script: bool = True,
    prompt_groups: dict[str, str] = PROMPTS_GROUPED,
    labels: dict[str, str] | None = None,
    **report: Any,
) -> Path:
    """Write params.yaml, tokens/ and lens.zarr.

    Arguments:
        folder: the run folder, made here.
        lenses: names among `LENSES`.
        script: put a script tag into a prompt, a label and the title (the vocabulary always has one).
        prompt_groups: group -> language of its words, for lenses over prompts.
        labels: labels of groups that differ from the usual ones.
        report: keys of the section `report` that differ from the defaults.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params = {
        "model": {
            "name": "demo", "source": "pipeline/demo/model", "revision": None, "dtype": "float32",
            "device_map": "auto", "attention_implementation": "sdpa", "trust_remote_code": False, "num_layers": None,
            "depends_on": "pipeline/demo/model",
        },
        "task": {
            "kind": "translation", "lexicon": "pipeline/demo/lexicon.json", "source_languages": ["de", "nl"],
            "target_language": "it", "latent_languages": ["en"], "shots": 2, "pairs": 40,
            "patch_into": {"source_language": "fr", "target_language": "es"},
            "depends_on": "pipeline/demo/lexicon.json",
        },
        "collect": {"sites": ["resid_post.*"], "positions": ["last", "query.last"]},
        "lens": {name: LENSES[name] for name in lenses},
        "evaluate": {"confidence": 0.95, "bootstrap_samples": 200, "seed": 0, "entropy_unit": "bits"},
        "report": {"title": f"Concepts before languages {SCRIPT if script else ''}".strip(), **report},
        "tune": {"kind": "off", "steps": 30}, "store": {}, "tracking": {"uri": "http://user:secret@example.org"},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(params), folder / "params.yaml")
    write_tokens(folder, script)
    write_activations(folder)
    labels = json.loads((folder / "tokens/manifest.json").read_text())["groups"] | (labels or {})
    for seed, name in enumerate(lenses):
        on_pairs = LENSES[name]["kind"] == "patchscope" and LENSES[name]["target"] == "task"
        answers = (
            [pair_answers(*pair) for pair in pairs()]
            if on_pairs
            else [{group: (row // 2, lang) for group, lang in prompt_groups.items()} for row in range(16)]
        )
        rise = {group: bump for group, bump in RISES[name].items() if group in answers[0]}
        table = distributions(answers, rise, seed)
        empty = (3, "latent_en") if name == "logit_lens" and prompt_groups else None
        model_top = np.full(len(answers), -1) if name == "patchscope_query_mean" else table[:, -1].argmax(-1)
        write_lens(
            folder, name, table, answers, examples="pairs" if on_pairs else "prompts", config=LENSES[name],
            labels=labels, model_top=model_top, empty=empty,
        )  # fmt: skip
    return folder
