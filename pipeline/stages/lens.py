"""Stage `lens`: run every configured lens over the collected activations and keep what it says in `lens.zarr`.

    python -m pipeline.stages.lens        # in a run folder

Reads sections `lens`, `model` and `store` and the artifacts `tokens/` and `activations.zarr`; writes one store a lens,
`lens.zarr/NAME`. A block of examples is the unit of work: a killed process goes on after the last complete block.
Everything is in nats.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses import LensResult, Patch, logit_lens, patchscope_lens
from interp.model import StandardizedTransformer
from interp.sites import parse_layers
from pipeline.config.lens import LensConfig, LogitLensConfig, PatchscopeConfig, load_lens_configs
from pipeline.config.model import ModelConfig, load_model_config
from pipeline.config.store import StoreConfig, load_store_config
from pipeline.stages.common import code_digest, digest_of, progress, publish, scratch, stage_main
from pipeline.stages.lens_inputs import Examples, Latents, examples_of, find_last, find_latents
from pipeline.stages.loading import load_model
from pipeline.stages.tokens import Tokens, load_tokens, prompts_digest
from pipeline.store import ArraySpec, Store, StoreWriter, open_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "interpipe.lens/1"
ARTIFACT = "lens.zarr"
ACTIVATIONS = "activations.zarr"
BLOCK_SIZE = 64  # examples in a block, or a whole batch where that is larger
log = logging.getLogger("interpipe")


@dataclass(frozen=True)
class Job:
    """One lens with all that it needs.

    Arguments:
        name: of the lens.
        config: its config.
        examples: what it is run on.
        layers: the layers that it reads.
        latents: the hidden states, of `layers` or more.
        own: the last residual stream at the lens's position, from which the model's own prediction follows; None: not
            known.
        output: the last residual stream at the source prompts' last token; None: not collected.
    """

    name: str
    config: LensConfig
    examples: Examples
    layers: list[int]
    latents: Latents
    own: Latents | None
    output: Latents | None


def run() -> dict[str, float]:
    """Compute the lenses of the current run folder.

    Returns:
        `tokens` of target prompts that were run with a patch in this process, and `model_seconds` that the lenses took.
    """
    configs, model_config, store_config = load_lens_configs(), load_model_config(), load_store_config()
    tokens, activations = load_tokens(), open_store(ACTIVATIONS)
    check_origin(activations, tokens, model_config)
    model = load_model(model_config)
    jobs = [prepare(name, config, tokens, activations, model) for name, config in configs.items()]
    plain = {name: asdict(config) for name, config in configs.items()}
    key = digest_of(
        plain, asdict(model_config), asdict(store_config), tokens.manifest, activations.attributes, code_digest("lens")
    )
    measured: dict[str, float] = {"tokens": 0, "model_seconds": 0.0}
    with scratch("lens", key) as folder:
        for job in jobs:
            attributes = attributes_of(job, tokens, activations)
            compute(job, model, folder / ARTIFACT / job.name, attributes, store_config, measured)
        publish(folder / ARTIFACT, ARTIFACT)
    return measured


def check_origin(activations: Store, tokens: Tokens, config: ModelConfig) -> None:
    """Raise unless the activations are those of these prompts in this model.

    Raises:
        InterpError: they are not.
    """
    if activations.attributes["prompts_digest"] != prompts_digest(tokens.prompts):
        raise InterpError(
            f"{ACTIVATIONS} was collected from other prompts than those in tokens/. Run the stage `collect` again."
        )
    collected = {key: activations.attributes["model"].get(key) for key in ("source", "revision")}
    configured = {"source": config.source, "revision": config.revision}
    if collected != configured:
        raise InterpError(
            f"{ACTIVATIONS} was collected from another model: expected {configured}, found {collected}. "
            "Run the stage `collect` again."
        )


def prepare(name: str, config: LensConfig, tokens: Tokens, activations: Store, model: StandardizedTransformer) -> Job:
    """Find all that a lens needs, so that every fault of the config shows before anything is computed.

    Raises:
        InterpError: see `examples_of` and `find_latents`; or the model has no such layers.
    """
    try:
        layers = parse_layers(config.layers, model.num_layers)
    except InterpError as error:
        raise InterpError(f"lens.{name}.layers: {error}") from None
    examples = examples_of(name, config, tokens, model.tokenizer)
    if isinstance(config, LogitLensConfig):
        position, needed = config.position, layers
    else:
        position = config.source_position
        needed = list(range(layers[0], model.num_layers)) if config.patch == "from_layer" else layers
    # The mean of several prompts' states is no state of the model's own, so nothing is known of what it would say.
    single = all(len(sources) == 1 for sources in examples.sources)
    return Job(
        name=name,
        config=config,
        examples=examples,
        layers=layers,
        latents=find_latents(name, activations, config.site, position, needed, examples.sources),
        own=find_last(activations, position, model.num_layers) if single else None,
        output=find_last(activations, "last", model.num_layers),
    )


def arrays_of(job: Job) -> list[ArraySpec]:
    """The arrays of a lens's store."""
    lengths = {
        "example": len(job.examples.rows),
        "layer": len(job.layers),
        "group": len(job.examples.groups),
        "top": job.config.top_k,
    }
    arrays: dict[str, tuple[str, tuple[str, ...]]] = {
        "log_prob": ("float32", ("example", "layer", "group")),
        "rank": ("int32", ("example", "layer", "group")),
        "top_ids": ("int32", ("example", "layer", "top")),
        "top_log_prob": ("float32", ("example", "layer", "top")),
        "entropy": ("float32", ("example", "layer")),
        "kl": ("float32", ("example", "layer")),
        "surprisal": ("float32", ("example", "layer")),
        "model_top_id": ("int32", ("example",)),
        "baseline_source_log_prob": ("float32", ("example", "group")),
    }
    if isinstance(job.config, PatchscopeConfig):
        arrays["baseline_target_log_prob"] = ("float32", ("example", "group"))
    return [
        ArraySpec(name, dimensions, tuple(lengths[d] for d in dimensions), dtype)
        for name, (dtype, dimensions) in arrays.items()
    ]


def attributes_of(job: Job, tokens: Tokens, activations: Store) -> dict[str, Any]:
    """The attributes of a lens's store; `vocabulary` joins them at the end."""
    labels: dict[str, str] = tokens.manifest["groups"]
    return {
        "format": FORMAT,
        "name": job.name,
        "kind": job.config.kind,
        "examples": job.examples.dataset,
        "layers": job.layers,
        "groups": job.examples.groups,
        "group_labels": {group: labels.get(group, group) for group in job.examples.groups},
        "top_k": job.config.top_k,
        "units": "nats",
        "model": activations.attributes["model"],
        "data_digest": tokens.manifest["data_digest"],
        "config": asdict(job.config),
    }


def compute(
    job: Job,
    model: StandardizedTransformer,
    path: Path,
    attributes: dict[str, Any],
    config: StoreConfig,
    measured: dict[str, float],
) -> None:
    """Compute the blocks of a lens that are not there yet, and finish its store.

    Arguments:
        job: the lens.
        model: the model.
        path: the lens's store.
        attributes: of the store.
        config: form of the store.
        measured: `tokens` and `model_seconds`, added to.
    """
    writer = StoreWriter(
        path,
        arrays_of(job),
        unit="example",
        block_size=max(BLOCK_SIZE, job.config.batch_size),
        attributes=attributes,
        static={
            "row": (("example",), np.array(job.examples.rows, dtype=np.int32)),
            "layer": (("layer",), np.array(job.layers, dtype=np.int32)),
        },
        chunk_bytes=config.chunk_bytes,
        compression=config.compression,
    )
    with writer:
        if writer.finished:
            log.info("%s: done before", job.name)
            return
        pending = writer.pending()
        if len(pending) < len(writer.blocks):
            log.info("%s: going on, %d of %d blocks to do", job.name, len(pending), len(writer.blocks))
        for block in progress(pending, f"{job.name}: blocks"):
            rows = writer.blocks[block]
            started = time.perf_counter()
            values = compute_block(job, model, rows)
            measured["model_seconds"] += time.perf_counter() - started
            measured["tokens"] += len(job.layers) * sum(
                len(ids) for ids in job.examples.target_ids[rows.start : rows.stop]
            )
            writer.write(block, values)
        ids = {
            int(token)
            for block in range(len(writer.blocks))
            for name in ("top_ids", "model_top_id")
            for token in np.unique(writer.read(block, name))
        }
        writer.finish({"vocabulary": vocabulary_of(model.tokenizer, ids)})


def compute_block(job: Job, model: StandardizedTransformer, block: range) -> dict[str, NDArray]:
    """The arrays of one block of examples.

    Arguments:
        job: the lens.
        model: the model.
        block: the examples.
    """
    config, examples = job.config, job.examples
    rows = slice(block.start, block.stop)
    sources, groups = examples.sources[rows], examples.answers[rows]
    latents = job.latents.read(sources)
    reference = None if job.own is None else job.own.read(sources)[0]
    result: LensResult
    if isinstance(config, LogitLensConfig):
        result = logit_lens(
            model, latents, groups,
            layers=job.layers, top_k=config.top_k, batch_size=config.batch_size, reference=reference,
        )  # fmt: skip
    else:
        result = patchscope_lens(
            model, latents, examples.target_ids[rows], examples.target_positions[rows], groups,
            layers=job.layers, latent_layers=job.latents.layers, patch=cast(Patch, config.patch), site=config.site,
            top_k=config.top_k, batch_size=config.batch_size, reference=reference,
        )  # fmt: skip
    values: dict[str, NDArray] = dict(result.arrays())
    if "baseline" in values:
        values["baseline_target_log_prob"] = values.pop("baseline")
    values["baseline_source_log_prob"] = source_baseline(job, model, sources, groups)
    return values


def source_baseline(
    job: Job, model: StandardizedTransformer, sources: Sequence[Sequence[int]], groups: list[list[Sequence[int]]]
) -> NDArray:
    """(example, group), log-probability of the groups after the unpatched source prompts; NaN where it is not known.

    With several sources, the logarithm of the mean probability over them.
    """
    if job.output is None:
        return np.full((len(sources), len(job.examples.groups)), np.nan, dtype=np.float32)
    flat = [(example, row) for example, rows in enumerate(sources) for row in rows]
    log_prob = logit_lens(
        model,
        job.output.read([[row] for _, row in flat]),
        [groups[example] for example, _ in flat],
        layers=job.output.layers,
        top_k=1,
        batch_size=job.config.batch_size,
    ).log_prob[:, 0]  # (example and source, group)
    starts = np.cumsum([0, *(len(rows) for rows in sources)])
    counts = np.log(np.diff(starts)).astype(np.float32)[:, None]
    return np.logaddexp.reduceat(log_prob, starts[:-1], axis=0) - counts


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[str, str]:
    """The text of each token id, by the id as a decimal.

    Decoding alone drops the space that a SentencePiece word begins with, and shows part of a character as U+FFFD; there
    the token's own spelling tells more.
    """
    texts: dict[str, str] = {}
    for token in sorted(i for i in ids if i >= 0):
        piece = tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the output layer that the tokenizer does not have
            texts[str(token)] = f"<unused {token}>"
            continue
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if piece.startswith("▁") and not text.startswith(" "):
            text = " " + text
        texts[str(token)] = text if text and "\ufffd" not in text else piece
    return texts


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("lens", run)


if __name__ == "__main__":
    main()
