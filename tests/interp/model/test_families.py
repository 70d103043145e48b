"""Every family of the table, loaded: the proofs, every kind of site against torch hooks, and left-padded batches."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import Sublayer, submodule
from interp.errors import InterpError
from interp.model.verify import failures, prove
from interp.sites import HIDDEN_KINDS, LAYER_KINDS, Site
from tests.families import FAMILIES, build
from tests.tiny import tiny_tokenizer

IDS = torch.tensor([[1, 17, 250, 33, 94, 301, 77], [1, 88, 5, 260, 71, 12, 9]])
RAGGED = [[1, 40, 41], [1, 17, 250, 33, 94, 301, 77, 210, 9, 11], [1, 300, 6, 120, 44, 91, 3]]


@cache
def wrapped(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)


def test_there_are_sixty_families() -> None:
    assert len({family.model_type for family in FAMILIES.values()}) >= 60


@pytest.mark.parametrize("name", FAMILIES)
def test_the_proofs_hold(name: str) -> None:
    proofs = prove(wrapped(name), attention=True)
    assert [proof.message(wrapped(name)) for proof in failures(proofs)] == []
    about = {proof.about for proof in proofs}
    assert {"chain", "readout", "write"} <= about
    assert about & {"attention", "mlp"}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_site_is_what_a_torch_hook_sees(name: str) -> None:
    model = wrapped(name)
    sites = there(model)
    seen: dict[str, Tensor] = {}
    with model.trace(input_ids=IDS, use_cache=False):
        for site in model.in_order(sites):
            seen[str(site)] = model.read(site).clone()
        logits = model.logits.clone().save()
    plain = build(name)
    expected = hooked(plain, model, sites)
    assert set(seen) == set(expected)
    for site, value in seen.items():
        torch.testing.assert_close(
            value, expected[site], atol=1e-6, rtol=1e-6, msg=lambda text, at=site: f"{at}: {text}"
        )
    torch.testing.assert_close(logits, plain(input_ids=IDS, use_cache=False).logits, atol=0, rtol=0)


def there(model: StandardizedTransformer) -> list[Site]:
    kinds = (*HIDDEN_KINDS, "z", "mlp_post")
    sites = [Site(kind, layer) for layer in range(model.num_layers) for kind in kinds]
    return [site for site in sites if model.has(site)]


def hooked(plain: nn.Module, model: StandardizedTransformer, sites: list[Site]) -> dict[str, Tensor]:
    """The values of sites from hooks on a model that nothing wraps, three axes given back to flattened ones."""
    record, values = model.architecture, {}
    handles = []

    def keep(key: Any, value: Any) -> None:
        tensor = value if isinstance(value, Tensor) else value[0]
        tensor = tensor.detach().clone()
        values[key] = tensor.view(*IDS.shape, -1) if tensor.dim() == 2 else tensor

    def hook(module: nn.Module, key: Any, side: str) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            keep(key, args[0] if args else next(iter(kwargs.values())))

        if side == "input":
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda _, args, output: keep(key, output)))

    for site in sites:
        layer = plain.get_submodule(record.layers)[site.layer]  # type: ignore[index]
        own = record.of_layer(layer)
        if site.kind in ("resid_pre", "resid_post"):
            hook(layer, (site, 0), "input" if site.kind == "resid_pre" else "output")
        elif site.kind == "resid_mid":
            hook(layer.get_submodule(str(own.middle)), (site, 0), "input")
        else:
            part = sublayer(own, layer, site.kind)
            if site.kind in ("z", "mlp_post"):
                hook(layer.get_submodule(str(part.projection)), (site, 0), "input")
            elif site.kind.endswith("_in"):
                hook(layer.get_submodule(part.module), (site, 0), "input")
            else:
                paths = [path for path in part.added or (part.module,) if submodule(layer, path) is not None]
                for number, path in enumerate(paths):
                    hook(layer.get_submodule(path), (site, number), "output")
    plain(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    found: dict[str, Tensor] = {}
    for site in sites:
        value = torch.stack([tensor for (of, _), tensor in values.items() if of == site]).sum(0)
        layer = plain.get_submodule(record.layers)[site.layer]  # type: ignore[index]
        if site.kind.endswith("_out"):
            part = sublayer(record.of_layer(layer), layer, site.kind)
            value = value if part.scale is None else value * getattr(layer, part.scale)
        if site.kind == "z":
            attention = layer.get_submodule(sublayer(record.of_layer(layer), layer, "z").module)
            value = value.unflatten(-1, (getattr(attention, "num_heads", model.num_heads), -1))
        found[str(site)] = value
    return found


def sublayer(record: Any, layer: nn.Module, kind: str) -> Sublayer:
    roles = {"mlp": record.mlp, "mixer": record.mixer}
    part = roles.get(kind.split("_")[0], record.attention)
    assert part is not None
    return part


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_left_padded_batch_gives_what_single_prompts_give(name: str) -> None:
    model = wrapped(name)
    last = f"resid_post.{model.num_layers - 1}"
    with model.trace(RAGGED, use_cache=False):
        hidden = model.read(last)[:, -1].clone().save()
        logits = model.logits[:, -1].clone().save()
    plain = build(name)
    for row, ids in enumerate(RAGGED):
        expected = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert_same(logits[row], expected)
        with model.trace([ids], use_cache=False):
            alone = model.read(last)[0, -1].clone().save()
        assert_same(hidden[row], alone)


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest number: random weights make some families' residual streams large."""
    torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_invokes_read_and_write_their_own_rows(name: str) -> None:
    """Also where a family flattens batch and position, so that nnsight cannot tell whose row is whose."""
    model = wrapped(name)
    site = next(Site(kind, 1) for kind in ("mlp_out", "mixer_out", "attn_out") if model.has(Site(kind, 1)))
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(IDS[:1]):
            first = model.read(site).clone().save()
        with tracer.invoke(IDS[1:]):
            model.write(site, model.read(site) * 0)
            second = model.logits.clone().save()
    with model.trace(IDS[:1], use_cache=False):
        alone = model.read(site).clone().save()
    assert_same(first, alone)
    with model.trace(IDS[1:], use_cache=False):
        model.write(site, torch.zeros_like(alone))
        expected = model.logits.clone().save()
    assert_same(second, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_layer_lacks_says_so(name: str) -> None:
    model = wrapped(name)
    for layer in range(model.num_layers):
        for kind in LAYER_KINDS:
            site = Site(kind, layer)
            if model.has(site):
                continue
            with pytest.raises(InterpError, match=rf"site '{kind}.{layer}' does not exist in .*: \w+"):  # noqa: SIM117
                with model.trace(input_ids=IDS, use_cache=False):
                    model.read(site)


@torch.no_grad()
def test_what_is_written_into_attention_is_its_queries_keys_and_values() -> None:
    """CTRL's attention is given one tensor three times."""
    model, plain = wrapped("ctrl"), build("ctrl")
    value = torch.randn(1, IDS.shape[1], 32, generator=torch.Generator().manual_seed(0))
    layer = plain.get_submodule("transformer.h.1.multi_head_attention")
    for rows in (slice(0, 1), slice(1, 2)):
        handle = layer.register_forward_pre_hook(lambda _, args: (value, value, value, *args[3:]))
        expected = plain(input_ids=IDS[rows], use_cache=False).logits
        handle.remove()
        with model.trace(use_cache=False) as tracer:
            with tracer.invoke(IDS[rows]):
                model.write("attn_in.1", value)
                logits = model.logits.clone().save()
            with tracer.invoke(IDS):
                other = model.logits.clone().save()
        assert_same(logits, expected)
        assert_same(other, plain(input_ids=IDS, use_cache=False).logits)
