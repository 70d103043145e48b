"""transformers' own `generate` under interventions: over a cache and by whole passes, with beams; refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.activations.edited_generation import generate_edited
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.model import StandardizedTransformer
from interp.prompts import Encoded
from tests.interp.activations.test_generating import IDS, of_family

ENCODED = [Encoded(list(ids), {}) for ids in IDS]
Made = Callable[[str], StandardizedTransformer]


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mamba"])
def test_greedy_is_what_a_run_gives(wrapped: Made, family: str) -> None:
    model = wrapped(family)
    interventions = of_family(model)
    expected = model.run(IDS, interventions, max_new_tokens=4, stop_ids=[])
    given: dict[str, Any] = dict(max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True, output_logits=True)
    assert expected.new_logits is not None and expected.new_ids is not None
    for use_cache in (True, False):
        seen = []
        for part in generate_edited(model, ENCODED, interventions, use_cache=use_cache, **given):
            for index, row in enumerate(part.rows):
                seen.append(row)
                assert part.sequences[index, part.width :].tolist() == expected.new_ids[row]
                assert part.sequences[index, part.width - len(IDS[row]) : part.width].tolist() == IDS[row]
                for step, logits in enumerate(part.output.logits):
                    torch.testing.assert_close(logits[index], expected.new_logits[row, step], rtol=1e-3, atol=2e-4)
        assert sorted(seen) == [0, 1]


def test_beams_and_several_texts_of_a_prompt(wrapped: Made) -> None:
    model = wrapped("llama")
    edits = [
        Intervention("pattern.*.h0,2", "all", "knockout", from_positions="1:3", steps="every"),
        Intervention("resid_post.1", [[0], [1, 2]], "scale", 3.0),
    ]
    given: dict[str, Any] = dict(max_new_tokens=4, num_beams=3, num_return_sequences=2, eos_token_id=None)
    [cached], [whole] = (generate_edited(model, ENCODED, edits, use_cache=use, **given) for use in (True, False))
    assert torch.equal(cached.sequences, whole.sequences) and cached.sequences.shape == (4, 11)
    for row, one in enumerate(ENCODED):
        alone = [Intervention(edits[0].site, "all", "knockout", from_positions="1:3", steps="every")]
        alone.append(Intervention("resid_post.1", [[0], [1, 2]][row : row + 1], "scale", 3.0))
        [part] = generate_edited(model, [one], alone, **given)
        assert torch.equal(part.sequences[:, -4:], cached.sequences[2 * row : 2 * row + 2, -4:])
    [plain] = generate_edited(model, ENCODED, **given)
    assert not torch.equal(plain.sequences, cached.sequences)


def test_what_cannot_be_followed_is_refused(wrapped: Made) -> None:
    model, edit = wrapped("llama"), Intervention("resid_post.1", "last", "zero")
    for given in (dict(prompt_lookup_num_tokens=2), dict(guidance_scale=2.0), dict(cache_implementation="static")):
        with pytest.raises(InterpError, match=f"{next(iter(given))}: interventions"):
            generate_edited(model, ENCODED, edit, max_new_tokens=2, **given)
    with pytest.raises(InterpError, match="layers"):
        generate_edited(model, ENCODED, Intervention("resid_post.9", "last", "zero"), max_new_tokens=2)
    assert not any("interp" in str(hook) for hook in model._module._forward_pre_hooks.values() if "before" in str(hook))
