"""Stage `tokenize`: make prompts, targets and pairs from the task and the model's tokenizer.

    python -m pipeline.stages.tokenize      # in a run folder

Reads the sections `task` and `model` of params.yaml. Writes `tokens/`: the `datasets` datasets `prompts`, `targets` and
`pairs`, `manifest.json`, and in `images` a copy of each image, named by its content, so that the run goes on with what
it began with, whatever becomes of the user's files. The same input gives the same bytes, whenever and wherever it runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from interp.errors import InterpError
from pipeline.artifacts.tokens import FORMAT, IMAGES, Pair, Row, TaskData, prompts_digest, ranges_of
from pipeline.config.model import CONTEXT_KEYS, ModelConfig
from pipeline.config.section import load
from pipeline.config.task import TaskConfig
from pipeline.files import digest_of, publish, write_json
from pipeline.stages.common import log, scratch, stage_main
from pipeline.tasks import make
from pipeline.tasks.image_prompts import ImageEncoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["context_length", "load_image_encoder", "load_tokenizer", "main", "tokenizer_digest", "write_tokens"]

LABELS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
SPANS = pa.list_(pa.struct([("name", pa.string()), ("start", pa.int32()), ("stop", pa.int32())]))
ANSWERS = pa.list_(
    pa.struct([("group", pa.string()), ("words", pa.list_(pa.string())), ("token_ids", pa.list_(pa.int32()))])
)
ROWS = pa.schema(
    [
        ("prompt", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("spans", SPANS),
        ("labels", LABELS),
        ("answers", ANSWERS),
    ]
)
ROWS_WITH_IMAGES = ROWS.append(pa.field("images", pa.list_(pa.string())))
PAIRS = pa.schema([("sources", pa.list_(pa.int32())), ("target", pa.int32()), ("labels", LABELS), ("answers", ANSWERS)])


def tokenize() -> dict[str, float]:
    """Make `tokens/` in the current folder.

    Returns:
        How many `tokens` the prompts have, and how many `prompts` there are.

    Raises:
        InterpError: the model's tokenizer cannot be loaded, or the task cannot be made.
    """
    model, task = load(ModelConfig), load(TaskConfig)
    import datasets  # half a second, which a bad config need not wait for

    datasets.disable_progress_bars()
    tokenizer, config = load_tokenizer(model)
    digest = tokenizer_digest(tokenizer)  # before use: some tokenizers note their last padding in themselves
    encoder = load_image_encoder(model, config) if task.sees else None
    data = make(task, tokenizer, context_length(config), encoder)
    manifest = write_tokens(data, "tokens", kind=task.kind, tokenizer_digest=digest)
    if data.read_as:
        log.info("%s is read as %s", getattr(task, task.file_key), data.read_as)
    for note in data.notes:
        log.warning("%s: %d%s", note.what, note.count, f", e.g. {'; '.join(note.examples)}" if note.examples else "")
    log.info("%s", ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in data.counts.items()))
    return {"tokens": manifest["tokens"], "prompts": len(data.prompts)}


def load_tokenizer(model: ModelConfig) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """Load a model's tokenizer and config; not its weights.

    Raises:
        InterpError: there is no such model, or it has no tokenizer that can be loaded.
    """
    is_path = model.source.startswith((".", "/", "~")) or model.source.count("/") > 1  # a hub id has one slash at most
    if is_path and not Path(model.source).is_dir():
        raise InterpError(
            f"model.source: expected a model folder or an id on the hub, there is no folder {model.source} seen from "
            f"the run folder {Path.cwd().name}."
        )
    from transformers import AutoConfig, AutoTokenizer

    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(model.source, **options)
        tokenizer = AutoTokenizer.from_pretrained(model.source, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise InterpError(
            f"cannot load the tokenizer of {model.source!r}{f' at {model.revision}' if model.revision else ''} "
            f"({type(error).__name__}: {first}). Expected a model id on the hub, or a local folder with config.json "
            "and tokenizer.json; for a hub model without a network, download it first: "
            f"`hf download {model.source}`."
        ) from None
    return tokenizer, config


def load_image_encoder(model: ModelConfig, config: PretrainedConfig) -> ImageEncoder:
    """Load a model's image processor; not its weights.

    Raises:
        InterpError: it has none, or sees nothing.
    """
    from interp.model.processor import load_processor  # torch, which a task of text alone does without

    token = getattr(config, "image_token_id", None)
    if token is None:
        raise InterpError(
            f"model.source: the task's prompts have images, and {model.source} ({config.model_type}) has no image "
            "token. Choose a model that sees, such as model=shapes."
        )
    processor = load_processor(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    return ImageEncoder(processor, token)


def context_length(config: PretrainedConfig) -> int | None:
    """How many tokens a model reads at most; None where its config names no limit."""
    text = config.get_text_config()
    for name in CONTEXT_KEYS:
        length = getattr(text, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256, in hexadecimal, of all that decides what a tokenizer gives: vocabulary, rules and special tokens."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest_of(content, special)


def write_tokens(data: TaskData, folder: str | Path, *, kind: str, tokenizer_digest: str) -> dict[str, Any]:
    """Write the artifact, by renames of finished parts.

    Arguments:
        data: what the task made.
        folder: the artifact; parts of it that are there are replaced.
        kind: kind of the task.
        tokenizer_digest: see `tokenizer_digest`.

    Returns:
        The manifest.
    """
    folder = Path(folder)
    rows = ROWS_WITH_IMAGES if data.images else ROWS
    tables = {
        "prompts": pa.Table.from_pylist([_row(row) for row in data.prompts], schema=rows),
        "targets": pa.Table.from_pylist([_row(row) for row in data.targets], schema=ROWS),
        "pairs": pa.Table.from_pylist([_pair(pair) for pair in data.pairs], schema=PAIRS),
    }
    digests = {name: digest_of(name, table.to_pylist()) for name, table in tables.items()}
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "tokenizer_digest": tokenizer_digest,
        "data_digest": digest_of(digests),
        "prompts_digest": prompts_digest(data.prompts),
        "tokens": sum(len(row.input_ids) for row in data.prompts),
        "counts": dict(data.counts),
        "groups": dict(data.groups),
        "read_as": data.read_as,
        "notes": [{"what": note.what, "count": note.count, "examples": list(note.examples)} for note in data.notes],
    }
    with scratch("tokenize", digest_of(manifest)) as unfinished:
        for name, table in tables.items():
            shutil.rmtree(unfinished / name, ignore_errors=True)  # of a run that was broken off
            _save(table, unfinished / name, digests[name])
        _copy_images(data.images, unfinished / IMAGES.name)
        for name in (*tables, IMAGES.name):
            publish(unfinished / name, folder / name)
        write_json(folder / "manifest.json", manifest)
    return manifest


def _copy_images(images: Mapping[str, Path], folder: Path) -> None:
    """Copy images by the names that their contents have given them.

    Raises:
        InterpError: one has changed meanwhile.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, file in images.items():
        content = file.read_bytes()
        if not hashlib.sha256(content).hexdigest().startswith(Path(name).stem):
            raise InterpError(f"{file} changed while the stage ran. Start it again when the file is as it is to be.")
        (folder / name).write_bytes(content)


def _save(table: pa.Table, folder: Path, digest: str) -> None:
    """Save a table as a `datasets` dataset whose files hold nothing but the table and its digest."""
    import datasets

    features = datasets.Features.from_arrow_schema(table.schema)
    dataset = datasets.Dataset(
        datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features), fingerprint=digest[:16]
    )
    # One file a gigabyte at most, but always one: an empty dataset without a file cannot be read back.
    dataset.save_to_disk(folder, num_shards=max(1, -(-table.nbytes // (1 << 30))))


def _row(row: Row) -> dict[str, Any]:
    return {
        "prompt": row.prompt,
        "input_ids": row.input_ids,
        "spans": [
            {"name": name, "start": start, "stop": stop}
            for name, span in row.spans.items()
            for start, stop in ranges_of(span)
        ],
        "images": list(row.images),
        **_common(row),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {"sources": pair.sources, "target": pair.target, **_common(pair)}


def _common(record: Row | Pair) -> dict[str, Any]:
    return {
        "labels": [{"name": name, "value": value} for name, value in record.labels.items()],
        "answers": [
            {"group": group, "words": record.words[group], "token_ids": ids} for group, ids in record.answers.items()
        ],
    }


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("tokenize", tokenize)


if __name__ == "__main__":
    main()
