"""A run on prompts with images, stage by stage: what depends on the images, and what becomes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForImageTextToText

from interp.errors import InterpError
from interp.model.processor import load_processor
from interp.positions import Position
from interp.prompts.images import opened
from pipeline.artifacts.tokens import load_prompts, load_tokens, prompts_digest
from pipeline.config.model import ModelConfig
from pipeline.config.section import load
from pipeline.files import file_digest
from pipeline.project import CODE
from pipeline.stages import collect, tokenize
from pipeline.stages.code import IMAGES, write_code
from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.lens import __main__ as lens
from pipeline.stages.loading import load_model, media_of
from pipeline.stages.report import __main__ as report
from pipeline.store import open_store
from pipeline.validate import validate
from tests.pipeline.config.test_conf import composed
from tests.pipeline.stages.page import Element, parse
from tests.vision import image, vision_folder_of

SIZES = [(48, 40), (16, 30), (20, 20), (300, 500)]
ROWS = [
    {"image": ["0.png"], "question": "brown", "answer": "fox"},
    {"image": ["1.png", "2.png"], "question": "dog", "answer": "book"},
    {"image": ["3.png"], "question": "king", "answer": "king"},
    {"image": ["0.png"], "question": "lazy", "answer": "dog"},
    {"image": ["2.png", "0.png"], "question": "quick", "answer": "libro"},
]
POSITIONS = ["last", "image[0].last", "image.all", "question.last"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_folder_of("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[..., Path]:
    """`make_run(*overrides)`: a folder with images of its own beside it, and a run folder that nothing has run in."""

    def make(*overrides: str) -> Path:
        top = tmp_path_factory.mktemp("run")
        for number, (height, width) in enumerate(SIZES):
            image(number, height, width).save(top / f"{number}.png")
        lines = [json.dumps({**row, "marks": "<image>" * len(row["image"])}) for row in ROWS]
        (top / "own.jsonl").write_text("\n".join(lines))
        values = composed(
            "task=image_prompts", f"task.source={top / 'own.jsonl'}", "task.template='{marks}Look: {question}!'",
            f"model.source={model}", f"collect.positions={json.dumps(POSITIONS)}", "collect.block_size=2",
            "lens=[logit_lens,patchscope_identity,knockout]",
            "lens.patchscope_identity.source_position='image[0].last'",
            'lens.knockout.blocks=["image.all","image[0].last"]', "lens.knockout.window=2",
            "evaluate.bootstrap_samples=50", *overrides,
        )  # fmt: skip
        validate(values)
        folder = top / "folder"
        folder.mkdir()
        for package in ("interp", "pipeline"):
            (folder / package).symlink_to(CODE / package)
        OmegaConf.save(OmegaConf.create(values), folder / "params.yaml")
        return folder

    return make


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path]) -> Path:
    """A finished run folder, whose images were taken away after stage `tokenize`."""
    folder = make_run()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokenize.tokenize()
        for file in folder.parent.glob("*.png"):
            file.unlink()
        collect.collect_activations()
        lens.run()
        evaluate.run()
        report.run()
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Element:
    return parse(run / "report/index.html")


def test_the_tokens_hold_the_images_by_their_content(run: Path) -> None:
    rows = load_prompts(run / "tokens")
    names = [name for row in rows for name in row.images]
    assert {file.name for file in (run / "tokens/images").iterdir()} == set(names)
    assert len(set(names)) == 4
    for name in set(names):
        content = (run / "tokens/images" / name).read_bytes()
        assert name == f"{hashlib.sha256(content).hexdigest()[:32]}.png"
    manifest = load_tokens(run / "tokens").manifest
    assert manifest["prompts_digest"] == prompts_digest(rows)
    for path in (run / "tokens").rglob("*"):
        assert path.is_dir() or str(run.parent).encode() not in path.read_bytes()


def test_the_store_holds_what_transformers_computes(run: Path, model: Path) -> None:
    module, processor = AutoModelForImageTextToText.from_pretrained(model), load_processor(model)
    store = open_store(run / "activations.zarr", verify=True)
    assert store.attributes["position_names"][:2] == ["last", "image[0].last"]
    assert len(store.attributes["processor_digest"]) == 64
    stored, positions = store.read("resid_post"), store.static("positions")
    for number, row in enumerate(load_prompts(run / "tokens")):
        pictures = [opened(run / "tokens/images" / name) for name in row.images]
        inputs = processor(text=[row.prompt], images=[pictures], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == list(row.input_ids)
        with torch.no_grad():
            states = torch.stack(module(**inputs, output_hidden_states=True).hidden_states[1:-1])[:, 0]
        places = [place for text in POSITIONS for place in Position.parse(text).resolve(len(row.input_ids), row.spans)]
        assert [place for place in positions[number] if place >= 0] == places
        kept = stored[:-1, number, positions[number] >= 0]
        np.testing.assert_allclose(kept, states[:, places].numpy(), rtol=1e-4, atol=1e-5)


def test_the_lens_reads_the_last_layer_as_the_model_speaks(run: Path, model: Path) -> None:
    module, processor = AutoModelForImageTextToText.from_pretrained(model), load_processor(model)
    read = open_store(run / "lens.zarr/logit_lens").read("top_ids")[:, -1, 0]
    for number, row in enumerate(load_prompts(run / "tokens")):
        pictures = [opened(run / "tokens/images" / name) for name in row.images]
        with torch.no_grad():
            logits = module(**processor(text=[row.prompt], images=[pictures], return_tensors="pt")).logits
        assert int(logits[0, -1].argmax()) == read[number]


def test_attention_to_an_image_is_cut_as_by_hand(run: Path, model: Path) -> None:
    """In a window of two layers: as the model's own attention with a mask that hides the image."""
    module, processor = (
        AutoModelForImageTextToText.from_pretrained(model, attn_implementation="eager"),
        load_processor(model),
    )
    store = open_store(run / "lens.zarr/knockout")
    assert store.attributes["blocks"] == ["image.all", "image[0].last"]
    row = load_prompts(run / "tokens")[1]
    blocked = Position.parse("image.all").resolve(len(row.input_ids), row.spans)
    layers = module.model.language_model.layers

    def hide(attention: torch.nn.Module, args: tuple, given: dict) -> tuple:
        mask = given["attention_mask"].clone()
        mask[:, :, -1, blocked] = torch.finfo(mask.dtype).min
        return args, given | {"attention_mask": mask}

    hooks = [layer.self_attn.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[:2]]
    pictures = [opened(run / "tokens/images" / name) for name in row.images]
    with torch.no_grad():
        logits = module(**processor(text=[row.prompt], images=[pictures], return_tensors="pt")).logits[0, -1]
    for hook in hooks:
        hook.remove()
    log_probs = logits.log_softmax(-1)
    read = store.read("top_ids", example=1)[0, 0], store.read("top_log_prob", example=1)[0, 0]
    np.testing.assert_array_equal(read[0], logits.topk(5).indices.numpy())
    np.testing.assert_allclose(read[1], log_probs.topk(5).values.numpy(), rtol=1e-4, atol=1e-5)


def test_the_page_shows_each_image_beside_its_own_curve(run: Path, page: Element) -> None:
    rows = load_prompts(run / "tokens")
    for number, name in enumerate(["logit_lens", "patchscope_identity", "knockout"]):
        section = page.all("section", "lens")[number]
        log_prob = open_store(run / "lens.zarr" / name).read("log_prob")
        boxes = section.all("details", "example-box")
        for box, example in zip(boxes, (0, 2, 4), strict=True):
            shown = box.all("img")
            assert len(shown) == len(rows[example].images)
            assert all((e.attributes["src"] or "").startswith("data:image/") for e in shown)
            (figure,) = box.all("figure", "of-example")
            first = log_prob[example].reshape(len(log_prob[example]), -1)[:, 0]  # of the first group, or block
            curve, of = np.exp(first), "without every token of “image”" if name == "knockout" else "answer"
            said = figure.all("svg")[0].attributes["aria-label"] or ""
            assert f"{of}: {curve[0]:.2g} first, highest {curve.max():.2g} at" in said
    alone, tall, pair = ([e.attributes for e in box.all("img")] for box in boxes)
    assert [e["alt"] for e in alone] == ["The prompt’s image, 0.png, 40 × 48 pixels"]
    assert [e["alt"] for e in pair] == ["Image 1 of 2, 2.png, 20 × 20 pixels", "Image 2 of 2, 0.png, 40 × 48 pixels"]
    assert (tall[0]["width"], tall[0]["height"]) == ("224", "134"), "a small copy"
    assert "class" not in tall[0] and pair[0]["class"] == "tiny"
    assert (run / "report/index.html").stat().st_size < 500_000


def test_a_changed_image_is_another_run(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What DVC compares: the digest in `code/tokenize.json`, and the tokens that the changed image gives."""
    folder = make_run()
    monkeypatch.chdir(folder)

    def said() -> dict[str, str]:
        write_code()
        found: dict[str, str] = json.loads(Path("code/tokenize.json").read_text())
        return found

    before = said()
    assert IMAGES in before and IMAGES not in json.loads(Path("code/collect.json").read_text())
    tokenize.tokenize()
    first = file_digest("tokens")
    tokenize.tokenize()
    assert file_digest("tokens") == first, "the same bytes twice"
    image(77, 48, 40).save(folder.parent / "0.png")  # of the same size, and so with the same tokens
    after = said()
    assert after.pop(IMAGES) != before.pop(IMAGES) and after == before
    ids, digest = [list(row.input_ids) for row in load_prompts()], prompts_digest(load_prompts())
    tokenize.tokenize()
    assert [list(row.input_ids) for row in load_prompts()] == ids
    assert prompts_digest(load_prompts()) != digest
    (folder.parent / "0.png").unlink()
    with pytest.raises(InterpError, match=r"expected an image at .*0\.png, found none"):
        write_code()


def test_images_that_are_lost_or_read_otherwise_are_refused(
    make_run: Callable[..., Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own)
    monkeypatch.chdir(make_run(f"model.source={own}"))
    tokenize.tokenize()
    [row, *_] = rows = load_prompts()
    with pytest.raises(InterpError, match=r"it has changed\. Run the stage `tokenize` again"):
        media_of(load_model(load(ModelConfig)), [replace(row, input_ids=[*row.input_ids, 7])])
    collect.collect_activations()
    settings = json.loads((own / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.2, 0.3]
    (own / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InterpError, match="was collected with another image processor"):
        lens.run()
    (Path("tokens/images") / rows[0].images[0]).unlink()
    with pytest.raises(InterpError, match=r"expected the image tokens/images/.*, found none. Run the stage `tokenize`"):
        collect.collect_activations()
