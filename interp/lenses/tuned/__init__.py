"""Tuned lenses: trained, kept, measured, read (Belrose et al. 2023, arXiv 2303.08112)."""

from interp.lenses.tuned.evaluation import LensEvaluation, evaluate_tuned_lens
from interp.lenses.tuned.lens import TunedLens
from interp.lenses.tuned.public import load_public
from interp.lenses.tuned.reading import tuned_lens
from interp.lenses.tuned.sequences import GivenSequences, TokenSequence, TokenStream
from interp.lenses.tuned.settings import TuningSettings
from interp.lenses.tuned.text import PackedText, TextSource
from interp.lenses.tuned.training import TuningStep, train_tuned_lens
from interp.lenses.tuned.unembedding import unembedding_digest

__all__ = [
    "GivenSequences",
    "LensEvaluation",
    "PackedText",
    "TextSource",
    "TokenSequence",
    "TokenStream",
    "TunedLens",
    "TuningSettings",
    "TuningStep",
    "evaluate_tuned_lens",
    "load_public",
    "train_tuned_lens",
    "tuned_lens",
    "unembedding_digest",
]
