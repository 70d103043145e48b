"""What operations make of numbers, by hand."""

from __future__ import annotations

import pytest
import torch

from interp.errors import InterpError
from interp.interventions.perform import drawn, draws, noise, orthonormal, perform

LIVE = torch.tensor([[3.0, 4.0, 5.0], [1.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("operation", "value", "expected"),
    [
        ("set", [9.0, 8.0, 7.0], [[9, 8, 7], [9, 8, 7]]),
        ("add", [1.0, 0.0, 0.0], [[5, 4, 5], [3, 0, -1]]),
        ("scale", [2.0], [[6, 8, 10], [2, 0, -2]]),
        ("zero", None, [[0, 0, 0], [0, 0, 0]]),
        ("project_out", None, [[3, 0, 5], [1, 0, -1]]),
        ("project_onto", None, [[0, 4, 0], [0, 0, 0]]),
        ("rotate_set", [9.0, 8.0, 7.0], [[3, 8, 5], [1, 8, -1]]),
    ],
)
def test_by_hand(operation: str, value: list[float] | None, expected: list[list[float]]) -> None:
    basis = orthonormal(torch.tensor([0.0, 2.0, 0.0]), "value")
    given = None if value is None else torch.tensor([value])
    for dtype in (torch.float32, torch.bfloat16):
        found = perform(operation, LIVE.to(dtype), given, factor=2.0 if operation == "add" else 1.0, basis=basis)
        assert found.dtype == dtype
        assert found.tolist() == expected


def test_a_subspace_is_what_its_directions_span() -> None:
    directions = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    basis = orthonormal(directions, "basis")
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    found = perform("project_out", LIVE, None, factor=1.0, basis=basis)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, -1.0]]))
    with pytest.raises(InterpError, match=r"its 2 directions depend on each other"):
        orthonormal(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), "basis")
    with pytest.raises(InterpError, match=r"expected directions that are not zero"):
        orthonormal(torch.zeros(3), "basis")
    with pytest.raises(InterpError, match=r"expected a direction"):
        orthonormal(torch.zeros(1, 2, 3), "basis")


def test_noise_depends_on_what_is_named_alone() -> None:
    one = noise(0, "z.1", [1, 2, 3], 2, (4, 8))
    assert torch.equal(one, noise(0, "z.1", (1, 2, 3), 2, (4, 8)))
    others = [(1, "z.1", [1, 2, 3], 2), (0, "z.2", [1, 2, 3], 2), (0, "z.1", [1, 2], 2), (0, "z.1", [1, 2, 3], 1)]
    for other in others:
        assert not torch.equal(one, noise(*other, (4, 8)))
    many = torch.stack([noise(5, "embed", [7], token, (64,)) for token in range(64)])
    assert abs(float(many.mean())) < 0.05 and abs(float(many.std()) - 1) < 0.05


def test_draws_of_more_begin_with_those_of_fewer() -> None:
    assert draws(3, [1, 2], 8)[:3] == draws(3, [1, 2], 3)
    assert draws(3, [1, 2], 3) != draws(4, [1, 2], 3)
    assert {drawn(seed, "resample", [1, 2], 3) for seed in range(32)} == {0, 1, 2}
