"""Each example of easyroutine's page runs, and gives what the page says; what it says of each method holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from interp import InterpError
from interp.compat.easyroutine import ExtractionConfig, HookedModel, HookedModelConfig
from tests.interp.compat.easyroutine.plain import EXAMPLES, padded, plain_keys

Hooked = Callable[[str], HookedModel]
INPUTS = {"input_ids": torch.tensor([[101, 124, 125, 102]]), "attention_mask": torch.tensor([[1, 1, 1, 1]])}


def test_the_example_of_forward(hooked: Hooked) -> None:
    model = hooked("llama")
    for call in (model.forward, model):
        cache = call(INPUTS, target_token_positions=["last"], extract_resid_out=True)
        want = plain_keys(model.hf_model, [101, 124, 125, 102])
        torch.testing.assert_close(cache["resid_out_0"], want["resid_out_0"][None, -1:], rtol=1e-4, atol=1e-5)
        assert torch.equal(cache["input_ids"], INPUTS["input_ids"]) and cache["mapping_index"] == {"last": [0]}
        torch.testing.assert_close(cache["logits"], want["logits"][None, -1], rtol=1e-4, atol=1e-4)
    bare = model.forward(INPUTS)  # of what the page lists as defaults
    assert set(bare.keys()) == {"logits", "input_ids", "mapping_index", "token_dict"}


def test_the_example_of_extract_cache(hooked: Hooked) -> None:
    model = hooked("llama")
    dataloader = [
        {**INPUTS, "labels": torch.tensor([1])},
        {**padded(EXAMPLES, "left"), "labels": torch.tensor([2, 3, 4])},
    ]
    cache = model.extract_cache(
        dataloader, extracted_token_position=["last"], batch_saver=lambda x: {"labels": x["labels"]}
    )
    assert cache["labels"].tolist() == [1, 2, 3, 4] and cache["mapping_index"] == {"last": [0]}
    for row, ids in enumerate([[101, 124, 125, 102], *EXAMPLES]):
        want = plain_keys(model.hf_model, ids)["resid_out_0"][-1:]
        torch.testing.assert_close(cache["resid_out_0"][row], want, rtol=1e-4, atol=1e-5)
    assert "input_ids" not in cache and "input_ids" in model.extract_cache(dataloader, save_input_ids=True)
    same = model.extract_cache(dataloader, target_token_positions=["last"], extraction_config=ExtractionConfig())
    assert not any(key.startswith("resid") for key in same)  # a config that asks for nothing is taken at its word


def test_any_iterable_is_a_dataloader(hooked: Hooked) -> None:
    model = hooked("llama")
    rows = [{"input_ids": torch.tensor([1, token, 9]), "answers": f"a{token}"} for token in (5, 6, 7)]
    loader = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    saver: Callable[[Any], Any] = lambda batch: {"answers": batch["answers"]}  # noqa: E731
    seen: list[dict[str, Any]] = []
    first = model.extract_cache(loader, ["all"], batch_saver=lambda batch: seen.append(batch), extract_attn_in=True)
    assert [list(batch) for batch in seen] == [["answers"], ["answers"]]
    for other in (iter(rows), (dict(row) for row in rows), loader):
        cache = model.extract_cache(other, ["all"], batch_saver=saver, extract_attn_in=True)
        torch.testing.assert_close(cache["attn_in_2"], first["attn_in_2"], rtol=1e-4, atol=1e-5)
        assert cache["answers"] == ["a5", "a6", "a7"]
    assert cache["metadata"]["target_token_positions"] == ["all"]
    assert cache["metadata"]["extraction_config"]["extract_attn_in"] is True
    counted = ("logits", lambda old, new: len(new) if old is None else old + len(new))
    joined = model.extract_cache(loader, register_aggregation=counted, batch_saver=saver)
    assert joined["logits"] == 3
    with pytest.raises(InterpError, match="no batch"):
        model.extract_cache([])


def test_what_was_taken_is_on_the_cpu_when_it_should_be(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    model, moved = hooked("llama"), []
    kind = type(model.forward(INPUTS))
    real = kind.cpu
    monkeypatch.setattr(kind, "cpu", lambda cache: moved.append(list(cache)) or real(cache))
    model.extract_cache([INPUTS], move_to_cpu_after_forward=False)
    assert not moved
    model.extract_cache([INPUTS, INPUTS])
    assert len([keys for keys in moved if "resid_out_0" in keys]) == 2
    moved.clear()
    model.forward(INPUTS, move_to_cpu=True)
    assert moved[0] == ["logits", "mapping_index", "token_dict", "input_ids"]


def test_the_example_of_get_module_from_string(hooked: Hooked) -> None:
    model = hooked("llama")
    own = model.hf_model.model.layers[0].self_attn
    assert model.get_module_from_string("model.layers[0].self_attn") is own
    assert model.get_module_from_string("model.layers.0.self_attn") is own
    with pytest.raises(InterpError, match=r"Did you mean 'model.layers.0.self_attn'"):
        model.get_module_from_string("model.layers[0].selfattn")
    with pytest.raises(InterpError, match=r"no module 'model.layers\[7\]'"):
        model.get_module_from_string("model.layers[7]")


def test_the_example_of_register_forward_hook(hooked: Hooked) -> None:
    model, seen = hooked("llama"), []

    def hook_function(module: Any, input: Any, output: Any) -> None:
        seen.append((type(module).__name__, output[0].shape))

    before = model.forward(INPUTS)["logits"]
    assert model.register_forward_hook("model.layers[0].self_attn", hook_function) is None  # type: ignore[func-returns-value]
    try:
        assert torch.equal(model.forward(INPUTS)["logits"], before)
        model.extract_cache([INPUTS, INPUTS], ["all"], extract_head_keys=True, extract_head_out=True)
        assert seen == [("LlamaAttention", (1, 4, 32))] * 3
        model.register_forward_hook("model.layers[1].mlp", lambda module, input, output: output * 0)
        assert not torch.equal(model.forward(INPUTS)["logits"], before)
        with pytest.raises(InterpError):
            model.forward(INPUTS, ["nope"])
    finally:
        model.clean_forward_hooks()
    assert torch.equal(model.forward(INPUTS)["logits"], before) and len(seen) == 4
    with pytest.raises(InterpError, match="no module"):
        model.register_forward_hook("model.layers[0].nothing", hook_function)


def test_the_example_of_to_string_tokens(hooked: Hooked) -> None:
    model = hooked("llama")
    ids = model.get_text_tokenizer()("king → hello")["input_ids"]
    tokens = model.to_string_tokens(ids)
    assert tokens == model.to_string_tokens(torch.tensor(ids)) == model.to_string_tokens(torch.tensor([ids]))
    assert tokens[0] == "<s>" and "".join(tokens).startswith("<s>king ") and "�" not in "".join(tokens)
    assert len(set(tokens[4:7])) == 3  # the bytes of an arrow are told apart
    for wrong, message in ((torch.tensor([[1, 2], [3, 4]]), "one example"), ([4000], "no token")):
        with pytest.raises(InterpError, match=message):
            model.to_string_tokens(wrong)  # type: ignore[arg-type]


def test_what_the_model_gives_of_itself(hooked: Hooked) -> None:
    model = hooked("llama")
    assert model.device() == torch.device("cpu")
    assert model.get_processor() is None and not model.is_multimodal()
    assert model.get_text_tokenizer() is model.get_tokenizer() is model.standardized.tokenizer
    assert (
        model.get_lm_head() is model.hf_model.lm_head.weight and model.get_last_layernorm() is model.hf_model.model.norm
    )
    model.hf_model.train()
    assert model.eval() is None and not model.hf_model.training  # type: ignore[func-returns-value]
    assert repr(model).startswith("HookedModel(model_name=LlamaForCausalLM):\nLlamaForCausalLM(")


def test_predict(hooked: Hooked) -> None:
    model = hooked("llama")
    one = model.predict(5, inputs=INPUTS)
    probabilities = plain_keys(model.hf_model, [101, 124, 125, 102])["logits"][-1].softmax(-1)
    values, ids = probabilities.topk(5)
    assert isinstance(one, dict) and list(one) == [text.strip() for text in model.to_string_tokens(ids)]
    torch.testing.assert_close(torch.tensor(list(one.values())), values, rtol=1e-4, atol=1e-6)
    several = model.predict(3, strip=False, inputs=padded(EXAMPLES, "left"))
    assert isinstance(several, list) and [len(each) for each in several] == [3, 3, 3]
    with pytest.raises(InterpError, match="k is 1 to 400"):
        model.predict(401, inputs=INPUTS)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "llama"])
def test_any_folder_loads(model_folder: Callable[[str], Path], family: str) -> None:
    folder = str(model_folder(family))
    config = HookedModelConfig(model_name=folder)
    assert (config.device_map, config.torch_dtype, config.attn_implementation, config.batch_size) == (
        "balanced", torch.bfloat16, "custom_eager", 1,
    )  # fmt: skip
    if family == "llama":  # each way that the page shows
        for made in (HookedModel(config), HookedModel.from_pretrained(folder)):
            assert made.hf_model.dtype == torch.bfloat16 and made.config.model_name == folder
            assert made.hf_model.config._attn_implementation == "eager"
    model = HookedModel.from_pretrained(folder, torch_dtype=torch.float32, device_map="cpu", batch_size=2)
    cache = model.forward(padded(EXAMPLES, "left"), ["last"], extract_attn_pattern=True, extract_resid_out=True)
    alone = model.forward(padded(EXAMPLES[1:2], "left"), ["last"], extract_resid_out=True)
    torch.testing.assert_close(cache["resid_out_3"][1:2], alone["resid_out_3"], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused(hooked: Hooked, tmp_path: Path) -> None:
    model = hooked("llama")
    for call, message in (
        (lambda: model.forward(INPUTS, extract_resid_outs=True), "Did you mean 'extract_resid_out'"),
        (lambda: model.extract_cache([INPUTS], extract_resid_ou=True), "no argument 'extract_resid_ou'"),
        (lambda: model.forward(INPUTS, ["last"], extracted_token_position=["last"]), "the same"),
        (lambda: model.forward(INPUTS, split_positions=[1], pivot_positions=[1]), "the same"),
        (lambda: model.forward({"attention_mask": INPUTS["attention_mask"]}), "expected input_ids"),
        (lambda: model.forward({"input_ids": torch.tensor([[1, 999]])}), "999"),
        (lambda: HookedModel.from_pretrained(str(tmp_path / "nothing")), "nothing"),
        (lambda: HookedModelConfig("x", attn_implementation="custom"), "Did you mean 'custom_eager'"),
        (lambda: HookedModelConfig("x", batch_size=0), "at least 1"),
    ):
        with pytest.raises(InterpError, match=message):
            call()
    assert not model.standardized.list_hooks()


def test_nothing_is_left_behind_by_a_run_that_fails(hooked: Hooked) -> None:
    model = hooked("llama")

    def hooks() -> list[Any]:
        return [[*part._forward_hooks, *part._forward_pre_hooks] for part in model.hf_model.modules()]

    before, at_first = model.forward(INPUTS, ["all"], extract_attn_pattern=True), hooks()

    def failing(module: Any, input: Any, output: Any) -> None:
        raise ZeroDivisionError

    model.register_forward_hook("model.layers[2].mlp", failing)
    try:
        with pytest.raises(ZeroDivisionError):
            model.forward(INPUTS, ["all"], extract_attn_pattern=True, extract_resid_mid=True)
        with pytest.raises(ZeroDivisionError):
            model.extract_cache([INPUTS], ["all"], extract_attn_pattern=True)
    finally:
        model.clean_forward_hooks()
    assert hooks() == at_first
    after = model.forward(INPUTS, ["all"], extract_attn_pattern=True)
    for key in ("logits", "pattern_L3H3"):
        assert torch.equal(before[key], after[key])
    with torch.enable_grad():
        assert not model.forward(INPUTS)["logits"].requires_grad and torch.is_grad_enabled()
