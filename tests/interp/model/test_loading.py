"""Loading from folders, the hub and memory; what is missing is named; digests tell models apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from interp import StandardizedTransformer
from interp.errors import InterpError
from tests.interp.reference import IDS, build, plain, read_all, wrapped
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_load_from_a_folder(family: str, model_folder: Callable[[str], Path]) -> None:
    model = StandardizedTransformer(model_folder(family))
    expected = tiny_model(family)(input_ids=IDS).logits
    assert torch.equal(read_all(model, ["logits"], input_ids=IDS)["logits"], expected)
    for text in ("hello world", "x1135  1135\n\nit's", "Привет мир", "café e\u0301"):
        assert model.tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert model.digest() == wrapped(family).digest()


def test_load_options(model_folder: Callable[[str], Path]) -> None:
    model = StandardizedTransformer(
        str(model_folder("qwen2")), dtype="bfloat16", device_map="auto", attn_implementation="eager"
    )
    assert model.dtype == torch.bfloat16
    assert model.attn_implementation == "eager"
    other = StandardizedTransformer(model_folder("qwen2"), tokenizer=str(model_folder("gpt2")), dtype=torch.float64)
    assert other.dtype == torch.float64
    with pytest.raises(InterpError, match=r"got 'bfloat'. Did you mean 'bfloat16'"):
        StandardizedTransformer(model_folder("qwen2"), dtype="bfloat")


@torch.no_grad()
def test_weights_kept_elsewhere_between_calls() -> None:
    """accelerate's offloading: parameters are on the meta device until their module runs."""
    module = accelerate.cpu_offload(build("llama"), execution_device="cpu")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    assert next(module.parameters()).device.type == "meta"
    assert model.device == torch.device("cpu")
    values = read_all(model, ["resid_post.3", "logits"], input_ids=IDS)
    assert torch.equal(values["logits"], plain("llama")(input_ids=IDS).logits)
    assert torch.equal(model.readout(values["resid_post.3"]), values["logits"])
    assert model.digest() == wrapped("llama").digest()


def test_digest_tells_models_apart() -> None:
    reference = wrapped("gpt2").digest()
    assert len(reference) == 64
    assert StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer()).digest() == reference

    nudged = tiny_model("gpt2")
    with torch.no_grad():
        nudged.get_submodule("transformer.h.3.mlp.c_proj").bias[7] += 1e-6
    others = [nudged, tiny_model("gpt2", layer_norm_epsilon=1e-4), tiny_model("gpt2").to(torch.bfloat16)]
    digests = {StandardizedTransformer(other, tokenizer=tiny_tokenizer()).digest() for other in others}
    assert len(digests | {reference}) == 4


def damaged(family: str, folder: Path, model_folder: Callable[[str], Path]) -> Path:
    """A copy of a model folder, to be spoilt."""
    for file in model_folder(family).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_no_such_folder(tmp_path: Path) -> None:
    for source in (tmp_path / "none", str(tmp_path / "none"), "./none-such-folder"):
        with pytest.raises(InterpError, match=r"expected a folder with a model at /.*there is none.*hf download"):
            StandardizedTransformer(source)
    with pytest.raises(InterpError, match=r"found no config.json.*hf download"):
        StandardizedTransformer(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(InterpError, match=r"model.bin, found a file"):
        StandardizedTransformer(tmp_path / "model.bin")


def test_a_folder_without_safetensors(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = damaged("llama", tmp_path, model_folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InterpError, match=r"expected weights as \*.safetensors .*only pytorch_model.bin, .*pickles"):
        StandardizedTransformer(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InterpError, match=r"found config.json only. Get them with `hf download"):
        StandardizedTransformer(folder)


def test_incomplete_weights(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = damaged("llama", tmp_path, model_folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InterpError, match=r"incomplete: 1 of LlamaForCausalLM's tensors .* model.layers.2.mlp.up_proj"):
        StandardizedTransformer(folder)
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00torn")
    with pytest.raises(InterpError, match="from its folder"):
        StandardizedTransformer(folder)


def test_a_folder_without_a_tokenizer(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = damaged("llama", tmp_path, model_folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InterpError, match=r"no tokenizer in .*tokenizer.json.*pass tokenizer="):
        StandardizedTransformer(folder)
    StandardizedTransformer(folder, tokenizer=tiny_tokenizer())


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InterpError, match=r"'nobody/nothing' at revision 'v1': .*hf download nobody/nothing --revision v1"
    ):
        StandardizedTransformer("nobody/nothing", revision="v1")


def test_what_a_model_in_memory_needs() -> None:
    with pytest.raises(InterpError, match="needs its tokenizer"):
        StandardizedTransformer(build("llama"))
    with pytest.raises(InterpError, match="dtype, device_map: of no use with a model in memory"):
        StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), dtype="float32", device_map="cpu")
    with pytest.raises(InterpError, match="expected a transformers model, which has a config, got Linear"):
        StandardizedTransformer(torch.nn.Linear(2, 2), tokenizer=tiny_tokenizer())
    with pytest.raises(InterpError, match=r"LlamaModel has no layers at 'model.layers'.*AutoModelForCausalLM"):
        StandardizedTransformer(build("llama").get_submodule("model"), tokenizer=tiny_tokenizer())


@torch.no_grad()
def test_keyword_arguments_of_from_pretrained_pass_through(
    tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("llama")
    given: dict[str, object] = {}
    original = AutoModelForCausalLM.from_pretrained

    def recording(name: str, **options: object) -> object:
        given.update(options)
        return original(name, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", recording)
    model = StandardizedTransformer(
        folder, torch_dtype="float64", local_files_only=True, offload_folder=str(tmp_path), rms_norm_eps=0.5
    )
    assert given["local_files_only"] is True
    assert given["offload_folder"] == str(tmp_path)
    assert given["dtype"] == model.dtype == torch.float64
    assert model._module.config.rms_norm_eps == 0.5  # type: ignore[union-attr]
    expected = tiny_model("llama", rms_norm_eps=0.5).double()(input_ids=IDS).logits
    torch.testing.assert_close(read_all(model, ["logits"], input_ids=IDS)["logits"], expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_keywords_that_transformers_takes_are_taken(model_folder: Callable[[str], Path]) -> None:
    """Those too that it takes and does nothing with, as scripts of years give them; and none that it does not take."""
    old = dict(low_cpu_mem_usage=True, offload_state_dict=False, mirror=None, _fast_init=True, from_tf=False)
    model = StandardizedTransformer(model_folder("llama"), **old, use_kernels=False, disable_mmap=True, variant=None)
    expected = tiny_model("llama")(input_ids=IDS).logits
    assert torch.equal(read_all(model, ["logits"], input_ids=IDS)["logits"], expected)
    AutoModelForCausalLM.from_pretrained(model_folder("llama"), **old)
    for name in ("_from_auto", "output_loading_info", "pretrained_model_name_or_path_"):
        with pytest.raises(InterpError, match="unknown keyword argument"):
            StandardizedTransformer(model_folder("llama"), **{name: True})


def test_a_config_of_one_s_own(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("qwen2")
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 7.0}
    model = StandardizedTransformer(folder, config=config)
    assert model._module.config.rope_parameters["rope_theta"] == 7.0  # type: ignore[union-attr]
    by_path = StandardizedTransformer(folder, config=str(folder))
    assert by_path.digest() == StandardizedTransformer(folder).digest() != model.digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atn_implementation": "eager"}, r"unknown keyword argument 'atn_implementation'.*Did you mean 'attn_impl"),
        ({"rms_nrm_eps": 0.5}, r"unknown keyword argument 'rms_nrm_eps'.*'rms_norm_eps'"),
        ({"verfy": False}, "unknown keyword argument 'verfy'"),
        ({"output_loading_info": True}, "unknown keyword argument 'output_loading_info'"),
    ],
)
def test_an_unknown_keyword_argument(
    options: dict[str, object], message: str, model_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(InterpError, match=message):
        StandardizedTransformer(model_folder("llama"), **options)
    with pytest.raises(InterpError, match=message):
        StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), **options)


def test_what_nnterp_takes_is_taken(model_folder: Callable[[str], Path]) -> None:
    model = StandardizedTransformer(
        model_folder("llama"),
        check_renaming=False,
        allow_dispatch=True,
        enable_attention_probs=True,
        check_attn_probs_with_trace=False,
        allow_multimodal=True,
        tokenizer_kwargs={"padding_side": "right", "model_max_length": 17},
    )
    assert model.tokenizer.model_max_length == 17
    assert model.tokenizer.padding_side == "left"  # what reads the last token counts on it
    assert model.has("pattern.0")


def test_a_model_that_runs_elsewhere_has_no_weights_here(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = StandardizedTransformer(model_folder("gpt2"), remote=True)
    assert {parameter.device.type for parameter in model._module.parameters()} == {"meta"}
    assert (model.num_layers, model.hidden_size) == (4, 32)
    assert model.repo_id == str(model_folder("gpt2"))
    with pytest.raises(InterpError, match="no local folder of that name, and the hub gave"):
        StandardizedTransformer("nobody/nothing", remote=True, tokenizer=tiny_tokenizer())
