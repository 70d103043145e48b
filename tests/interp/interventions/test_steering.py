"""Steering vectors against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.activations import steering_vectors
from interp.errors import InterpError
from interp.interventions import SteeringVectors
from interp.interventions.steering import contrast
from interp.model import StandardizedTransformer
from interp.tensor_files import write_tensors


def test_of_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn(12, 3, 5, generator=generator)
    along = torch.tensor([0.0, 0.0, 3.0, 4.0, 0.0])
    positive = negative + torch.rand(12, 1, 1, generator=generator) * along + 0.01 * torch.randn(12, 3, 5)
    mean = contrast(positive, negative, "mean_difference")
    torch.testing.assert_close(mean, positive.mean(0) - negative.mean(0))
    first = contrast(positive, negative, "principal_component")
    pairs = (positive - negative).double().numpy()
    for head in range(3):
        values, vectors = np.linalg.eigh(pairs[:, head].T @ pairs[:, head])
        largest = vectors[:, values.argmax()]
        largest *= np.sign(largest @ along.numpy())
        np.testing.assert_allclose(first[head], largest, atol=1e-5)
    torch.testing.assert_close(contrast(negative, positive, "principal_component"), -first)


def test_refuses() -> None:
    one = torch.ones(2, 4)
    with pytest.raises(InterpError, match=r"method: expected mean_difference or principal_component, got 'pca'"):
        contrast(one, one, "pca")  # type: ignore[arg-type]
    with pytest.raises(InterpError, match=r"expected pairs, got 2 positive and 1 negative"):
        contrast(one, one[:1], "principal_component")
    with pytest.raises(InterpError, match=r"do not differ at all"):
        contrast(one, one, "principal_component")
    with pytest.raises(InterpError, match=r"means of the two sets are the same"):
        contrast(one, one[:1], "mean_difference")
    with pytest.raises(InterpError, match=r"got none"):
        SteeringVectors({}, "mean_difference")


def test_files(tmp_path: Path) -> None:
    vectors = SteeringVectors({"blocks.1.hook_resid_post": torch.ones(4)}, "mean_difference")
    with pytest.raises(InterpError, match=r"no steering vector for resid_post.2. Did you mean 'resid_post.1'"):
        vectors["resid_post.2"]
    with pytest.raises(InterpError, match=r"there is no file"):
        SteeringVectors.load(tmp_path / "nothing")
    write_tensors(tmp_path / "other", {"a": torch.ones(2)})
    with pytest.raises(InterpError, match=r"expected SteeringVectors, found other tensors"):
        SteeringVectors.load(tmp_path / "other")
    vectors.save(tmp_path / "vectors")
    (held,) = SteeringVectors.load(tmp_path / "vectors").interventions("last", 3.0)
    assert held.site == "resid_post.1" and held.factor == 3.0 and held.steps == "every"
    assert torch.equal(held.value, torch.ones(4))


def test_a_map_is_no_direction(standardized: Callable[[str], StandardizedTransformer]) -> None:
    with pytest.raises(InterpError, match=r"pattern.1 has a number for each key"):
        steering_vectors(standardized("llama"), [[1, 2]], [[1, 3]], sites="pattern.1")
