"""The Jacobian lens in a run: what the stage stores is the library's lens on the same prompts; what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.lenses import jacobian_lens, load_jacobians
from pipeline.stages.lens import __main__ as lens
from pipeline.store import open_store
from tests.pipeline.stages.lens.lens_run import PROMPTS, arrays, isolate, make_run
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS, tiny_tokenizer

KEPT = [0, 1, 2, 4, 5]  # prompt 3 collides
LAYERS = [0, 2, NUM_LAYERS - 1]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    return tmp_path


def written(place: Path, layers: list[int], size: int = HIDDEN_SIZE) -> Path:
    made = torch.Generator().manual_seed(5)
    torch.save({"J": {j: torch.eye(size) + 0.3 * torch.randn(size, size, generator=made) for j in layers}}, place)
    return place


def section(file: Path, **more: Any) -> dict[str, Any]:
    given = {"jacobians": str(file), "sha256": sha256(file.read_bytes()).hexdigest(), "layers": "0,2-3", **more}
    return {"mine": {"kind": "jacobian_lens", "position": "query.last", "top_k": 3, "batch_size": 2, **given}}


@pytest.mark.parametrize("inverted", [False, True])
def test_the_stage_stores_the_lens(
    inverted: bool, repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(repository / "lens.pt", list(range(NUM_LAYERS - 1)))
    make_run(repository / "run", model_folder("llama"), section(file, inverted=inverted), monkeypatch)
    lens.run()
    store = open_store("lens.zarr/mine", verify=True)
    model = StandardizedTransformer(model_folder("llama"), tokenizer=tiny_tokenizer())
    prompts = [PROMPTS[number] for number in KEPT]
    groups = [list(prompt.answers.values()) for prompt in prompts]
    # Up to the token that is read, since these prompts are token ids without spans.
    ids = [prompt.input_ids[: prompt.spans["query"][1]] for prompt in prompts]
    found = jacobian_lens(model, load_jacobians(file), ids, groups, layers=LAYERS, top_k=3, inverted=inverted)
    stored = arrays(store)
    for name, values in found.arrays().items():
        if values.dtype.kind == "i":
            np.testing.assert_array_equal(stored[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(stored[name], values, atol=1e-4, err_msg=name)
    assert store.static("row").tolist() == KEPT and store.attributes["layers"] == LAYERS
    assert store.attributes["config"]["sha256"] == sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("layers", "size", "message"),
    [
        ([0, 1], HIDDEN_SIZE, r"lens\.mine\.jacobians: expected matrices of layers \[0, 2, 3\] .* got layers \[0, 1\]"),
        ([0, 1, 2], HIDDEN_SIZE + 1, f"of size {HIDDEN_SIZE + 1}. Are they of another model"),
        ([0, 1, 2], HIDDEN_SIZE, r"lens\.mine\.jacobians: .* has changed since the run was begun"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    layers: list[int],
    size: int,
    message: str,
    repository: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = written(repository / "lens.pt", layers, size)
    make_run(repository / "run", model_folder("llama"), section(file), monkeypatch)
    if "changed" in message:
        file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InterpError, match=message):
        lens.run()
