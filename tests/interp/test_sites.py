"""The vocabulary of sites: spellings, order, and errors that say what to write."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.sites import KINDS, LAYER_KINDS, Site, check_layers, check_sites, parse_layers, parse_site, parse_sites


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
        (Site("resid_pre", 0), ["resid_pre.0"]),
    ],
)
def test_every_spelling(text: object, expected: list[str]) -> None:
    assert texts(parse_sites(text, 6)) == expected  # type: ignore[arg-type]


def test_sites_come_in_the_order_of_a_forward_pass() -> None:
    everything = parse_sites([*(f"{kind}.*" for kind in reversed(LAYER_KINDS)), "logits", "final_norm", "embed"], 2)
    layer = ["resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"]
    expected = ["embed", *(f"{kind}.0" for kind in layer), *(f"{kind}.1" for kind in layer), "final_norm", "logits"]
    assert texts(everything) == expected


@given(st.integers(1, 60), st.data())
def test_what_is_printed_is_read_again(num_layers: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    site = Site(kind, data.draw(st.integers(0, num_layers - 1)) if kind in LAYER_KINDS else None)
    assert parse_site(str(site), num_layers) == site


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_pst.3", r"unknown kind 'resid_pst'. Did you mean 'resid_post'"),
        ("resid_post", r"needs a layer, e.g. resid_post.3"),
        ("resid_post.", r"needs a layer"),
        ("embed.0", r"embed is not part of a layer"),
        ("resid_post.6", r"layer 6 is out of range. The model has 6 layers: 0 to 5, or -6 to -1"),
        ("resid_post.-7", r"layer -7 is out of range"),
        ("resid_post.2-9", r"layer 9 is out of range"),
        ("resid_post.4-2", r"range '4-2' is empty"),
        ("resid_post.-1--2", r"range '-1--2' is empty"),
        ("resid_post.x", r"cannot read 'x' as layers"),
        ("resid_post.1,", r"cannot read '' as layers"),
        ("", r"at least one site"),
        ([], r"at least one site"),
        ([Site("resid_post", 7)], r"resid_post.7: layer 7 is out of range"),
        ([3], r"expected a site as text"),
    ],
)
def test_bad_spellings(text: object, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        parse_sites(text, 6)  # type: ignore[arg-type]
    if not isinstance(text, list) or not any(isinstance(item, Site) for item in text):
        with pytest.raises(InterpError, match=message):
            check_sites(text, 6)  # type: ignore[arg-type]


def test_check_without_a_depth_checks_the_spelling() -> None:
    check_sites(["resid_post.99", "resid_post.*", "attn_out.3--1"], None)
    with pytest.raises(InterpError, match="unknown kind"):
        check_sites(["resid_post.99", "atn_out.1"], None)
    with pytest.raises(InterpError, match="is empty"):
        check_sites("resid_post.9-3", None)


def test_one_site() -> None:
    assert parse_site("mlp_out.-2", 4) == Site("mlp_out", 2)
    with pytest.raises(
        InterpError, match=r"expected one site, got 'mlp_out.\*', which names 4: mlp_out.0 to mlp_out.3"
    ):
        parse_site("mlp_out.*", 4)


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [("nowhere", None, "unknown kind"), ("embed", 1, "not part of a layer"), ("attn_in", None, "needs a layer"),
     ("attn_in", -1, "counts from 0")],
)  # fmt: skip
def test_a_site_is_always_a_good_one(kind: str, layer: int | None, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        Site(kind, layer)


@pytest.mark.parametrize(
    ("text", "expected"), [("*", [0, 1, 2, 3]), (2, [2]), (-1, [3]), ("3, 0-1", [0, 1, 3]), ([3, 0, 3], [0, 3])]
)
def test_layers(text: object, expected: list[int]) -> None:
    assert parse_layers(text, 4) == expected  # type: ignore[arg-type]


def test_bad_layers() -> None:
    with pytest.raises(InterpError, match="layer 4 is out of range"):
        parse_layers("0,4", 4)
    with pytest.raises(InterpError, match="cannot read 'all'"):
        check_layers("all", None)
    with pytest.raises(InterpError, match="cannot read ''"):
        parse_layers([], 4)
    check_layers("0-99", None)


def test_validation_needs_no_torch() -> None:
    code = (
        "import sys, interp, interp.sites, interp.positions, interp.errors, interp.architectures; "
        "assert interp.__version__ == '0.1.0'; interp.Site('embed'); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
