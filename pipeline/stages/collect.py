"""Stage `collect`: run the model over the prompts and keep its activations in `activations.zarr`.

    python -m pipeline.stages.collect        # in a run folder

Reads sections `model`, `collect` and `store` and the artifact `tokens/prompts`. A block of prompts is the unit of work:
a killed process goes on after the last complete block, in a scratch folder, since DVC clears a stage's outputs.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.activations import collect_blocks
from interp.errors import InterpError, nearest
from interp.model import StandardizedTransformer
from interp.positions import check_positions
from interp.sites import Site, parse_sites
from pipeline.config.collect import CollectConfig, load_collect_config
from pipeline.config.model import ModelConfig, load_model_config
from pipeline.config.store import load_store_config
from pipeline.stages.common import beside, code_digest, digest_of, progress, publish, scratch, stage_main
from pipeline.stages.loading import load_model
from pipeline.stages.tokens import Row, load_prompts, prompts_digest
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter

FORMAT = "interpipe.activations/1"
ARTIFACT = "activations.zarr"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_LAYER = -1  # in the static array of layers, for a kind of site that no layer has
log = logging.getLogger("interpipe")


def collect_activations() -> dict[str, float]:
    """Collect the activations of the current run folder.

    Returns:
        `tokens` of the prompts that were collected in this process, and `model_seconds` that it waited for the model.
    """
    model_config, config, store_config = load_model_config(), load_collect_config(), load_store_config()
    rows = load_prompts()
    positions, names = resolve_positions(rows, config.positions)
    model = load_model(model_config)
    sites = parse_sites(config.sites, model.num_layers)
    dtype = stored_dtype(config, model.dtype)
    arrays, layers, static = layout(model, sites, rows, positions, dtype)
    attributes = {
        "format": FORMAT,
        "sites": layers,
        "position_names": names,
        "model": {**described(model_config), "digest": model.digest()},
        "prompts_digest": prompts_digest(rows),
        "dtype": dtype,
        "config": asdict(config),
    }
    total = sum(array.nbytes for array in arrays)
    log.info(
        "%d prompts, %d sites, %d positions, %s: %s",
        len(rows), len(sites), len(names), dtype, readable_bytes(total),
    )  # fmt: skip
    key = digest_of(attributes, asdict(store_config), code_digest("collect"))
    with scratch("collect", key) as folder:
        writer = StoreWriter(
            folder / ARTIFACT,
            arrays,
            unit="prompt",
            block_size=config.block_size,
            attributes=attributes,
            static=static,
            chunk_bytes=store_config.chunk_bytes,
            compression=store_config.compression,
        )
        with writer:
            pending = writer.pending()
            if len(pending) < len(writer.blocks):
                log.info("going on: %d of %d blocks are done", len(writer.blocks) - len(pending), len(writer.blocks))
            check_space(folder, total * len(pending) // max(1, len(writer.blocks)), store_config.compression)
            measured = collect_blocks_into(writer, pending, model, sites, rows, positions, layers, config)
            writer.finish()
        publish(folder / ARTIFACT, ARTIFACT)
    return measured


def collect_blocks_into(
    writer: StoreWriter,
    pending: Sequence[int],
    model: StandardizedTransformer,
    sites: Sequence[Site],
    rows: Sequence[Row],
    positions: np.ndarray,
    layers: Mapping[str, Sequence[int | None]],
    config: CollectConfig,
) -> dict[str, float]:
    """Collect blocks of prompts; while the model runs over one, the one before it is written.

    Arguments:
        writer: the store.
        pending: its blocks that are still to be collected.
        model, sites, rows: of what is collected.
        positions: (prompt, position), -1 where there is none.
        layers: the layers of each kind of site.
        config: the section.

    Returns:
        As `collect_activations`.
    """
    dtype = stored_dtype(config, model.dtype)
    blocks = [writer.blocks[index] for index in pending]
    where = [positions[block.start : block.stop] for block in blocks]
    input_ids = ([rows[row].input_ids for row in block] for block in blocks)
    values = collect_blocks(
        model,
        zip(input_ids, (found.tolist() for found in where), strict=True),
        sites,
        batch_tokens=config.batch_tokens,
        share_prefixes=config.share_prefixes,
    )

    def write(number: int, collected: Mapping[str, torch.Tensor]) -> None:
        start = blocks[number].start
        stored = {
            kind: as_stored(kind, tensor, dtype, where[number], layers[kind], start)
            for kind, tensor in collected.items()
        }
        writer.write(pending[number], stored)

    tokens, model_seconds = 0, 0.0
    with beside() as write_beside:
        for number in progress(range(len(blocks)), "collect: blocks"):
            started = time.perf_counter()
            collected = next(values)
            model_seconds += time.perf_counter() - started
            tokens += sum(len(rows[row].input_ids) for row in blocks[number])
            write_beside(partial(write, number, collected))
    return {"tokens": tokens, "model_seconds": model_seconds}


def described(config: ModelConfig) -> dict[str, Any]:
    """The section `model` as it stands in the store: without the file that only DVC looks at."""
    return {key: value for key, value in asdict(config).items() if key != "depends_on"}


def resolve_positions(rows: Sequence[Row], texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Find the positions in every prompt.

    Arguments:
        rows: the prompts.
        texts: positions as the config spells them.

    Returns:
        Indices into the unpadded prompts (prompt, position), int32, -1 where a prompt has fewer than another; and a
        name for each column: `last`, `query.all[0]`, `query.all[1]`, ...

    Raises:
        InterpError: there is no prompt, or a prompt lacks a span or a token that is asked for.
    """
    if not rows:
        raise InterpError("tokens/prompts holds no prompt. Run the stage `tokenize` again with a task that makes some.")
    columns: list[np.ndarray] = []
    names: list[str] = []
    for position in check_positions(texts):
        found = []
        for number, row in enumerate(rows):
            try:
                found.append(position.resolve(len(row.input_ids), row.spans))
            except InterpError as error:
                raise InterpError(f"collect.positions, prompt {number} ({row.prompt[:60]!r}): {error}") from None
        width = max(len(indices) for indices in found)
        padded = np.full((len(rows), width), -1, dtype=np.int32)
        for number, indices in enumerate(found):
            padded[number, : len(indices)] = indices
        columns.append(padded)
        names += position.labels(width)
    return np.concatenate(columns, axis=1), names


def stored_dtype(config: CollectConfig, model_dtype: torch.dtype) -> str:
    """The dtype in the store: the config's, or the model's own.

    Raises:
        InterpError: it is none that a store keeps.
    """
    name = str(model_dtype).removeprefix("torch.") if config.dtype == "model" else config.dtype
    if name not in DTYPES:
        raise InterpError(f"collect.dtype: expected model or a float dtype, got {name!r}.{nearest(name, DTYPES)}")
    return name


def layout(
    model: StandardizedTransformer, sites: Sequence[Site], rows: Sequence[Row], positions: np.ndarray, dtype: str
) -> tuple[list[ArraySpec], dict[str, list[int | None]], dict[str, tuple[tuple[str, ...], np.ndarray]]]:
    """What the store holds.

    Arrays share the dimensions `layer` and `hidden` where they have the same layers and width; one that differs has a
    qualified one, `layer@attn_out`, `hidden@logits`, `hidden@mlp_post`.

    Returns:
        The arrays, by kind of site; the layers of each kind (None for a kind without layers); the static arrays.
    """
    layers: dict[str, list[int | None]] = {}
    for site in sites:
        layers.setdefault(site.kind, []).append(site.layer)
    static: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    arrays = []
    common = next(iter(layers.values()))
    for kind, numbers in layers.items():
        layer = "layer" if numbers == common else f"layer@{kind}"
        size = model.width(next(site for site in sites if site.kind == kind))
        hidden = "hidden" if size == model.hidden_size and kind != "logits" else f"hidden@{kind}"
        shape = (len(numbers), len(rows), positions.shape[1], size)
        arrays.append(ArraySpec(kind, (layer, "prompt", "position", hidden), shape, dtype))
        numbered = [NO_LAYER if n is None else n for n in numbers]
        static[layer] = ((layer,), np.array(numbered, dtype=np.int32))
    static["positions"] = (("prompt", "position"), positions)
    lengths = [len(row.input_ids) for row in rows]
    static["input_ids"] = (("token",), np.concatenate([np.asarray(row.input_ids, dtype=np.int32) for row in rows]))
    static["input_offsets"] = (("offset",), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return arrays, layers, static


def as_stored(
    kind: str, values: torch.Tensor, dtype: str, positions: np.ndarray, layers: Sequence[int | None], first: int
) -> np.ndarray:
    """Cast activations to the store's dtype; bfloat16 as its bits.

    Arguments:
        kind: the kind of site, for messages.
        values: (layer, prompt, position, hidden).
        dtype: `float32`, `float16` or `bfloat16`.
        positions: (prompt, position), -1 where there is none, and NaN is right.
        layers: the layer numbers along the first axis.
        first: number of the first prompt, for messages.

    Raises:
        InterpError: a value is not finite, in the model or after the cast.
    """
    cast = values.to(DTYPES[dtype])
    wrong = ~torch.isfinite(cast) & torch.from_numpy(positions >= 0)[None, :, :, None]
    if bool(wrong.any()):
        layer, prompt, position, unit = (int(i) for i in wrong.nonzero()[0])
        place = kind if layers[layer] is None else f"{kind}.{layers[layer]}"
        value = float(values[layer, prompt, position, unit])
        raise InterpError(
            f"{place}, prompt {first + prompt}, token {positions[prompt, position]}, unit {unit}: the model's value "
            f"{value:g} is {float(cast[layer, prompt, position, unit]):g} in {dtype}. "
            + (
                f"Massive activations pass the range of {dtype} (largest {torch.finfo(DTYPES[dtype]).max:g}): set "
                "collect.dtype=float32."
                if np.isfinite(value)
                else "The model itself overflows: set model.dtype to bfloat16 or float32."
            )
        )
    if dtype == "bfloat16":
        return cast.contiguous().view(torch.int16).numpy().view(np.uint16)
    return cast.numpy()


def check_space(folder: Path, needed: int, compression: str) -> None:
    """Raise when the disk surely cannot hold what is still to be written."""
    free = shutil.disk_usage(folder).free
    if compression == "none" and free < needed:
        raise InterpError(
            f"expected {readable_bytes(needed)} free on the disk of {folder}, found {readable_bytes(free)}. Free some, "
            "or collect fewer sites (collect.sites) or in a smaller dtype (collect.dtype=bfloat16)."
        )


def readable_bytes(count: int) -> str:
    """A number of bytes for people, in powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("collect", collect_activations)


if __name__ == "__main__":
    main()
