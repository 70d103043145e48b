"""Image prompts: what a row becomes, which spans it has, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from interp.errors import InterpError
from interp.positions import Position
from interp.prompts.opening import opened
from pipeline.artifacts.tokens import Row
from pipeline.config.model import ModelConfig
from pipeline.config.section import ConfigError
from pipeline.files import sha256_of
from pipeline.stages.tokenize import load_image_encoder, load_tokenizer
from pipeline.tasks import make
from pipeline.tasks.image_prompts import ImageEncoder, ImagePromptsConfig, placed
from tests.tiny import tiny_folder
from tests.vision import image, vision_folder_of

Loaded = tuple[PreTrainedTokenizerBase, ImageEncoder]


def loaded(family: str, folder: Path) -> Loaded:
    vision_folder_of(family, folder)
    config = ModelConfig(name=family, source=str(folder), depends_on=str(folder))
    tokenizer, model = load_tokenizer(config)
    return tokenizer, load_image_encoder(config, model)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return loaded("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of different sizes."""
    for number, (height, width) in enumerate([(48, 40), (16, 30), (20, 20)]):
        image(number, height, width).save(tmp_path / f"{number}.png")
    return tmp_path


def config(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> ImagePromptsConfig:
    source = folder / "own.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    standard: dict[str, Any] = dict(source=str(source), target_columns=["answer"], depends_on=str(source))
    return ImagePromptsConfig(**(standard | changes))


ROWS: list[dict[str, Any]] = [
    {"image": "0.png", "prompt": "<image> The quick", "question": "brown", "answer": "fox", "n": 7},
    {
        "image": ["1.png", "2.png"],
        "prompt": "<image> and <image>:",
        "question": "dog",
        "answer": ["book", "livre"],
        "n": 8,
    },
    {"image": None, "prompt": "king king", "question": "?", "answer": None, "n": 9},
]


def test_rows_become_prompts_with_their_images(llava: Loaded, folder: Path) -> None:
    tokenizer, encoder = llava
    made = config(folder, ROWS, id_column="n", label_columns=["question"])
    made.check()
    assert made.spans() == ("prompt", "text")  # one row has no image, so no position can count on one
    data = make(made, tokenizer, 256, encoder)
    names = {number: f"{sha256_of(folder / f'{number}.png')[:32]}.png" for number in range(3)}
    assert [list(row.images) for row in data.prompts] == [[names[0]], [names[1], names[2]], []]
    assert data.images == {name: folder / f"{number}.png" for number, name in names.items()}
    for row, given in zip(data.prompts[:2], ROWS, strict=False):
        paths = [given["image"]] if isinstance(given["image"], str) else given["image"]
        alone = encoder.processor(text=[row.prompt], images=[[opened(folder / path) for path in paths]])
        assert row.prompt == given["prompt"]
        assert list(row.input_ids) == alone["input_ids"][0]
    assert list(data.prompts[2].input_ids) == tokenizer("king king").input_ids
    assert data.prompts[0].labels == {"id": "7", "image": "0.png", "question": "brown", "collides": "no"}
    assert [row.labels["image"] for row in data.prompts] == ["0.png", "1.png, 2.png", ""]
    assert data.prompts[1].words["answer"] == ["book", "livre"]
    counted = {"rows": 3, "prompts": 3, "images": 3, "answers_missing": 1, "rows_left_out": 0}
    assert {name: data.counts[name] for name in counted} == counted


def tokens_at(tokenizer: PreTrainedTokenizerBase, row: Row, position: str) -> str:
    return tokenizer.decode([row.input_ids[i] for i in Position.parse(position).resolve(len(row.input_ids), row.spans)])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of PaliGemma's processor
@pytest.mark.parametrize(
    ("family", "placeholder"),
    [
        ("llava", "<image>"),
        ("gemma3", "<start_of_image>"),
        ("qwen2_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("paligemma", "<image>"),
    ],
)
def test_the_same_table_serves_every_family(family: str, placeholder: str, tmp_path: Path, folder: Path) -> None:
    tokenizer, encoder = loaded(family, tmp_path / family)
    made = config(folder, ROWS[:2], image_columns=["image"], template="{marks}! Look: {question}?", placeholder="[X]")
    rows = [
        {**row, "marks": "[X]" * len([row["image"]] if isinstance(row["image"], str) else row["image"])}
        for row in ROWS[:2]
    ]
    (folder / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    made.check()
    assert made.spans() == (
        "marks", "question", "text", "image", "image[0]", "image[0].begin", "image[0].end", "text.after_image[0]",
    )  # fmt: skip
    data = make(made, tokenizer, None, encoder)
    for row, given in zip(data.prompts, rows, strict=True):
        assert row.prompt == f"{placeholder * len(row.images)}! Look: {given['question']}?"
        assert tokens_at(tokenizer, row, "question.all").strip() == given["question"]
        seen = [i for i, token in enumerate(row.input_ids) if token == encoder.image_token_id]
        assert Position.parse("image.all").resolve(len(row.input_ids), row.spans) == seen
    assert Position.parse("image[1].first").resolve(len(row.input_ids), row.spans)[0] in seen
    assert not [note for note in data.notes if "special tokens" in note.what]


def test_placeholders_move_the_spans_behind_them() -> None:
    text, spans = placed("a <i> b <i> c", {"a": (0, 1), "b": (6, 7), "image": (2, 5), "c": (12, 13)}, "<i>", "<image>")
    assert text == "a <image> b <image> c"
    assert {name: text[start:stop] for name, (start, stop) in spans.items()} == {
        "a": "a", "b": "b", "image": "<image>", "c": "c",
    }  # fmt: skip
    assert placed("<i>ab", {"a": (3, 4)}, "<i>", "") == ("ab", {"a": (0, 1)})


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"image": "9.png"}, {}, r"own.jsonl, line 1: expected an image at .*9.png, found none"),
        ({"image": "own.jsonl"}, {}, r"line 1: cannot read .*own.jsonl as an image \(cannot identify"),
        ({"prompt": "no place"}, {}, r"expected '<image>' once for each of its 1 image, got it 0 times in 'no place'. "
         r"Put it into the template, e.g. task.template='<image>\{prompt\}'"),
        ({"prompt": "<image> <image>"}, {}, r"for each of its 1 image, got it 2 times .*Write it once for each image"),
        ({"image": None}, {}, r"for each of its 0 images, got it 1 time .*Name the image of the row, or take"),
        ({}, {"placeholder": "<img>"}, r"expected '<img>' once .*another text that stands for an image is named by "
         "task.placeholder"),
        ({}, {"placeholder": " "}, "task.placeholder: expected a text such as <image>"),
        ({}, {"image_columns": ["picture"]}, r"task.image_columns: .*has no column 'picture'"),
        ({}, {"image_columns": []}, "task.image_columns: expected at least one column"),
        ({}, {"template": "<image> {promt}"}, r"task.template: .*no column 'promt'.* Did you mean 'prompt'\? A text "
         "without blanks is the prompt of every row"),
        ({}, {"template": "<image> {prompt!r}"}, r"task.template: \{prompt!r\}: expected the name of a column alone"),
        ({}, {"template": "<image> {}"}, r"task.template: \{\}: expected the name of a column"),
        ({}, {"template": "<image> {prompt"}, "is not a template"),
        ({}, {"target_columns": ["answers"]}, "task.target_columns: .*no column 'answers'.* Did you mean 'answer'"),
        ({}, {"label_columns": ["image"]}, "'image' is a label that the task writes itself"),
        ({}, {"encoding": "latin-17"}, "task.encoding"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_with_a_remedy(
    folder: Path, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(folder, [ROWS[0] | row], **changes).check()


def test_rows_without_a_text_are_left_out_and_counted(llava: Loaded, folder: Path) -> None:
    made = config(folder, [ROWS[0], ROWS[0] | {"question": ""}], template="<image>{question} {n}")
    data = make(made, llava[0], 256, llava[1])
    assert [row.prompt for row in data.prompts] == ["<image>brown 7"]
    assert data.counts["rows_left_out"] == 1
    assert data.notes[0].what == "rows without a question, left out"


def test_a_prompt_that_is_too_long_with_its_image_says_so(llava: Loaded, folder: Path) -> None:
    with pytest.raises(InterpError, match=r"line 1 has 21 tokens, the model reads 20 at most"):
        make(config(folder, ROWS[:1]), llava[0], 20, llava[1])


def test_a_model_that_sees_nothing_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "llama")
    model = ModelConfig(name="llama", source=str(folder), depends_on=str(folder))
    with pytest.raises(InterpError, match=r"\(llama\) has no image token. Choose a model that sees"):
        load_image_encoder(model, load_tokenizer(model)[1])


def test_an_odd_palette_is_no_warning(llava: Loaded, folder: Path) -> None:
    image(0).convert("P").save(folder / "0.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config(folder, ROWS[:1]).check()
