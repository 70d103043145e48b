"""Say in words, for people: lenses, tasks, metrics, positions, numbers.

All text that comes from data (prompts, tokens, labels) passes through `interp.text` on its way to a page or a figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

from interp.prompts.patchscopes import IDENTITY_PROMPTS
from interp.text import readable
from pipeline.config.lens import (
    AttentionObjectConfig,
    IntoTarget,
    KnockoutConfig,
    LensConfig,
    LogitLensConfig,
    PatchscopeGenerateConfig,
    PatchscopeGridConfig,
    TunedLensConfig,
)
from pipeline.metrics import Metric
from pipeline.tasks.attribute_extraction import AttributeExtractionConfig
from pipeline.tasks.cloze import ClozeConfig
from pipeline.tasks.image_prompts import ImagePromptsConfig
from pipeline.tasks.next_token import NextTokenConfig
from pipeline.tasks.translation import TranslationConfig

__all__ = [
    "PAPERS",
    "baseline_label",
    "describe",
    "describe_mapping",
    "describe_task",
    "metric_note",
    "percent",
    "rank",
    "readable_value",
    "spelled_block",
    "spelled_position",
]

PAPERS = {
    "logit_lens": "nostalgebraist, 2020",
    "tuned_lens": "Belrose et al., 2023",
    "patchscope": "Ghandeharioun et al., 2024; Dumas et al., 2025",
    "patchscope_grid": "Ghandeharioun et al., 2024",
    "patchscope_generate": "Ghandeharioun et al., 2024",
    "attention_object": "nnterp, Dumas, 2025",
    "knockout": "Geva et al., 2023",
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


def spelled_block(block: str) -> str:
    """A set of tokens that is knocked out, for people: `before_query` -> `the tokens before “query”`."""
    side, _, span = block.partition("_")
    return f"the tokens {side} “{readable(span)}”" if side in ("before", "after") and span else spelled_position(block)


def describe(config: Any, num_sources: int) -> str:
    """What a lens does, in one or two sentences.

    Arguments:
        config: of the lens. One with a method `describe` says it itself, also where it is a subclass of one of ours.
        num_sources: source prompts of a pair.
    """
    return str(config.describe()) if hasattr(config, "describe") else _described(config, num_sources)


@singledispatch
def _described(config: Any, num_sources: int) -> str:
    """As `describe`: one function a kind, which it registers here."""
    return f"A lens of kind {readable(config.kind)}."


@_described.register
def _(config: KnockoutConfig, num_sources: int) -> str:
    around = f"a window of {config.window} layers around layer j" if config.centred else _window(config.window)
    return (
        f"In {around}, {spelled_position(config.query_position)} of a prompt may not look at a set of tokens: its "
        "attention to them is cut. The model runs on, and its next token is read. What the answer then loses, it "
        "got from those tokens, in those layers."
    )


@_described.register
def _(config: LogitLensConfig, num_sources: int) -> str:
    return (
        f"{_site(config.site)}, at {spelled_position(config.position)} of a prompt, is read out by the model’s own "
        "final norm and unembedding, as if it came from the last layer"
        f"{', negated: which tokens it speaks against' if config.inverted else ''}."
    )


@_described.register
def _(config: TunedLensConfig, num_sources: int) -> str:
    return (
        f"{_site('resid_post')}, at {spelled_position(config.position)} of a prompt, goes through the affine map "
        "that layer j has learned, so as to say there what the model says in the end; then it is read out by the "
        "model’s own final norm and unembedding."
    )


@_described.register
def _(config: IntoTarget, num_sources: int) -> str:
    site, into, at, then = _patched(config)
    mean = config.sources == "mean" and num_sources > 1
    source = f"the mean over {num_sources} source prompts" if mean else "a source prompt"
    repeats = config.target == "identity" and config.target_prompt in IDENTITY_PROMPTS
    prompt = "a prompt that asks to repeat a token" if repeats else "a target prompt"
    return (
        f"{site}, taken at {spelled_position(config.source_position)} of {source}, replaces {into} at "
        f"{spelled_position(config.target_position)} of {prompt}, {at}. The model then runs on, and {then}."
    )


def describe_mapping(attributes: Mapping[str, Any]) -> str:
    """What a lens puts its states through, and what that was made from; empty where it is nothing.

    Arguments:
        attributes: of the lens's store.
    """
    told = attributes.get("mapping", {"kind": "identity"})
    if told["kind"] == "identity":
        return ""
    if told["kind"] == "tuned":
        text = (told["training"] or {}).get("text")
        trained = f"trained on {_text_source(text)}" if text else "of unknown training"
        return (
            f"On the way it goes through the translator of layer j of a tuned lens (Belrose et al., 2023), {trained}."
        )
    into = "the last layer" if told["kind"] == "affine_last" else "layer k"
    return (
        f"On the way it goes through an affine map from layer j to {into}, fitted by least squares to "
        f"{told['tokens']} tokens of {_text_source(told['text'])}."
    )


def _text_source(text: Mapping[str, Any]) -> str:
    """Text that something was made from: a file or data set, or the run's own prompts."""
    if "source" in text:
        return f"{readable(text['source']['path'])}, other text than is read here"
    return "the run’s own prompts, those that are read here among them"


def _window(size: int | None) -> str:
    return "layer j and all later ones" if size is None else "layer j" if size == 1 else f"layers j to j + {size - 1}"


def _site(kind: str) -> str:
    return f"The {SITES.get(kind, 'activation at layer j').format(layer='layer j')} ({readable(kind)})"


READ = "its next token is read"
LATER = "at layer j, and those of all later layers likewise"


def describe_task(config: Any) -> str:
    """What the prompts of a task are about, in a few words.

    Arguments:
        config: of the task. One with a method `describe` says it itself, also where it is a subclass of one of ours.
    """
    return str(config.describe()) if hasattr(config, "describe") else _about(config)


@singledispatch
def _about(config: Any) -> str:
    """As `describe_task`: one function a kind, which it registers here."""
    return f"prompts of the task {readable(config.kind)}"


@_about.register
def _(config: TranslationConfig) -> str:
    what = f"word translation from {readable_value(config.source_languages)} to {config.target_language}"
    into = config.patch_into
    into_text = f", patched into translation from {into.source_language} to {into.target_language}" if into else ""
    return what + into_text


@_about.register
def _(config: ClozeConfig) -> str:
    return f"cloze sentences in {config.language}"


@_about.register
def _(config: AttributeExtractionConfig) -> str:
    return f"attributes of the subjects in {config.source}"


@_about.register
def _(config: ImagePromptsConfig) -> str:
    return f"the images in {config.source} and what is asked about them"


@_about.register
def _(config: NextTokenConfig) -> str:
    return f"the next token of prompts from {config.source}"


@singledispatch
def _patched(config: Any) -> tuple[str, str, str, str]:
    """Of a patch: what is taken, what it replaces, at which layers, and what is read."""
    return _site(config.site), "the one", "at layer j" if config.patch == "one_layer" else LATER, READ


@_patched.register
def _(config: PatchscopeGridConfig) -> tuple[str, str, str, str]:
    return _site(config.site), "the one of layer k", "for every j and k", READ


@_patched.register
def _(config: AttentionObjectConfig) -> tuple[str, str, str, str]:
    each = "" if config.window == 1 else ", each by its own"
    return _site("attn_in"), "the one", f"in {_window(config.window)}{each}", READ


@_patched.register
def _(config: PatchscopeGenerateConfig) -> tuple[str, str, str, str]:
    how = "the most probable one each time" if config.temperature == 0 else f"temperature {config.temperature:g}"
    count = "1 token is" if config.max_new_tokens == 1 else f"up to {config.max_new_tokens} tokens are"
    at = "at layer j" if config.patch == "one_layer" else LATER
    into, at = ("the one", at) if config.target_layers is None else ("the one of layer k", "for every j and k")
    return _site(config.site), into, at, f"{count} generated ({how})"


@singledispatch
def metric_note(config: Any, metric: Metric) -> str:
    """What a metric is, as a lens measures it; `{last}` stands for the last layer that was read.

    Arguments:
        config: of the lens; a kind to which a metric means something else registers here.
        metric: the metric.
    """
    return metric.patched_note if config.patches and metric.patched_note else metric.note


@metric_note.register
def _(config: KnockoutConfig, metric: Metric) -> str:
    own = {
        "probability": "with tokens blocked",
        "precision_at_1": "share of examples whose top token stays the model’s own",
        "kl_nats": "from the unblocked distribution to the blocked one",
    }
    return own.get(metric.name, metric.note)


@metric_note.register
def _(config: AttentionObjectConfig, metric: Metric) -> str:
    own = {"kl_nats": "from the unpatched target prompt’s distribution to this one"}
    return own.get(metric.name, metric.patched_note or metric.note)


@metric_note.register
def _(config: PatchscopeGridConfig, metric: Metric) -> str:
    own = {"kl_nats": "from the distribution of the last source layer in the last target layer to this one"}
    return own.get(metric.name, metric.patched_note or metric.note)


def baseline_label(config: LensConfig, kind: str) -> str:
    """What an unpatched run is called.

    Arguments:
        config: of the lens.
        kind: `source` or `target`, as in the metric `baseline_KIND_probability`.
    """
    return f"unpatched {kind} prompt" if config.patches else "the model’s own output"


def rank(value: float | None) -> str:
    """A mean rank with one decimal."""
    return "—" if value is None or math.isnan(value) else f"{value:.1f}"


def percent(value: float) -> str:
    """Whole percents, where 0 % and 100 % are kept for what is exactly that."""
    if math.isnan(value):
        return "—"
    return "<1%" if 0 < value < 0.01 else ">99%" if 0.99 < value < 1 else f"{value:.0%}"


def readable_value(value: Any) -> str:
    """A config value for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {readable_value(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(readable_value(item) for item in value) or "none"
    return str(value)
