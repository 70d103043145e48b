"""Every form in which nnsight takes a prompt, against the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from interp import StandardizedTransformer
from interp.errors import InterpError
from tests.families.cases import build
from tests.interp.model.plain import IDS, OTHER, PROMPT, encoded, families, plain, positioned, residuals, wrapped
from tests.tiny import tiny_tokenizer

CHAT = [{"role": "system", "content": "hello"}, {"role": "user", "content": "king"}]
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}cat:{% endif %}"
)
ROWS = [[1, 17, 250], [1, 88, 5, 260, 71]]  # of different length

FORMS: dict[str, tuple[Any, Mapping[str, Tensor]]] = {
    "a string": (PROMPT, encoded(PROMPT)),
    "a list of strings": ([PROMPT, OTHER], encoded(PROMPT, OTHER)),
    "token ids": (ROWS[1], {"input_ids": torch.tensor([ROWS[1]]), "attention_mask": torch.ones(1, 5).long()}),
    "ragged lists of token ids": (
        ROWS,
        {
            "input_ids": torch.tensor([[0, 0, *ROWS[0]], ROWS[1]]),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5]),
        },
    ),
    "a tensor of one prompt": (IDS[0], {"input_ids": IDS[:1], "attention_mask": torch.ones(1, 6).long()}),
    "a tensor of several": (IDS, {"input_ids": IDS, "attention_mask": torch.ones(2, 6).long()}),
    "an encoding": (encoded(PROMPT, OTHER), encoded(PROMPT, OTHER)),
    "a tokenizer's encoding": (tiny_tokenizer()(PROMPT, return_tensors="pt"), encoded(PROMPT)),
}


@families
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_positional_input(family: str, form: str) -> None:
    given, batch = FORMS[form]
    model = wrapped(family)
    with model.trace(given):
        ids = model.input_ids.save()
        mask = model.attention_mask.save()
        size = model.input_size
        hidden = model.layers_output[2].clone().save()
        site = model.read("resid_post.2").clone().save()
        logits = model.logits.save()
        assert size == ids.shape
    expected, expected_logits = residuals(family, **positioned(family, batch))
    assert torch.equal(ids, batch["input_ids"])
    assert torch.equal(mask, batch["attention_mask"])
    torch.testing.assert_close(hidden, expected[2], atol=1e-6, rtol=1e-6)
    assert torch.equal(site, hidden)
    torch.testing.assert_close(logits, expected_logits, atol=1e-6, rtol=1e-6)


@families
@torch.no_grad()
def test_keywords(family: str) -> None:
    model = wrapped(family)
    batch = encoded(PROMPT, OTHER)
    with model.trace(**batch):
        masked = model.logits.save()
    with model.trace(input_ids=IDS):
        unmasked = model.logits.save()
    torch.testing.assert_close(masked, residuals(family, **positioned(family, batch))[1])
    torch.testing.assert_close(unmasked, residuals(family, input_ids=IDS)[1])


@families
@torch.no_grad()
def test_embeddings_as_input(family: str) -> None:
    model = wrapped(family)
    embeddings = plain(family).get_input_embeddings()(IDS)
    with model.trace(inputs_embeds=embeddings):
        logits = model.logits.save()
    torch.testing.assert_close(logits, residuals(family, inputs_embeds=embeddings)[1])
    with (
        pytest.raises(InterpError, match=r"input_ids: the model is fed .*inputs_embeds"),
        model.trace(inputs_embeds=embeddings),
    ):
        _ = model.input_ids


@families
@torch.no_grad()
def test_a_cached_prefix(family: str) -> None:
    model = wrapped(family)
    cache = DynamicCache(config=plain(family).config)
    plain(family)(input_ids=IDS[:, :4], past_key_values=cache, use_cache=True)
    with model.trace(input_ids=IDS[:, 4:], attention_mask=torch.ones_like(IDS), past_key_values=cache, use_cache=True):
        hidden = model.read("resid_post.3").clone().save()
        logits = model.logits.save()
    expected, expected_logits = residuals(family, input_ids=IDS)
    torch.testing.assert_close(hidden, expected[3][:, 4:])
    torch.testing.assert_close(logits, expected_logits[:, 4:])
    assert cache.get_seq_length() == IDS.shape[1], "the cache grows, as without nnsight"


@torch.no_grad()
def test_chat_messages() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = StandardizedTransformer(build("llama"), tokenizer=tokenizer, verify=False)
    with model.trace(CHAT):
        ids = model.input_ids.save()
        logits = model.logits.save()
    text = "<s>system: hello\nuser: king\ncat:"  # one beginning of text, not two
    expected = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, expected)
    torch.testing.assert_close(logits, residuals("llama", input_ids=expected)[1])


@families
@torch.no_grad()
def test_one_call_without_a_block(family: str) -> None:
    model = wrapped(family)
    by_ids, by_text = residuals(family, input_ids=IDS)[1], residuals(family, **encoded(PROMPT))[1]
    torch.testing.assert_close(model.trace(IDS, trace=False).logits, by_ids)
    torch.testing.assert_close(model.trace(PROMPT, trace=False).logits, by_text)
    torch.testing.assert_close(model(IDS).logits, by_ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[PROMPT], [OTHER]], "lists of texts in a list, such as .*: flatten them, or give each list an invoke"),
        ((PROMPT, 3), r"3 \(int\) among texts"),
        (3, "3"),
        ({"text": PROMPT}, "a mapping of texts, with keys text: give the texts alone"),
    ],
)
def test_what_is_no_prompt_is_refused(given: Any, message: str) -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match=f"expected a text, a list of texts, token ids .*, got {message}"):
        model.trace(given, trace=False)
    with pytest.raises(InterpError, match="expected a text, a list of texts"), model.trace() as tracer:  # noqa: SIM117
        with tracer.invoke(given):
            model.logits.save()


def test_a_pass_without_a_trace_needs_inputs() -> None:
    model = wrapped("llama")
    for call in (lambda: model.trace(trace=False), lambda: model.generate(max_new_tokens=2)):
        with pytest.raises(InterpError, match="there is nothing to run the model on: give it a text"):
            call()
