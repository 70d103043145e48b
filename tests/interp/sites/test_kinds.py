"""A place: its kinds and shapes, its order in a forward pass, and what makes a bad one."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from interp.errors import InterpError
from interp.sites import HEAD_KINDS, HIDDEN_KINDS, KINDS, LAYER_KINDS, SHAPES, Site

LAYER = [
    "resid_pre", "attn_in", "q", "k", "v", "scores", "pattern", "z", "head_out", "attn_out", "mixer_in", "mixer_out",
    "resid_mid", "mlp_in", "mlp_post", "mlp_out", "resid_post",
]  # fmt: skip


def test_the_kinds() -> None:
    assert list(LAYER_KINDS) == LAYER
    assert list(KINDS) == ["embed", *LAYER, "final_norm", "logits"]
    assert list(SHAPES) == list(KINDS)
    assert HEAD_KINDS == ("q", "k", "v", "scores", "pattern", "z", "head_out")
    assert HIDDEN_KINDS == (
        "resid_pre", "attn_in", "attn_out", "mixer_in", "mixer_out", "resid_mid", "mlp_in", "mlp_out", "resid_post",
    )  # fmt: skip
    with_heads = [kind for kind in KINDS if "head" in [axis.split()[-1] for axis in SHAPES[kind].split(", ")]]
    assert with_heads == list(HEAD_KINDS)


def test_text() -> None:
    assert str(Site("embed")) == "embed"
    assert str(Site("pattern", 2)) == "pattern.2"
    assert str(Site("z", 3, 0)) == "z.3.h0"


def test_equal_sites_are_one() -> None:
    assert Site("z", 3, 0) == Site("z", 3, 0)
    assert len({Site("z", 3, 0), Site("z", 3, 0), Site("z", 3), Site("z", 3, 1), Site("z", 2, 0)}) == 4
    assert {Site("q", 1): "value"}[Site("q", 1)] == "value"
    with pytest.raises(AttributeError):
        Site("q", 1).layer = 2  # type: ignore[misc]


def test_sites_sort_in_the_order_of_a_forward_pass() -> None:
    expected = [Site("embed")]
    for layer in (0, 1, 10):
        for kind in LAYER:
            expected.append(Site(kind, layer))
            if kind in HEAD_KINDS:
                expected += [Site(kind, layer, 0), Site(kind, layer, 2), Site(kind, layer, 11)]
    expected += [Site("final_norm"), Site("logits")]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled) == expected
    assert sorted(shuffled, key=lambda site: site.depth) == expected
    assert Site("z", 3) < Site("z", 3, 0) <= Site("z", 3, 0) < Site("head_out", 3)
    assert Site("logits") > Site("final_norm") >= Site("resid_post", 99)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (("nowhere",), "unknown kind 'nowhere'"),
        (("resid_pots", 3), "unknown kind 'resid_pots'. Did you mean 'resid_post'"),
        (("embed", 1), "not part of a layer, got layer 1"),
        (("attn_in",), r"needs a layer, e.g. attn_in.3"),
        (("attn_in", -1), r"counts from 0, got -1. `parse_site\('attn_in.-1', num_layers\)`"),
        (("resid_post", 1, 0), "'resid_post' has no head axis, got head 0. Heads are of q, k, v, scores, pattern"),
        (("mlp_post", 1, 0), "'mlp_post' has no head axis"),
        (("logits", None, 0), "'logits' has no head axis"),
        (("z", 1, -2), r"head of a Site counts from 0, got -2. `parse_site\('z.1.h-2', num_layers, num_heads"),
    ],
)  # fmt: skip
def test_a_site_is_always_a_good_one(site: tuple, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        Site(*site)


def test_the_vocabulary_needs_no_torch() -> None:
    code = (
        "import sys, interp, interp.sites, interp.positions, interp.errors, interp.architectures; "
        "assert interp.__version__ == '0.1.0'; interp.Site('embed'); interp.parse_sites('blocks.0.hook_resid_pre', 2); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
