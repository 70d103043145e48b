"""Text for people: data made harmless to show, and what a lens does in words.

All text that comes from data (prompts, tokens, labels) passes through `visible` or `readable`, so that no control
character or override of the writing direction reaches a page or a figure.
"""

from __future__ import annotations

import unicodedata

from pipeline.config.lens import LensConfig, LogitLensConfig

__all__ = ["PAPERS", "baseline_label", "describe", "readable", "spelled_position", "visible"]

PAPERS = {
    "logit_lens": "nostalgebraist, 2020",
    "patchscope": "Ghandeharioun et al., 2024; Dumas et al., 2025",
}
SITES = {
    "resid_pre": "residual stream before {layer}",
    "resid_mid": "residual stream inside {layer}, after attention",
    "resid_post": "residual stream after {layer}",
    "attn_out": "contribution of {layer}’s attention",
    "mlp_out": "contribution of {layer}’s MLP",
    "attn_in": "input of {layer}’s attention",
    "mlp_in": "input of {layer}’s MLP",
}
_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def readable(text: str) -> str:
    """Text with line breaks and tabs kept, every other character that is not seen spelled out (`\\x00`, `\\u202e`)."""
    return "".join(c if c in "\n\t" else _spelled(c) for c in str(text))


def visible(text: str) -> str:
    """A token on one line: spaces, line breaks and tabs as signs (`␣`, `↵`, `⇥`), what is not seen spelled out."""
    return "".join(_SHOWN.get(c) or _spelled(c) for c in str(text))


def _spelled(character: str) -> str:
    # control, format, surrogate, unassigned or private characters, separators other than the plain space
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")
    if not hidden:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def spelled_position(position: str) -> str:
    """A position for people: `query.last` -> `the last token of “query”`."""
    if position in ("first", "last"):
        return f"the {position} token"
    span, _, rest = position.rpartition(".")
    if span and rest in ("first", "last"):
        return f"the {rest} token of “{readable(span)}”"
    if span and rest == "all":
        return f"every token of “{readable(span)}”"
    return f"position {readable(position)}"


def describe(config: LensConfig, num_sources: int) -> str:
    """What a lens does, in one or two sentences.

    Arguments:
        config: of the lens.
        num_sources: source prompts of a pair.
    """
    site = SITES.get(config.site, "activation at layer j").format(layer="layer j")
    site = f"The {site} ({readable(config.site)})"
    if isinstance(config, LogitLensConfig):
        return (
            f"{site}, at {spelled_position(config.position)} of a prompt, is read out by the model’s own final norm "
            "and unembedding, as if it came from the last layer."
        )
    mean = config.sources == "mean" and num_sources > 1
    source = f"the mean over {num_sources} source prompts" if mean else "a source prompt"
    into = "a prompt that asks to repeat a token" if config.target == "identity" else "a target prompt"
    at = "at layer j" if config.patch == "one_layer" else "at layer j, and those of all later layers likewise"
    return (
        f"{site}, taken at {spelled_position(config.source_position)} of {source}, replaces the one at "
        f"{spelled_position(config.target_position)} of {into}, {at}. The model then runs on, and "
        "its next token is read."
    )


def baseline_label(config: LensConfig, kind: str) -> str:
    """What an unpatched run is called.

    Arguments:
        config: of the lens.
        kind: `source` or `target`, as in the metric `baseline_KIND_probability`.
    """
    return "the model’s own output" if isinstance(config, LogitLensConfig) else f"unpatched {kind} prompt"
