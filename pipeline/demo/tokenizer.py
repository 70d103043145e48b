"""The tokenizer of the embedded model, learned from the lexicon."""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from pipeline.demo.curriculum import Combination, prompt_line
from pipeline.demo.lexicon import Lexicon

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(lexicon: Lexicon, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which most words of the lexicon are one token after a quote.

    Arguments:
        lexicon: the words to learn the merges from.
        vocab_size: entries at most.

    Returns:
        The tokenizer; it puts `<s>` before a text by itself and pads on the left.
    """
    # Every pair of languages, so that their names are merged both at the start of a line and after a space.
    corpus = [
        prompt_line(lexicon, Combination(concept, source, target), answered=True) + "\n"
        for concept in range(len(lexicon.concepts))
        for source, target in itertools.permutations(lexicon.languages, 2)
    ]
    # The accepted words that no prompt shows count among the answers too.
    corpus += [f': "{word}"' for concept in lexicon.concepts for words in concept.words.values() for word in words]

    # AutoTokenizer reads the tokenizer of a Qwen2 folder with these parts whatever the folder says: they are ours too.
    parts = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = parts.normalizer, parts.pre_tokenizer, parts.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be written, if only byte by byte
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,  # never used, since bytes write everything; but without it AutoTokenizer adds a token of its own
        padding_side="left",
        model_max_length=512,
    )
