"""Stage `collect`: run the model over the prompts and keep its activations in `activations.zarr`.

    python -m pipeline.stages.collect        # in a run folder

Reads sections `model`, `collect` and `store` and the artifacts `tokens/prompts` and `tokens/images`. A block of prompts
is the unit of work: a killed process goes on after the last complete block, in a scratch folder, since DVC clears a
stage's outputs.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.activations import collect, collect_blocks
from interp.errors import InterpError, nearest
from interp.model import StandardizedTransformer
from interp.model.processor import image_token
from interp.positions import check_positions
from interp.sites import HEAD_KINDS, MAP_KINDS, Site, parse_sites
from pipeline.artifacts.tokens import Row, load_prompts, prompts_digest
from pipeline.config.activations import CollectConfig, StoreConfig
from pipeline.config.model import ModelConfig
from pipeline.config.section import load
from pipeline.files import digest_of, publish
from pipeline.stages.common import beside, code_digest, progress, scratch, stage_main
from pipeline.stages.loading import load_model, media_of, processor_digest
from pipeline.store.schema import ArraySpec, Static
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
    model_config, config, store_config = load(ModelConfig), load(CollectConfig), load(StoreConfig)
    rows = load_prompts()
    positions, names = resolve_positions(rows, config.positions)
    model = load_model(model_config)
    kinds = kinds_of(parse_sites(config.sites, model.num_layers, model.num_heads, model.num_kv_heads))
    sites = [site for kind in kinds.values() for site in kind.sites]
    dtype = stored_dtype(config, DTYPES[model_config.dtype] if model_config.remote else model.dtype)
    arrays, static = layout(model, kinds, rows, positions, dtype, model_config.remote)
    attributes = {
        "format": FORMAT,
        "sites": {kind: places.layers for kind, places in kinds.items()},
        "heads": {kind: places.heads for kind, places in kinds.items() if places.heads is not None},
        "position_names": names,
        "model": {**described(model_config), "digest": digest_of_model(model, model_config)},
        "prompts_digest": prompts_digest(rows),
        **({"processor_digest": processor_digest(model.processor)} if any(row.images for row in rows) else {}),
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
            measured = collect_blocks_into(
                writer, pending, model, kinds, rows, positions, config, dtype, model_config.remote
            )
            writer.finish()
        publish(folder / ARTIFACT, ARTIFACT)
    return measured


def collect_blocks_into(
    writer: StoreWriter,
    pending: Sequence[int],
    model: StandardizedTransformer,
    kinds: Mapping[str, Kind],
    rows: Sequence[Row],
    positions: np.ndarray,
    config: CollectConfig,
    dtype: str,
    remote: bool,
) -> dict[str, float]:
    """Collect blocks of prompts; while the model runs over one, the one before it is written.

    Arguments:
        writer: the store.
        pending: its blocks that are still to be collected.
        model, kinds, rows: of what is collected.
        positions: (prompt, position), -1 where there is none.
        config: the section.
        dtype: in the store.
        remote: run the model on NDIF.

    Returns:
        As `collect_activations`.
    """
    blocks = [writer.blocks[index] for index in pending]
    where = [positions[block.start : block.stop] for block in blocks]
    own = ([rows[row] for row in block] for block in blocks)
    values = collect_blocks(
        model,
        (
            ([row.input_ids for row in block], found.tolist(), media_of(model, block))
            for block, found in zip(own, where, strict=True)
        ),
        [site for kind in kinds.values() for site in kind.sites],
        batch_tokens=config.batch_tokens,
        share_prefixes=config.share_prefixes,
        remote=remote,
    )

    longest = max(len(row.input_ids) for row in rows)

    def write(number: int, collected: Mapping[str, torch.Tensor]) -> None:
        start, lengths = blocks[number].start, [len(rows[row].input_ids) for row in blocks[number]]
        stored = {}
        for kind, tensor in collected.items():
            values = kinds[kind].apart(tensor)
            keys = None
            if kind in MAP_KINDS:
                keys = lengths
                values = torch.nn.functional.pad(values, (0, longest - values.shape[-1]), value=float("nan"))
            stored[kind] = as_stored(kind, values, dtype, where[number], kinds[kind].layers, start, keys)
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


def digest_of_model(model: StandardizedTransformer, config: ModelConfig) -> str:
    """Of config and weights; of config, source and revision alone, where the weights are elsewhere."""
    if not config.remote:
        return model.digest()
    return digest_of(config.source, config.revision, model.config.to_dict())


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


@dataclass(frozen=True)
class Kind:
    """The sites of one kind, which are one array.

    Arguments:
        kind: of site.
        layers: ascending; None for a kind without layers.
        heads: ascending, where the config names some; None: all of them, or none, where the kind has none.
    """

    kind: str
    layers: list[int | None]
    heads: list[int] | None

    @property
    def sites(self) -> list[Site]:
        """The sites, head by head in each layer."""
        heads: Sequence[int | None] = [None] if self.heads is None else self.heads
        return [Site(self.kind, layer, head) for layer in self.layers for head in heads]

    def apart(self, collected: torch.Tensor) -> torch.Tensor:
        """(layer, prompt, position, head, ...) of (layer and head, prompt, position, ...); else as it is."""
        if self.heads is None:
            return collected
        return collected.unflatten(0, (len(self.layers), len(self.heads))).movedim(1, 3)


def kinds_of(sites: Sequence[Site]) -> dict[str, Kind]:
    """Sites by kind; where layers of one kind name different heads, each layer is kept at all of them.

    Arguments:
        sites: by depth.
    """
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(site.kind, []).append(site)
    kinds = {}
    for kind, own in found.items():
        layers = list(dict.fromkeys(site.layer for site in own))
        heads = sorted({site.head for site in own if site.head is not None})
        whole = not heads or any(site.head is None for site in own)
        kinds[kind] = Kind(kind, layers, None if whole else heads)
        asked = len(layers) if whole and heads else len(layers) * len(heads)
        if heads and len(own) != asked:
            log.info("%s: layers name different heads, so each is kept at %s", kind, "all" if whole else heads)
    return kinds


def layout(
    model: StandardizedTransformer,
    kinds: Mapping[str, Kind],
    rows: Sequence[Row],
    positions: np.ndarray,
    dtype: str,
    remote: bool,
) -> tuple[list[ArraySpec], Static]:
    """What the store holds.

    An array has the dimensions `layer`, `prompt`, `position` and what a site is at a position: `hidden`; `head` or
    `kv_head`, and `head_dim` or `hidden`; `head` and `key` of `scores` and `pattern`, whose position is the query.
    Arrays share a dimension where it means the same layers, heads or width; where one differs, it is qualified:
    `layer@attn_out`, `hidden@logits`, `head@z`. A static array beside them holds the numbers of layers and heads.

    Returns:
        The arrays, by kind of site; the static arrays.
    """
    static: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    lengths: dict[str, int] = {}
    arrays = []

    def numbered(name: str, kind: str, numbers: Sequence[int | None]) -> str:
        """The dimension along which these layers or heads lie."""
        values = np.array([NO_LAYER if n is None else n for n in numbers], dtype=np.int32)
        known = static.get(name)
        name = name if known is None or np.array_equal(known[1], values) else f"{name}@{kind}"
        static[name] = ((name,), values)
        return name

    def sized(name: str, kind: str, size: int) -> str:
        """The dimension of this width."""
        name = name if lengths.setdefault(name, size) == size else f"{name}@{kind}"
        lengths[name] = size
        return name

    lengths["hidden"] = model.hidden_size
    widths = widths_of(model, kinds, rows, remote)
    for kind, places in kinds.items():
        dimensions = [numbered("layer", kind, places.layers), "prompt", "position"]
        *heads, size = widths[kind]
        if heads:
            name = "kv_head" if kind in ("k", "v") else "head"
            dimensions.append(numbered(name, kind, range(heads[0]) if places.heads is None else places.heads))
        last = "key" if kind in MAP_KINDS else "head_dim" if kind in HEAD_KINDS and kind != "head_out" else "hidden"
        dimensions.append(sized(last, kind, size) if kind != "logits" else "hidden@logits")
        shape = (len(places.layers), len(rows), positions.shape[1], *heads, size)
        arrays.append(ArraySpec(kind, tuple(dimensions), shape, dtype))
    static["positions"] = (("prompt", "position"), positions)
    tokens = [len(row.input_ids) for row in rows]
    static["input_ids"] = (("token",), np.concatenate([np.asarray(row.input_ids, dtype=np.int32) for row in rows]))
    static["input_offsets"] = (("offset",), np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64))
    return arrays, static


def widths_of(
    model: StandardizedTransformer, kinds: Mapping[str, Kind], rows: Sequence[Row], remote: bool
) -> dict[str, tuple[int, ...]]:
    """What each kind of site is at a position: (hidden,), (head, head_dim), ...; of heads those that are kept.

    Heads are seen on one token: in some families their width is another than the config says, or layers differ.
    """
    widths: dict[str, tuple[int, ...]] = {
        kind: (model.width(places.sites[0]),) for kind, places in kinds.items() if kind not in HEAD_KINDS
    }
    headed = [kind for kind in kinds if kind in HEAD_KINDS]
    if headed:
        sites = [site for kind in headed for site in kinds[kind].sites]
        image = image_token(model._module)  # which is no token without its image
        seen = collect(model, [[next(t for t in rows[0].input_ids if t != image)]], sites, [[0]], remote=remote)
        longest = max(len(row.input_ids) for row in rows)
        for kind in headed:
            *heads, size = kinds[kind].apart(seen[kind]).shape[3:]
            widths[kind] = (*heads, longest if kind in MAP_KINDS else size)
    return widths


def as_stored(
    kind: str,
    values: torch.Tensor,
    dtype: str,
    positions: np.ndarray,
    layers: Sequence[int | None],
    first: int,
    keys: Sequence[int] | None = None,
) -> np.ndarray:
    """Cast activations to the store's dtype; bfloat16 as its bits.

    Arguments:
        kind: the kind of site, for messages.
        values: (layer, prompt, position, ...).
        dtype: `float32`, `float16` or `bfloat16`.
        positions: (prompt, position), -1 where there is none, and NaN is right.
        layers: the layer numbers along the first axis.
        first: number of the first prompt, for messages.
        keys: tokens of each prompt, where the last axis is keys; NaN is right behind them. Masked scores may be minus
            infinity, or become so in a smaller dtype.

    Raises:
        InterpError: a value is not finite, in the model or after the cast.
    """
    cast = values.to(DTYPES[dtype])
    needed = torch.from_numpy(positions >= 0).view(1, *positions.shape, *[1] * (values.dim() - 3))
    if keys is not None:
        own = torch.arange(values.shape[-1]) < torch.tensor(keys)[:, None]  # (prompt, key)
        needed = needed & own.view(1, len(keys), *[1] * (values.dim() - 3), -1)
    wrong = ~torch.isfinite(cast) & needed
    if kind == "scores":
        wrong &= ~torch.isneginf(cast)
    if bool(wrong.any()):
        place = tuple(int(i) for i in wrong.nonzero()[0])
        layer, prompt, position, *unit = place
        name = kind if layers[layer] is None else f"{kind}.{layers[layer]}"
        value = float(values[place])
        raise InterpError(
            f"{name}, prompt {first + prompt}, token {positions[prompt, position]}, unit {', '.join(map(str, unit))}: "
            f"the model's value {value:g} is {float(cast[place]):g} in {dtype}. "
            + (
                f"Massive activations pass the range of {dtype} (largest {torch.finfo(DTYPES[dtype]).max:g}): set "
                "collect.dtype=float32."
                if np.isfinite(value)
                else "The model itself overflows: set model.dtype to bfloat16 or float32."
            )
        )
    if dtype == "bfloat16":
        return cast.contiguous().view(torch.int16).numpy().view(np.uint16)
    return cast.contiguous().numpy()


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
