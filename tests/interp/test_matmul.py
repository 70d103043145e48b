"""Products by oneDNN: the numbers that float64 gives, and nothing touched that is not theirs."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from interp import StandardizedTransformer, matmul
from interp.activations import collect
from interp.errors import InterpError
from interp.lenses import Latents, logit_lens, patchscope_lens
from interp.matmul import by_onednn, faster_products, give_back, product
from interp.sites import Site
from tests.made import TensorsMade, one_each
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS, tiny_model, tiny_tokenizer

ROWS, INNER, COLUMNS = 96, 256, 384  # more than `matmul.WORTH` multiplications


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_PRODUCTS", "onednn")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what oneDNN was given."""
    seen: list[torch.Size] = []
    multiply = matmul._multiply

    def counted(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(rows.shape)
        return multiply(rows, weight, bias)

    monkeypatch.setattr(matmul, "_multiply", counted)
    return seen


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear(bias: bool = True) -> nn.Linear:
    layer = nn.Linear(INNER, COLUMNS, bias=bias)
    with torch.no_grad():
        for seed, weight in enumerate(layer.parameters()):
            weight.copy_(_drawn(*weight.shape, seed=seed + 1))
    return layer


def _near(found: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)  # sums of 256 numbers, up to 80


@torch.no_grad()
@pytest.mark.parametrize("shape", [(ROWS, INNER), (4, ROWS // 4, INNER), (2, 2, ROWS // 4, INNER)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(shape: tuple[int, ...], bias: bool, calls: list[torch.Size]) -> None:
    layer, rows = _linear(bias), _drawn(*shape)
    with faster_products():
        found = layer(rows)
    assert calls == [torch.Size(shape)]
    exact = rows.double() @ layer.weight.double().T
    _near(found, exact + layer.bias.double() if bias else exact)


@torch.no_grad()
@pytest.mark.parametrize("rows", [97, 131, 1000])
def test_any_number_of_rows(rows: int, calls: list[torch.Size]) -> None:
    layer, given = _linear(), _drawn(rows, INNER)
    with faster_products():
        found = layer(given)
    assert calls == [torch.Size((rows, INNER))]
    assert found.shape == (rows, COLUMNS) and found.is_contiguous()
    _near(found, given.double() @ layer.weight.double().T + layer.bias.double())


def test_few_numbers_of_rows_are_fed() -> None:
    fed = [matmul._rounded(rows) for rows in range(1, 5000)]
    assert all(rows <= one <= rows * 17 / 16 for rows, one in enumerate(fed, start=1))
    assert len(set(fed)) < 160


@torch.no_grad()
def test_rows_that_do_not_lie_side_by_side(calls: list[torch.Size]) -> None:
    layer, rows = _linear(), _drawn(INNER, ROWS).T
    with faster_products():
        found = layer(rows)
    assert calls
    _near(found, rows.double() @ layer.weight.double().T + layer.bias.double())


@torch.no_grad()
def test_a_layer_of_gpt2(calls: list[torch.Size]) -> None:
    layer, rows = Conv1D(COLUMNS, INNER), _drawn(3, ROWS // 3, INNER)
    layer.weight.copy_(_drawn(INNER, COLUMNS, seed=1))
    layer.bias.copy_(_drawn(COLUMNS, seed=2))
    with faster_products():
        found = layer(rows)
    assert calls == [torch.Size((ROWS, INNER))]
    _near(found, rows.double() @ layer.weight.double() + layer.bias.double())


@torch.no_grad()
@pytest.mark.parametrize("setting", ["onednn", "torch"])
@pytest.mark.parametrize("bias", [True, False])
def test_into_a_tensor_that_is_there(setting: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_PRODUCTS", setting)
    rows, weight, added = _drawn(ROWS, INNER), _drawn(COLUMNS, INNER, seed=1), _drawn(COLUMNS, seed=2)
    out = torch.full((ROWS, COLUMNS + 5), torch.nan)[:, :COLUMNS]
    product(rows, weight, added if bias else None, out=out)
    exact = rows.double() @ weight.double().T
    _near(out, exact + added.double() if bias else exact)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "dtype"), [(1, torch.float32), (ROWS, torch.float64), (ROWS, torch.bfloat16)], ids=["small", "f64", "bf16"]
)
def test_what_is_small_or_of_another_dtype_is_left_to_torch(
    rows: int, dtype: torch.dtype, calls: list[torch.Size]
) -> None:
    layer, given = _linear().to(dtype), _drawn(rows, INNER).to(dtype)
    with faster_products():
        found = layer(given)
    assert not calls
    assert torch.equal(found, layer(given))


def test_gradients_are_left_to_torch(calls: list[torch.Size]) -> None:
    layer, rows = _linear(), _drawn(ROWS, INNER)
    with faster_products():
        layer(rows).sum().backward()
    assert not calls
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, rows.sum(0).expand(COLUMNS, INNER))


@torch.no_grad()
def test_autocast_is_left_to_torch(calls: list[torch.Size]) -> None:
    with faster_products(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert _linear()(_drawn(ROWS, INNER)).dtype == torch.bfloat16
    assert not calls


@torch.no_grad()
def test_shapes_that_do_not_fit_are_an_error_of_torch() -> None:
    with faster_products(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        functional.linear(_drawn(ROWS, INNER + 1), _drawn(COLUMNS, INNER))


@torch.no_grad()
def test_neither_another_thread_nor_what_comes_after_is_changed(calls: list[torch.Size]) -> None:
    layer, rows = _linear(), _drawn(ROWS, INNER)

    def elsewhere() -> None:
        with torch.no_grad():
            layer(rows)

    with pytest.raises(ZeroDivisionError), faster_products():
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        raise ZeroDivisionError
    layer(rows)
    assert not calls


@torch.no_grad()
@pytest.mark.parametrize(
    ("tokens", "dtype", "expected"),
    [(ROWS, torch.float32, 1), (4, torch.float32, 0), (ROWS, torch.bfloat16, 0)],
    ids=["large", "small", "bfloat16"],
)
def test_a_pass_that_does_not_gain_is_left_alone(
    tokens: int, dtype: torch.dtype, expected: int, calls: list[torch.Size]
) -> None:
    weights = tiny_model("llama", hidden_size=256, intermediate_size=512).to(dtype)
    model = StandardizedTransformer(weights, tokenizer=tiny_tokenizer())
    with faster_products(tokens, model.hidden_size, model.dtype, model.device):
        _linear()(_drawn(ROWS, INNER))
    assert len(calls) == expected


@pytest.mark.parametrize(("setting", "expected"), [("onednn", [0]), ("torch", [])])
def test_memory_goes_back_where_onednn_multiplies(
    setting: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(matmul.ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=asked.append))
    monkeypatch.setenv("INTERP_PRODUCTS", setting)
    give_back()
    assert asked == expected
    monkeypatch.setattr(matmul.ctypes, "CDLL", lambda _: SimpleNamespace())  # a system without it
    give_back()


@pytest.mark.parametrize(
    ("processor", "vectors", "expected"),
    [("AMD EPYC", True, True), ("AMD EPYC", False, False), ("Intel Xeon", True, False), ("", True, False)],
)
def test_which_processors_gain(processor: str, vectors: bool, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"cpu_name": processor, "avx512_f": vectors}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setenv("INTERP_PRODUCTS", "auto")
    assert by_onednn() is expected
    monkeypatch.setenv("INTERP_PRODUCTS", "torch")
    assert not by_onednn()


def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_PRODUCTS", "mkl")
    with pytest.raises(InterpError, match="INTERP_PRODUCTS: expected auto, torch or onednn, got 'mkl'"):
        faster_products()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lenses_use_it_and_say_the_same(family: str, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(n_embd=256) if family == "gpt2" else dict(hidden_size=256, intermediate_size=512)
    weights = tiny_model(family, **sizes)
    for weight in weights.parameters():
        weight.data *= (HIDDEN_SIZE / 256) ** 0.5  # layers add as much as those of the tiny model do
    model = StandardizedTransformer(weights, tokenizer=tiny_tokenizer())
    prompts = [[1, *range(10 + row, 30 + 2 * row)] for row in range(12)]
    ends = [len(ids) - 1 for ids in prompts]
    sites = [Site("resid_post", layer) for layer in range(NUM_LAYERS)]

    def lenses() -> list[Tensor]:
        latents = collect(model, prompts, sites, [[end] for end in ends])["resid_post"][:, :, 0]
        read = logit_lens(model, prompts, targets={"answer": [17]}, surprisal=False)
        patched = patchscope_lens(
            model, Latents(latents, range(NUM_LAYERS)), prompts, one_each(ends), [[[17]]] * 12, top_k=1
        )
        found = [latents]
        for lens in (read, patched):
            found += [torch.tensor(lens.log_prob), torch.tensor(lens.entropy)]
        return found

    by_onednn = lenses()
    assert len(calls) > 3 * NUM_LAYERS
    calls.clear()
    monkeypatch.setenv("INTERP_PRODUCTS", "torch")
    by_torch = lenses()
    assert not calls
    for found, expected in zip(by_onednn, by_torch, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_tensor_is_filled_by_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What oneDNN makes on the way is of a size of its own, however many rows there are."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, INNER, generator=generator)
    weight, bias = torch.randn(COLUMNS, INNER, generator=generator), torch.randn(COLUMNS, generator=generator)
    monkeypatch.setattr(matmul, "AT_ONCE", 7 * COLUMNS + 1)
    for given in (bias, None):
        out = torch.empty(ROWS, COLUMNS)
        with torch.no_grad(), TensorsMade() as made:
            product(rows, weight, given, out)
        assert made.largest == 7 * COLUMNS
        expected = rows.double() @ weight.T.double() + (0 if given is None else given.double())
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)
