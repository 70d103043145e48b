"""The Jacobian lens against its ten lines in plain torch, and the files that its matrices come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.errors import InterpError
from interp.lenses import Latents, jacobian_lens, load_jacobians, logit_lens
from interp.model import StandardizedTransformer

Standardized = Callable[[str], StandardizedTransformer]
ANSWERS = [[[5, 7]], [[11]], [[5]], [[2]], [[3, 9]]]


def matrices(model: StandardizedTransformer, seed: int = 0) -> dict[int, torch.Tensor]:
    """What a file holds: layers but the last, out of order, in half precision."""
    made = torch.Generator().manual_seed(seed)
    size = model.hidden_size
    layers = range(model.num_layers - 2, -1, -1)
    return {layer: torch.eye(size) + 0.3 * torch.randn(size, size, generator=made) for layer in layers}


def saved(place: Path, held: object) -> Path:
    torch.save(held, place / "lens.pt")
    return place / "lens.pt"


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("inverted", [False, True])
def test_it_is_its_definition(family: str, inverted: bool, standardized: Standardized, tmp_path: Path) -> None:
    model = standardized(family)
    given = {layer: matrix.half() for layer, matrix in matrices(model).items()}
    path = saved(tmp_path, {"J": given, "n_prompts": 3, "d_model": model.hidden_size, "source_layers": sorted(given)})
    layers = [0, 2, model.num_layers - 1]
    hidden = torch.randn(len(layers), len(ANSWERS), model.hidden_size, generator=torch.Generator().manual_seed(1))
    found = jacobian_lens(
        model,
        load_jacobians(path),
        Latents(hidden, layers, reference=hidden[-1]),
        ANSWERS,
        batch_size=2,
        inverted=inverted,
    )
    carried = hidden.clone()
    for at, layer in enumerate(layers[:-1]):
        carried[at] = torch.einsum("ij,ej->ei", given[layer].float(), hidden[at])
    plain = model._module
    normed = plain.model.norm(carried)
    logits = plain.lm_head(-normed if inverted else normed).float()
    if (cap := getattr(plain.config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    log_probs = logits.log_softmax(-1)
    expected = torch.stack(
        [log_probs[:, at, answer[0]].logsumexp(-1) for at, answer in enumerate(ANSWERS)]
    )  # (example, layer)
    torch.testing.assert_close(torch.tensor(found.log_prob[..., 0]), expected, rtol=1e-4, atol=1e-5)
    assert (found.top_ids[..., 0] == log_probs.argmax(-1).T.numpy()).all()
    if not inverted:
        own = logit_lens(model, Latents(hidden[-1:], [layers[-1]]), ANSWERS)
        torch.testing.assert_close(
            torch.tensor(found.log_prob[:, -1]), torch.tensor(own.log_prob[:, 0]), rtol=0, atol=1e-6
        )


def test_what_is_no_such_file_is_refused(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    with pytest.raises(InterpError, match="found none"):
        load_jacobians(tmp_path / "absent.pt")
    for held, came in (({"K": {}}, "K"), ([1], "list"), ({"J": {0: torch.zeros(2, 3)}}, "J"), ({"J": {}}, "J")):
        with pytest.raises(InterpError, match=f"layers to square matrices of one size, got .*{came}"):
            load_jacobians(saved(tmp_path, held))
    (tmp_path / "text.pt").write_text("no tensors")
    with pytest.raises(InterpError, match=r"expected a file of torch\.save"):
        load_jacobians(tmp_path / "text.pt")
    maps = load_jacobians(saved(tmp_path, {"J": {0: torch.eye(model.hidden_size)}}))
    with pytest.raises(InterpError, match="source"):
        jacobian_lens(model, maps, Latents(torch.zeros(1, 1, model.hidden_size), [1]), [[[1]]])
    with pytest.raises(InterpError, match=r"expected shape \(layer, example, hidden_size\)"):
        jacobian_lens(model, maps, Latents(torch.zeros(1, 2, 5), [0]), [[[1]]] * 2)
    with pytest.raises(InterpError, match="batch_size: expected at least 1"):
        jacobian_lens(model, maps, Latents(torch.zeros(1, 1, model.hidden_size), [0]), [[[1]]], batch_size=0)
