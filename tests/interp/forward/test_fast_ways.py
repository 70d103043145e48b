"""Every fast way in every family, against plain transformers: beginnings shared, prompts in one row, the last layer at
the tokens that are read. One model for all of them, since what fits a family is found out once a model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import collect
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from tests.families import FAMILIES, build
from tests.interp.forward.alone import BUDGET, off_by, plain_values, prompts
from tests.tiny import tiny_tokenizer

# Where prompts run as a whole: layers that carry a state, and caches of other forms.
WHOLE = {
    "deepseek_v32", "glm_moe_dsa", "dots3_note_text", "axk2", "inkling_text", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear", "bailing_hybrid", "minimax", "lfm2", "lfm2_moe", "lfm3", "jamba",
    "bamba", "falcon_h1", "granitemoehybrid", "granitemoehybrid_dense", "nemotron_h", "recurrent_gemma", "mamba",
    "mamba2", "falcon_mamba", "zamba", "zamba2", "openai-gpt",
}  # fmt: skip
# Where prompts stand side by side: layers that carry a state along the row or choose among its keys, attention of a
# family's own, positions that are counted or not known.
SIDE_BY_SIDE = {
    "doge", "deepseek_v32", "glm_moe_dsa", "dots3_note_text", "axk2", "llama4_text", "inkling_text", "qwen3_next",
    "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear", "bailing_hybrid", "minimax", "lfm2", "lfm2_moe",
    "lfm3", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "granitemoehybrid_dense", "nemotron_h",
    "recurrent_gemma", "mamba", "mamba2", "falcon_mamba", "zamba", "zamba2", "gpt_neo", "gptj", "codegen", "bloom",
    "bloom_post_norm", "falcon", "falcon_alibi", "falcon_sequential", "falcon_new", "falcon_new_one_norm", "mpt",
    "xglm", "openai-gpt", "moss_transcribe_diarize",
}  # fmt: skip
# Where they do so behind a prefix only, of which each row is given a copy.
COPYING = {
    "gemma4_text", "minicpm3", "diffllama", "youtu", "glm4_moe_lite", "deepseek_v2", "deepseek_v3", "axk1", "jetmoe",
}  # fmt: skip
# Where the last layer runs at all tokens: it carries a state, its keys are another layer's or stand in a cache of
# another form, or its mask or bias is made for a batch and for the places of its tokens.
AT_ALL = {
    "gemma4_text", "deepseek_v32", "axk2", "inkling_text", "falcon_h1", "nemotron_h", "mamba", "mamba2", "falcon_mamba",
    "zamba", "zamba2", "gpt_neo", "bloom", "bloom_post_norm", "openai-gpt",
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_what_plain_transformers_gives_of_each_prompt(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)
    last = model.num_layers - 1
    verdicts = verdicts_of(model)

    def read(positions: Sequence[Sequence[int]], *, share: bool, layer: int = last) -> Tensor:
        """(layer, prompt, slot, hidden), as plain transformers gives it."""
        sites = [Site("resid_post", at) for at in range(layer + 1)]
        found = collect(model, prompts(), sites, positions, batch_tokens=BUDGET, share_prefixes=share)["resid_post"]
        for row, (wanted, expected) in enumerate(zip(positions, plain_values(name), strict=True)):
            assert off_by(found[:, row, : len(wanted)], expected[: layer + 1, wanted]) < 1e-5
        return found

    three = [[len(ids) - 1, len(ids) // 2, 2] for ids in prompts()]
    with caplog.at_level(logging.WARNING, logger="interp"):
        assert torch.equal(read(three, share=True), read(three, share=True))
        read(three, share=False)
    assert verdicts["causal"]
    assert verdicts["prefixes"] == (name not in WHOLE)
    said = [record.message for record in caplog.records if "run as a whole" in record.message]
    assert len(said) == (name in WHOLE), said  # said once, in one line

    monkeypatch.setattr("interp.activations.read_batch.WORTH", 1)  # however few tokens the last layer is spared
    few = [[len(ids) - 1] if row % 2 else [1, len(ids) - 1] for row, ids in enumerate(prompts())]
    for layer, share in ((last, True), (last, False), (last // 2, True)):
        read(few, share=share, layer=layer)
    # Whole prompts, packed ones, those behind a prefix.
    forms = {fits for what, fits in verdicts.items() if what.startswith(f"layer {last} at a few tokens")}
    assert False in forms if name in AT_ALL else forms == {True}

    monkeypatch.setattr("interp.batching.BATCH_COST", 0.01)  # a beginning is shared where that saves a token
    for share in (True, False):
        read([[len(ids) - 1] for ids in prompts()], share=share)
    assert verdicts["prompts in one row"] == (name not in SIDE_BY_SIDE)
    if verdicts["prefixes"]:
        assert verdicts["prompts in one row behind a prefix"] == (name not in SIDE_BY_SIDE | COPYING)
