"""From text to sites: ranges, lists, heads, counting from the end, and errors that say what to write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.sites import (
    HEAD_KINDS,
    KINDS,
    LAYER_KINDS,
    Site,
    check_layers,
    check_sites,
    layers_by_kind,
    parse_layers,
    parse_site,
    parse_sites,
)

SIZES = (6, 4, 2)  # layers, heads, key-value heads


def texts(sites: list[Site]) -> list[str]:
    return [str(site) for site in sites]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embed", ["embed"]),
        ("resid_post.3", ["resid_post.3"]),
        ("resid_post.-1", ["resid_post.5"]),
        ("resid_post.*", [f"resid_post.{layer}" for layer in range(6)]),
        ("attn_out.2-4", ["attn_out.2", "attn_out.3", "attn_out.4"]),
        ("attn_out.-3--1", ["attn_out.3", "attn_out.4", "attn_out.5"]),
        ("attn_out.4--1", ["attn_out.4", "attn_out.5"]),
        ("mlp_in.5,0,2-3,2", ["mlp_in.0", "mlp_in.2", "mlp_in.3", "mlp_in.5"]),
        ("logits resid_mid.1  embed", ["embed", "resid_mid.1", "logits"]),
        (["resid_pre.1", Site("resid_pre", 0), "final_norm"], ["resid_pre.0", "resid_pre.1", "final_norm"]),
        (("resid_pre.1", "final_norm"), ["resid_pre.1", "final_norm"]),
        (Site("resid_pre", 0), ["resid_pre.0"]),
        ("z.3-5.h0", ["z.3.h0", "z.4.h0", "z.5.h0"]),
        ("pattern.-1.h0,2-3", ["pattern.5.h0", "pattern.5.h2", "pattern.5.h3"]),
        ("pattern.*.h1", [f"pattern.{layer}.h1" for layer in range(6)]),
        ("q.2.h*", ["q.2.h0", "q.2.h1", "q.2.h2", "q.2.h3"]),
        ("q.2.h-2--1", ["q.2.h2", "q.2.h3"]),
        ("k.1.h-1", ["k.1.h1"]),
        ("v.1.h*", ["v.1.h0", "v.1.h1"]),
        ("q.2", ["q.2"]),
        ("z.1.h1 z.1 head_out.0.h3 z.1.h0", ["head_out.0.h3", "z.1", "z.1.h0", "z.1.h1"]),
        ([Site("z", 1, 3), "z.1.h-1"], ["z.1.h3"]),
    ],
)
def test_every_spelling(text: object, expected: list[str]) -> None:
    assert texts(parse_sites(text, *SIZES)) == expected  # type: ignore[arg-type]
    check_sites(text, *SIZES)  # type: ignore[arg-type]
    check_sites(text, None)  # type: ignore[arg-type]


def test_sites_come_in_the_order_of_a_forward_pass() -> None:
    everything = parse_sites([*(f"{kind}.*" for kind in reversed(LAYER_KINDS)), "logits", "final_norm", "embed"], 2)
    layers = [f"{kind}.{layer}" for layer in (0, 1) for kind in LAYER_KINDS]
    assert texts(everything) == ["embed", *layers, "final_norm", "logits"]


@st.composite
def models_and_sites(draw: st.DrawFn) -> tuple[tuple[int, int, int], Site]:
    sizes = draw(st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 8)))
    kind = draw(st.sampled_from(KINDS))
    layer = draw(st.integers(0, sizes[0] - 1)) if kind in LAYER_KINDS else None
    heads = sizes[2] if kind in ("k", "v") else sizes[1]
    head = draw(st.none() | st.integers(0, heads - 1)) if kind in HEAD_KINDS else None
    return sizes, Site(kind, layer, head)


@given(models_and_sites())
def test_what_is_printed_is_read_again(case: tuple[tuple[int, int, int], Site]) -> None:
    sizes, site = case
    assert parse_site(str(site), *sizes) == site
    assert parse_site(site, *sizes) == site
    check_sites(str(site), *sizes)


@given(models_and_sites())
def test_counting_from_the_end(case: tuple[tuple[int, int, int], Site]) -> None:
    sizes, site = case
    if site.layer is None:
        return
    text = f"{site.kind}.{site.layer - sizes[0]}"
    if site.head is not None:
        text += f".h{site.head - (sizes[2] if site.kind in ('k', 'v') else sizes[1])}"
    assert parse_site(text, *sizes) == site


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 3), min_size=1))
def test_lists_are_every_layer_with_every_head(layers: list[int], heads: list[int]) -> None:
    got = parse_sites(f"z.{','.join(map(str, layers))}.h{','.join(map(str, heads))}", *SIZES)
    assert got == [Site("z", layer, head) for layer in sorted({*layers}) for head in sorted({*heads})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_pst.3", r"site 'resid_pst.3': unknown kind 'resid_pst'. Did you mean 'resid_post'"),
        ("attention", r"unknown kind 'attention'"),
        ("resid_post", r"needs a layer, e.g. resid_post.3"),
        ("resid_post.", r"needs a layer"),
        ("z..h0", r"needs a layer"),
        ("embed.0", r"embed is not part of a layer. Write 'embed'"),
        ("resid_post.6", r"layer 6 is out of range. The model has 6 layers: 0 to 5, or -6 to -1"),
        ("resid_post.-7", r"layer -7 is out of range"),
        ("resid_post.2-9", r"layer 9 is out of range"),
        ("resid_post.4-2", r"range '4-2' is empty. Write the lower layer first"),
        ("resid_post.-1--2", r"range '-1--2' is empty"),
        ("resid_post.x", r"cannot read 'x' as layers"),
        ("resid_post.1,", r"cannot read '' as layers"),
        ("resid_post.3.h0", r"resid_post has no head axis, got 'h0' after its layer. Heads are of q, k, v"),
        ("mlp_post.3.h0", r"mlp_post has no head axis"),
        ("z.3.0", r"site 'z.3.0': cannot read '0' as heads. Expected e.g. h0"),
        ("z.3.h", r"z.3.h: cannot read '' as heads"),
        ("z.3.hx", r"cannot read 'x' as heads"),
        ("z.3.h0.h1", r"cannot read '0.h1' as heads"),
        ("z.3.h4", r"z.3.h4: head 4 is out of range. The model has 4 heads: 0 to 3, or -4 to -1 from the end"),
        ("z.3.h2-4", r"head 4 is out of range"),
        ("z.3.h3-1", r"range '3-1' is empty. Write the lower head first"),
        ("k.3.h2", r"key-value head 2 is out of range. The model has 2 key-value heads: 0 to 1"),
        ("v.3.h-3", r"key-value head -3 is out of range"),
        ("z.9.h0", r"layer 9 is out of range"),
        ("", r"at least one site"),
        ([], r"at least one site"),
        ([Site("resid_post", 7)], r"resid_post.7: layer 7 is out of range"),
        ([Site("z", 1, 4)], r"z.1.h4: head 4 is out of range"),
        ([3], r"expected a site as text, e.g. 'resid_post.3', got 3"),
        ([("q", "0")], r"expected a site as text, .* got \('q', '0'\)"),
    ],
)
def test_bad_spellings(text: object, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        parse_sites(text, *SIZES)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match=message):
        check_sites(text, *SIZES)  # type: ignore[arg-type]


def test_heads_of_an_unknown_number() -> None:
    for text in ("z.3.h0", "q.2.h*", "pattern.*.h-1"):
        with pytest.raises(InterpError, match=r"names heads, and how many .* Give num_heads, or leave the heads out: "):
            parse_sites(text, 6)
    with pytest.raises(InterpError, match=r"k.1.h0: names heads, .* Give num_kv_heads, or leave the heads out: k.1"):
        parse_sites("k.1.h0", 6, num_heads=4)
    assert parse_sites("q.2 k.1 z.3", 6) == [Site("k", 1), Site("q", 2), Site("z", 3)]
    assert parse_site(Site("z", 3, 9), 6) == Site("z", 3, 9)
    with pytest.raises(InterpError, match="layer 7 is out of range"):
        parse_site(Site("z", 7, 9), 6)


def test_check_without_sizes_checks_the_spelling() -> None:
    check_sites(["resid_post.99", "resid_post.*", "attn_out.3--1", "z.0.h99", "q.*.h*", "k.1.h3--1"], None)
    check_sites("z.0.h99 k.0.h9", 6)
    with pytest.raises(InterpError, match="head 99 is out of range"):
        check_sites("z.0.h99", None, num_heads=4)
    with pytest.raises(InterpError, match="unknown kind"):
        check_sites(["resid_post.99", "atn_out.1"], None)
    with pytest.raises(InterpError, match="range '9-3' is empty"):
        check_sites("resid_post.9-3", None)
    with pytest.raises(InterpError, match="range '9-3' is empty"):
        check_sites("z.0.h9-3", None)
    with pytest.raises(InterpError, match="cannot read 'x' as heads"):
        check_sites("z.0.hx", None)


def test_one_site() -> None:
    assert parse_site("mlp_out.-2", 4) == Site("mlp_out", 2)
    with pytest.raises(
        InterpError, match=r"expected one site, got 'mlp_out.\*', which names 4: mlp_out.0 to mlp_out.3"
    ):
        parse_site("mlp_out.*", 4)
    with pytest.raises(InterpError, match=r"which names 2: z.1.h0 to z.1.h1"):
        parse_site("z.1.h0-1", 4, 2)


def test_the_layers_of_each_kind_whatever_heads() -> None:
    texts = ["embed resid_mid.0 z.1-2.h0 z.3", Site("q", 1, 9), "blocks.3.attn.hook_pattern", "hidden_states[-1]"]
    expected = {"embed": set(), "resid_mid": {0}, "z": {1, 2, 3}, "q": {1}, "pattern": {3}, "final_norm": set()}
    assert layers_by_kind(texts, 4) == expected
    with pytest.raises(InterpError, match=r"z.4.h0: layer 4 is out of range"):
        layers_by_kind("z.4.h0", 4)


def test_bad_layers() -> None:
    with pytest.raises(InterpError, match="layer 4 is out of range"):
        parse_layers("0,4", 4)
    with pytest.raises(InterpError, match="cannot read 'all'"):
        check_layers("all", None)
    with pytest.raises(InterpError, match="cannot read ''"):
        parse_layers([], 4)
    check_layers("0-99", None)
