"""Chats against text that is put together by hand, and against the ids that transformers itself feeds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.errors import InterpError
from interp.model.processor import load_processor
from interp.prompts import chat_prompt, encode_with_images
from interp.prompts.chat import Message
from tests.interp.prompts.algorithms import algorithm
from tests.vision import image

TURNS = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] TRIM}}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = {
    "start token": "{{ bos_token }}" + TURNS.replace("TRIM", ""),
    "no start token": TURNS.replace("TRIM", ""),
    "start token, trimmed": "{{ bos_token }}" + TURNS.replace("TRIM", "| trim "),
    "no system role": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ bos_token }}" + TURNS.replace("TRIM", "")
    ),
    "system in the first user message": (  # as Llama 2 has it
        "{% set ahead = '' %}{% if messages[0]['role'] == 'system' %}"
        "{% set ahead = '<<SYS>>' + messages[0]['content'] + '<</SYS>>\n' %}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token }}[INST] {{ (ahead if loop.first else '') + message['content'].strip() }} [/INST]"
        "{% else %} {{ message['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "loud": "{{ bos_token }}" + TURNS.replace("TRIM", "| upper "),
}
ALGORITHMS = ("byte-level BPE, GPT-2's words", "Metaspace BPE, Llama 2's normalizer", "Unigram with bytes")
CHAT: list[Message] = [
    {"role": "system", "content": "hello"},
    {"role": "user", "content": "user?\nking"},
    {"role": "assistant", "content": "Ok."},
    {"role": "user", "content": "The quick brown fox"},
]


def chatty(template: str, name: str = ALGORITHMS[0]) -> PreTrainedTokenizerFast:
    """A tokenizer that itself begins every text with <s>, and has a chat template."""
    tokenizer = copy.deepcopy(algorithm(name).tokenizer)
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def written(messages: list[Message], start: str = "<s>", *, header: bool = True) -> str:
    """What `TURNS` gives, by hand."""
    lines = [start]
    for message in messages:
        lines += ["<|", message["role"], "|>\n", message["content"], "</s>\n"]
    return "".join([*lines, "<|assistant|>\n" if header else ""])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_template_with_a_start_token_gives_one(name: str) -> None:
    tokenizer = chatty("start token", name)
    prompt = chat_prompt(tokenizer, CHAT)
    assert prompt.text == written(CHAT)
    ids = prompt.encode(tokenizer).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    # The tokenizer's own start token in place of the written one comes to the same.
    if "BPE, GPT-2" in name:
        assert ids == tokenizer(written(CHAT, start=""))["input_ids"]
    assert tokenizer(prompt.text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2  # what it saves one from


@pytest.mark.parametrize("name", ALGORITHMS)
def test_template_without_a_start_token_gives_none_unless_asked(name: str) -> None:
    tokenizer = chatty("no start token", name)
    prompt = chat_prompt(tokenizer, CHAT)
    assert prompt.text == written(CHAT, start="")
    ids = prompt.encode(tokenizer).input_ids
    assert tokenizer.bos_token_id not in ids
    assert ids == tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    asked = chat_prompt(tokenizer, CHAT, add_special_tokens=True)
    assert asked.encode(tokenizer).input_ids == [tokenizer.bos_token_id, *ids]


def test_start_token_written_and_asked_for_is_refused() -> None:
    tokenizer = chatty("start token")
    with pytest.raises(InterpError, match="begins with '<s>', which the tokenizer adds itself"):
        chat_prompt(tokenizer, CHAT, add_special_tokens=True).encode(tokenizer)


def test_header_of_an_answer_is_optional() -> None:
    tokenizer = chatty("start token")
    assert chat_prompt(tokenizer, CHAT, add_generation_prompt=False).text == written(CHAT, header=False)
    assert chat_prompt(tokenizer, CHAT, add_generation_prompt=True).text == written(CHAT)


@pytest.mark.parametrize("template", ["start token", "start token, trimmed", "no start token"])
def test_final_message_is_continued(template: str) -> None:
    tokenizer = chatty(template)
    chat = [*CHAT, {"role": "assistant", "content": "king king\n1135"}]
    prompt = chat_prompt(tokenizer, chat, continue_final=True)
    start = "" if template == "no start token" else "<s>"
    assert prompt.text == written(CHAT, start, header=False) + "<|assistant|>\nking king\n1135"
    assert prompt.spans["message_4"] == (len(prompt.text) - 14, len(prompt.text))
    encoded = prompt.encode(tokenizer)
    assert encoded.spans["message_4"][1] == len(encoded.input_ids)
    assert tokenizer.decode(encoded.input_ids[-3:]) == " king\n1135"
    assert encoded.input_ids.count(tokenizer.bos_token_id) == (start == "<s>")


def test_trailing_space_of_a_continued_message_is_the_templates_choice() -> None:
    chat = [{"role": "assistant", "content": "king "}]
    for template, kept in (("start token", "king "), ("start token, trimmed", "king")):
        prompt = chat_prompt(chatty(template), chat, continue_final=True)
        assert prompt.text == "<s><|assistant|>\n" + kept
        assert prompt.spans == {"message_0": (17, 17 + len(kept))}


def test_continuing_and_beginning_an_answer_are_refused_together() -> None:
    with pytest.raises(InterpError, match="ask for one of them"):
        chat_prompt(chatty("start token"), CHAT, continue_final=True, add_generation_prompt=True)


def test_refused_system_role_says_what_to_do() -> None:
    tokenizer = chatty("no system role")
    with pytest.raises(
        InterpError, match=r"refuses messages of the roles system, user.*System role not supported.*begin"
    ):
        chat_prompt(tokenizer, CHAT)
    assert chat_prompt(tokenizer, CHAT[1:]).text == written(CHAT[1:])


def test_system_text_that_moves_is_still_found() -> None:
    tokenizer = chatty("system in the first user message")
    prompt = chat_prompt(tokenizer, CHAT)
    assert prompt.text == (
        "<s>[INST] <<SYS>>hello<</SYS>>\nuser?\nking [/INST] Ok. </s><s>[INST] The quick brown fox [/INST]"
    )
    found = {name: prompt.text[start:stop] for name, (start, stop) in prompt.spans.items()}
    assert found == {f"message_{number}": message["content"] for number, message in enumerate(CHAT)}
    ids = prompt.encode(tokenizer).input_ids
    assert ids == tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 2  # one a turn, as the template has it


contents = st.text(st.sampled_from('ab\n "?<|>su'), max_size=6)
chats = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "system"]), contents),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(chats)
def test_spans_are_the_messages_also_where_their_text_occurs_elsewhere(chat: list[Message]) -> None:
    for template, kept in (("start token", str), ("start token, trimmed", str.strip)):
        prompt = chat_prompt(chatty(template), chat)
        expected, at = {}, len("<s>")
        for number, message in enumerate(chat):
            at += len(f"<|{message['role']}|>\n")
            text = kept(message["content"])
            if text.strip():
                expected[f"message_{number}"] = (at, at + len(text))
            at += len(text) + len("</s>\n")
        assert prompt.spans == expected


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0]['content'] | upper }}", "KING"),
        ("{{ messages[0]['content'] }}{% if 'king' in messages[0]['content'] %}!{% endif %}", "king!"),
        ("{% if 'king' in messages[0]['content'] %}!{% endif %}{{ messages[0]['content'] }}", "!king"),
        ("{% if 'king' not in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}king", "king"),
    ],
)
def test_texts_are_not_marked_where_the_template_looks_into_them(template: str, text: str) -> None:
    tokenizer = chatty("start token")
    tokenizer.chat_template = template
    prompt = chat_prompt(tokenizer, [{"role": "user", "content": "king"}])
    assert (prompt.text, prompt.spans) == (text, {})


def test_span_of_a_message_is_its_tokens() -> None:
    tokenizer = chatty("start token")
    encoded = chat_prompt(tokenizer, CHAT).encode(tokenizer)
    words = [tokenizer.decode(encoded.input_ids[slice(*encoded.spans[f"message_{number}"])]) for number in range(4)]
    assert words == [message["content"] for message in CHAT]


def test_tokenizer_without_offsets_reads_chats(slow_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(slow_tokenizer)
    tokenizer.chat_template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    prompt = chat_prompt(tokenizer, [{"role": "user", "content": "ab"}])
    assert (prompt.text, prompt.spans) == ("<ab>", {})
    assert tokenizer.convert_ids_to_tokens(prompt.encode(tokenizer).input_ids) == list("<ab>")


def test_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(InterpError, match="has no chat template"):
        chat_prompt(algorithm(ALGORITHMS[0]).tokenizer, CHAT)


@pytest.mark.parametrize(
    "wrong",
    ["hello", [], {"role": "user", "content": "a"}, [["user", "a"]], [{"role": "user"}],
     [{"role": "user", "content": None}], [{"role": "user", "content": "a", "name": "b"}]],
)  # fmt: skip
def test_what_is_no_chat_is_refused(wrong: list) -> None:
    with pytest.raises(InterpError, match="expected"):
        chat_prompt(chatty("start token"), wrong)


def test_a_chat_with_images_has_the_ids_of_the_processors_own_template(vision_folder: Callable[[str], Path]) -> None:
    """Spans are the texts of the messages, between which images stand as what they are expanded to."""
    processor = load_processor(vision_folder("llava"))
    processor.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'image' %}" + processor.image_token + "{% else %}{{ part.text }}"
        "{% endif %}{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
    )
    first, second = image(0), image(1, 16, 16)
    seen = [{"type": "image", "image": first}, {"type": "text", "text": "what is it"}]
    compared = [{"type": "text", "text": "and"}, {"type": "image", "image": second}, {"type": "text", "text": "this"}]
    chat = [
        {"role": "user", "content": seen},
        {"role": "assistant", "content": "a test"},
        {"role": "user", "content": compared},
    ]
    prompt = chat_prompt(processor, chat)
    assert prompt.images == (first, second)
    texts = {name: prompt.text[slice(*span)] for name, span in prompt.spans.items()}
    assert texts == {
        "message_0": "what is it", "message_1": "a test", "message_2": f"and{processor.image_token}this",
    }  # fmt: skip
    token = processor.image_token_id
    encoded = encode_with_images(processor, prompt, {"pixel_values"}, token)
    theirs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert encoded.input_ids == theirs["input_ids"][0]
    decode = processor.tokenizer.decode
    assert decode(encoded.input_ids[slice(*encoded.spans["message_0"])]) == "what is it"
    own = encoded.input_ids[slice(*encoded.spans["message_2"])]
    assert decode([one for one in own if one != token]) == "andthis" and decode(own).startswith("and<image>")
    with pytest.raises(InterpError, match="message 0: expected parts"):
        chat_prompt(processor, [{"role": "user", "content": [{"type": "video"}]}])
