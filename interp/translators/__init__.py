"""Learned maps of the residual stream: tuned lenses (train, keep, measure) and affine maps between layers or models."""

from interp.translators.affine_maps import AffineFit, AffineMap, AffinePairs, IdentityMap, LatentMap
from interp.translators.data import GivenSequences, PackedText, TextSource, TokenSequence, TokenStream
from interp.translators.evaluation import LensEvaluation, evaluate_tuned_lens
from interp.translators.layer_translators import TunedLens, load_public, unembedding_digest
from interp.translators.training import TuningSettings, TuningStep, train_tuned_lens

__all__ = [
    "AffineFit",
    "AffineMap",
    "AffinePairs",
    "GivenSequences",
    "IdentityMap",
    "LatentMap",
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
    "unembedding_digest",
]
