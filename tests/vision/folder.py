"""A tiny model that sees, saved as the hub has it: config, weights, tokenizer, image processor and processor."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tiny import tiny_tokenizer
from tests.vision.cases import FAMILIES, Family

# Chameleon's images are words of the vocabulary: the code book's entry k is spelled by k in these letters.
_LETTERS = "ABCDEFGHIJ"


def vision_folder_of(family: str, folder: Path) -> Path:
    """Save a tiny random model of a family, with its tokenizer and processor, in `folder`; returns the folder.

    Arguments:
        family: a key of `FAMILIES`.
        folder: an empty folder.
    """
    case = FAMILIES[family]
    tokenizer = _tokenizer(case)
    tokenizer.save_pretrained(folder)
    kind, settings = case.image_processor
    kind(**settings).save_pretrained(folder)  # type: ignore[attr-defined]
    _write(folder / "processor_config.json", {"processor_class": case.processor_class, **case.processor})
    if case.video:
        sizes = {key: value for key, value in settings.items() if key.endswith("_size") and isinstance(value, int)}
        _write(folder / "video_preprocessor_config.json", {"video_processor_type": case.video, **sizes})
    config = CONFIG_MAPPING[case.model_type](**_fields(case, tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():  # larger than the usual start, so that predictions differ visibly
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def _tokenizer(case: Family) -> PreTrainedTokenizerFast:
    plain = tiny_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        padding_side="left", model_max_length=512, extra_special_tokens=case.tokens,
    )  # fmt: skip
    if case.model_type == "chameleon":
        tokenizer.add_tokens(list(_code_book(case)))
    return tokenizer


def _fields(case: Family, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in case.token_ids.items()}
    if case.model_type == "chameleon":
        words = [*case.tokens.values(), *_code_book(case)]
        ids["vocabulary_map"] = {word: tokenizer.convert_tokens_to_ids(word) for word in words}  # type: ignore[assignment]
    return {**case.config, **ids}


def _code_book(case: Family) -> list[str]:
    return [
        "IMGIMG" + "".join(_LETTERS[int(digit)] for digit in str(entry)) + "Z"
        for entry in range(case.config["vq_config"]["num_embeddings"])
    ]


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
