"""Stage `lens`: run every configured lens over the collected activations and keep what it says in `lens.zarr`.

    python -m pipeline.stages.lens        # in a run folder

Reads sections `lens`, `model` and `store` and the artifacts `tokens/`, `activations.zarr` and `tuned_lens/`; writes one
store a lens, `lens.zarr/NAME`; without a lens (`lens=none`) an empty folder. A block of examples is the unit of work: a
killed process goes on after the last complete block. Everything is in nats.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from interp.text import token_text
from pipeline.artifacts.tokens import Tokens, load_tokens, prompts_digest
from pipeline.config.activations import StoreConfig
from pipeline.config.lens import load_lenses
from pipeline.config.model import ModelConfig
from pipeline.config.section import load
from pipeline.files import digest_of, file_digest, publish
from pipeline.stages.common import code_digest, progress, scratch, stage_main
from pipeline.stages.lens.base import Lens
from pipeline.stages.lens.inputs import TUNED_LENS, Inputs
from pipeline.stages.lens.kinds import prepare
from pipeline.stages.loading import load_model, processor_digest
from pipeline.store import Store, StoreWriter, open_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARTIFACT = "lens.zarr"
ACTIVATIONS = "activations.zarr"
BLOCK_SIZE = 64  # examples in a block, or a whole batch where that is larger
log = logging.getLogger("interpipe")


def run() -> dict[str, float]:
    """Compute the lenses of the current run folder.

    Returns:
        `tokens` of prompts that were run with a patch in this process, and `model_seconds` that the lenses took.
    """
    configs, model_config, store_config = load_lenses(), load(ModelConfig), load(StoreConfig)
    if not configs:
        log.info("no lens is asked for")
        with scratch("lens", digest_of([])) as folder:
            (folder / ARTIFACT).mkdir(exist_ok=True)
            publish(folder / ARTIFACT, ARTIFACT)
        return {}
    tokens, activations = load_tokens(), open_store(ACTIVATIONS)
    check_origin(activations, tokens, model_config)
    inputs = Inputs(tokens, activations, load_model(model_config), model_config.remote)
    seen = activations.attributes.get("processor_digest")  # of prompts with images
    if seen is not None and seen != processor_digest(inputs.model.processor):
        raise InterpError(
            f"{ACTIVATIONS} was collected with another image processor than the model now has. Run the stage `collect` "
            "again."
        )
    lenses = [prepare(name, config, inputs) for name, config in configs.items()]
    plain = {name: asdict(config) for name, config in configs.items()}
    translators = file_digest(TUNED_LENS) if Path(TUNED_LENS).exists() else None
    key = digest_of(
        plain, asdict(model_config), asdict(store_config), tokens.manifest, activations.attributes, translators,
        code_digest("lens"),
    )  # fmt: skip
    measured: dict[str, float] = {"tokens": 0, "model_seconds": 0.0}
    with scratch("lens", key) as folder:
        for lens in lenses:
            compute(lens, folder / ARTIFACT / lens.name, store_config, measured)
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


def compute(lens: Lens[Any], path: Path, config: StoreConfig, measured: dict[str, float]) -> None:
    """Compute the blocks of a lens that are not there yet, and finish its store.

    Arguments:
        lens: the lens.
        path: its store.
        config: form of the store.
        measured: `tokens` and `model_seconds`, added to.
    """
    writer = StoreWriter(
        path,
        lens.specs(),
        unit="example",
        block_size=max(BLOCK_SIZE, lens.config.batch_size),
        attributes=lens.attributes(),
        static=lens.static(),
        chunk_bytes=config.chunk_bytes,
        compression=config.compression,
    )
    with writer:
        if writer.finished:
            log.info("%s: done before", lens.name)
            return
        pending = writer.pending()
        if len(pending) < len(writer.blocks):
            log.info("%s: going on, %d of %d blocks to do", lens.name, len(pending), len(writer.blocks))
        for block in progress(pending, f"{lens.name}: blocks"):
            rows = writer.blocks[block]
            started = time.perf_counter()
            values = lens.compute(rows)
            measured["model_seconds"] += time.perf_counter() - started
            measured["tokens"] += lens.num_tokens(rows)
            writer.write(block, values)
        ids = {
            int(token)
            for block in range(len(writer.blocks))
            for name in lens.token_arrays
            for token in np.unique(writer.read(block, name))
        }
        tokenizer = lens.inputs.model.tokenizer
        writer.finish({"vocabulary": vocabulary_of(tokenizer, ids), **lens.late_attributes(writer)})


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[str, str]:
    """The text of each token id (`token_text`), by the id as a decimal; ids below 0 stand for no token."""
    return {str(token): token_text(tokenizer, token) for token in sorted(i for i in ids if i >= 0)}


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("lens", run)


if __name__ == "__main__":
    main()
