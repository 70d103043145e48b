"""`ModelSpec` against values by hand, and against the tensors of the models."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp.architectures import find_architecture, submodule
from interp.errors import InterpError
from interp.model.model_spec import TRANSFORMER_LENS_NAMES, ModelSpec
from interp.model.model_spec.attention_spec import read_norm
from tests.families import FAMILIES, auto_class, build
from tests.interp.model.spec_expected import EXPECTED, LLAMA

IDS = torch.tensor([[1, 17, 250, 33, 94, 301, 77, 12, 9, 45]])
ANYTHING = {"num_parameters", "initializer_range"}


@cache
def shapes(name: str) -> Any:
    """A family's model without weights."""
    family = FAMILIES[name]
    with torch.device("meta"):
        config = CONFIG_MAPPING[family.model_type](**family.config)
        model: nn.Module = auto_class(config).from_config(config)
        return model


@cache
def spec(name: str) -> ModelSpec:
    return ModelSpec.from_model(shapes(name))


@cache
def whole(name: str) -> Any:
    """A family's model with weights."""
    model: Any = build(name)
    for part in model.modules():  # where it cannot be set, patterns are given out as it is
        if hasattr(part, "set_attn_implementation") and part._can_set_attn_implementation():
            part.set_attn_implementation("eager")
    return model


def record_of(model: Any) -> Any:
    return find_architecture(model.config.model_type, model.config.get_text_config())


@pytest.mark.parametrize("name", EXPECTED)
def test_every_field_is_what_the_family_is(name: str) -> None:
    architecture, differences = EXPECTED[name]
    expected = {field.name: None for field in fields(ModelSpec)}
    expected |= LLAMA | dict(model_type=FAMILIES[name].model_type, architecture=architecture) | differences
    got = {field: getattr(spec(name), field) for field in expected if field not in ANYTHING}
    assert got == {
        field: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        for field, value in expected.items()
        if field not in ANYTHING
    }


def test_most_families_are_expected_by_hand() -> None:
    assert len({FAMILIES[name].model_type for name in EXPECTED}) >= 75


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_never_contradict_what_the_config_says(name: str) -> None:
    said, found = ModelSpec.from_config(shapes(name).config).as_dict(), spec(name).as_dict()
    assert {field: value for field, value in said.items() if value is not None} == {
        field: found[field] for field, value in said.items() if value is not None
    }
    assert None not in (said["hidden_size"], said["num_layers"], said["vocab_size"])


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_those_of_the_tensors(name: str) -> None:
    model, found = shapes(name), spec(name)
    record = record_of(model)
    assert model.get_submodule(record.head).weight.shape[0] == found.vocab_size
    assert len(model.get_submodule(record.layers)) == found.num_layers
    assert sum(p.numel() for p in model.parameters()) == found.num_parameters
    for index, layer in enumerate(model.get_submodule(record.layers)):
        for path, parameter in layer.named_parameters():
            last = ".".join(path.split(".")[-2:])
            if last == "k_proj.weight" and found.attention_types and found.attention_types[index] is not None:
                kv_heads = (found.num_kv_heads_by_layer or (found.num_kv_heads,) * 4)[index]
                head_dim = (found.head_dim_by_layer or (found.head_dim,) * 4)[index]
                assert kv_heads is not None and head_dim is not None
                assert parameter.shape[0] == kv_heads * head_dim, path


@pytest.mark.parametrize("name", FAMILIES)
def test_an_mlp_is_gated_where_there_is_a_third_matrix(name: str) -> None:
    """A plain MLP is 2 matrices of hidden x neurons, a gated one 3, however they are laid out."""
    model, found = shapes(name), spec(name)
    record = record_of(model)
    seen = False
    for layer in model.get_submodule(record.layers):
        part = dict(record.sublayers(layer)).get("mlp")
        if part is None or part.projection is None or submodule(layer, part.projection) is None:
            continue
        roots = {part.module.split(".")[0], part.projection.split(".")[0]}
        matrices = [p.numel() for path, p in layer.named_parameters() if path.split(".")[0] in roots and p.dim() == 2]
        assert sum(matrices) == (3 if found.gated_mlp else 2) * 32 * (found.mlp_size or 0)
        seen = True
    if not seen:  # a mixture in every layer, or no MLP: a gate has a name
        named = {piece for path, _ in model.named_parameters() for piece in path.split(".")}
        gates = {"gate_proj", "gate_up_proj", "v1", "input_linear", "w3"} & named
        assert bool(gates) == bool(found.gated_mlp) or found.model_type in ("zamba", "zamba2")


@pytest.mark.parametrize("name", FAMILIES)
def test_rotation_is_that_of_the_angles(name: str) -> None:
    """The angles fall from 1 by one factor, base ** (-2 / dimensions); other methods stretch them."""
    model, found = whole(name), spec(name)
    tables = [
        buffer
        for path, buffer in model.named_buffers()
        if path.endswith("inv_freq") and not any(tower in path for tower in ("vision", "audio", "original"))
    ]
    if not tables or found.positional_embedding == "alibi":
        assert found.positional_embedding != "rotary" or found.model_type in ("gptj", "codegen")
        return
    assert found.rotary_dim in {2 * int((table != 0).sum()) for table in tables}
    known = [found.rotary_base, *(found.rotary_base_by_layer or ()), _theta(model.config.get_text_config())]
    for table in tables:
        if len(table) > 1 and found.rope_scaling in (None, "proportional"):
            base = float(table[0] / table[1]) ** len(table)
            assert any(value is not None and base == pytest.approx(value, rel=1e-3) for value in known), base


def _theta(config: Any) -> float | None:
    """Granite's sliding-window variant keeps a table of the config's own base, which no layer uses."""
    return config.rope_parameters.get("rope_theta") if hasattr(config, "layer_rope_theta") else None


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_attention_sees_as_far_as_the_spec_says(name: str) -> None:
    model, found = whole(name), spec(name)
    given = getattr(model(input_ids=IDS, use_cache=False, output_attentions=True), "attentions", None) or ()
    length = IDS.shape[1]
    patterns = [pattern for pattern in given if pattern is not None and pattern.shape[-1] == length]
    types = [kind for kind in found.attention_types or () if kind is not None]
    for kind, pattern in zip(types, patterns, strict=True):
        seen = int((pattern[0, :, -1] > 0).any(0).sum())
        assert seen == {"full": length, "sliding": found.sliding_window}.get(kind, seen)
        assert seen < length or kind == "full"


@pytest.mark.parametrize("name", EXPECTED)
@torch.no_grad()
def test_embeddings_are_scaled_as_the_spec_says(name: str) -> None:
    model, found = whole(name), spec(name)
    record = record_of(model)
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen["hidden"] = args[0] if args else kwargs["hidden_states"]

    handle = model.get_submodule(record.layers)[0].register_forward_pre_hook(keep, with_kwargs=True)
    model(input_ids=IDS, use_cache=False)
    handle.remove()
    plain = model.get_submodule(record.embedding).weight[IDS]
    # Position embeddings are added, a norm changes every direction, and OPT 350m widens the vectors.
    other = found.embedding_norm or found.positional_embedding in ("absolute", "sinusoidal")
    scaled = plain * (found.embedding_scale or 1.0)
    same = plain.shape == seen["hidden"].shape and torch.allclose(seen["hidden"], scaled, atol=1e-5)
    assert same != other


@pytest.mark.parametrize(
    "name", ["llama", "gemma", "phi", "arcee", "openai-gpt", "gpt_bigcode", "starcoder2", "nanochat"]
)
@torch.no_grad()
def test_neurons_go_through_the_activation_that_the_spec_names(name: str) -> None:
    model, found = whole(name), spec(name)
    record = record_of(model)
    mlp = model.get_submodule(record.layers)[0].get_submodule(record.mlp.module)
    projection = model.get_submodule(record.layers)[0].get_submodule(record.mlp.projection)
    inputs = [child for child in mlp.children() if hasattr(child, "weight") and child is not projection]
    hidden = torch.randn(1, 5, 32)
    neurons = ACT2FN[found.activation](inputs[0](hidden))
    if found.gated_mlp:
        neurons = neurons * inputs[1](hidden)
    torch.testing.assert_close(mlp(hidden), projection(neurons), atol=1e-5, rtol=1e-5)


def test_a_config_without_a_model_says_what_it_can() -> None:
    found = ModelSpec.from_config(CONFIG_MAPPING["gemma2"](**FAMILIES["gemma2"].config))
    assert (found.hidden_size, found.num_kv_heads, found.head_dim, found.mlp_size) == (32, 2, 8, 48)
    assert (found.attention_softcap, found.final_softcap, found.parallel_residual) == (1.0, 2.0, False)
    assert (found.normalization, found.gated_mlp, found.qk_norm, found.num_parameters) == (None, None, None, None)


def test_a_family_without_a_record_is_looked_at() -> None:
    """What its modules show is said; how its layers sum is not."""
    model = build("qwen3_moe")
    model.config.model_type = "mystery"
    found, known = ModelSpec.from_model(model).as_dict(), spec("qwen3_moe").as_dict()
    # That no field of a strange config speaks of windows does not mean that there are none.
    unknown = {"parallel_residual", "norm_placement", "attention_types"}
    assert {k: v for k, v in found.items() if k not in unknown} == {
        k: v for k, v in {**known, "model_type": "mystery"}.items() if k not in unknown
    }
    assert all(found[name] is None for name in unknown)
    placed = ModelSpec.from_model(model, find_architecture("qwen3_moe", model.config))
    assert placed.as_dict() == {**known, "model_type": "mystery"}


def test_a_model_whose_modules_are_nowhere_has_the_spec_of_its_config() -> None:
    class Odd(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config, self.dtype = config, torch.float16

        def num_parameters(self) -> int:
            return 7

    config = CONFIG_MAPPING["llama"](**FAMILIES["llama"].config)
    found = ModelSpec.from_model(Odd(config))
    assert found == ModelSpec.from_config(config, architecture="Odd", num_parameters=7, dtype=torch.float16)


def test_a_norm_is_what_it_does_and_not_what_it_is_called() -> None:
    class LayerNorm(nn.Module):  # T5's is an RMS norm
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.rand(32)), 1e-4, offset

        def forward(self, hidden: Tensor) -> Tensor:
            scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return hidden * scale * (self.weight + self.offset)

    class Conditioned(nn.Module):
        def forward(self, hidden: Tensor, style: Tensor) -> Tensor:
            return hidden * style

    said = dict(norm_eps=1e-4, normalization="RMSNorm")
    assert read_norm(LayerNorm(0.0), 32) == dict(said, norm_weight_offset=False)
    assert read_norm(LayerNorm(1.0).to("meta"), 32) == dict(said, norm_weight_offset=True)
    assert read_norm(nn.LayerNorm(32, elementwise_affine=False, eps=1e-3), 32) == dict(
        norm_eps=1e-3, normalization="LayerNorm"
    )
    assert read_norm(Conditioned(), 32) == {}


def test_callers_know_better() -> None:
    model = build("llama")
    assert ModelSpec.from_model(model, num_layers=9).num_layers == 9
    assert ModelSpec.from_config(model.config, num_layers=9, mlp_size=1)["d_mlp"] == 1
    with pytest.raises(InterpError, match=r"no field 'n_layer'\. Did you mean .*'num_layers'"):
        ModelSpec.from_config(model.config, n_layer=9)


def test_weights_are_not_read_so_hooks_do_not_run_and_devices_do_not_matter() -> None:
    model = build("gemma2")
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: pytest.fail("a module was run"))
    assert ModelSpec.from_model(model) == spec("gemma2")  # which was built without weights


def test_several_special_tokens_and_quantization() -> None:
    config = CONFIG_MAPPING["llama"](**{**FAMILIES["llama"].config, "eos_token_id": [2, 3]})
    config.quantization_config = {"quant_method": "gptq"}
    config.dtype = torch.bfloat16
    found = ModelSpec.from_config(config)
    assert (found.eos_token_id, found.quantization, found.dtype) == ((2, 3), "gptq", torch.bfloat16)
    assert found.as_dict()["dtype"] == "bfloat16"


def test_fields_are_read_by_either_name() -> None:
    found = spec("gemma2")
    assert found["d_model"] == found["hidden_size"] == 32
    assert found["normalization_type"] == "RMSNorm" and found["uses_rms_norm"] is True
    assert (found["use_normalization_before_and_after"], found["use_local_attn"]) == (True, True)
    assert (found["is_stateful"], found["attn_only"]) == (False, False)
    assert spec("mamba")["is_stateful"] is True and spec("jamba")["is_stateful"] is True
    assert spec("nemotron_h")["is_stateful"] is True and spec("phi")["use_local_attn"] is False
    for name in TRANSFORMER_LENS_NAMES:
        assert found[name] == found[TRANSFORMER_LENS_NAMES[name]]
    with pytest.raises(InterpError, match=r"a model spec has no 'd_modell'\. Did you mean 'd_model'"):
        found["d_modell"]
    with pytest.raises(InterpError, match=r"has no '__class__'"):
        found["__class__"]


def test_nothing_known_stays_unknown_in_what_is_derived() -> None:
    empty = ModelSpec(model_type="x")
    assert [empty[name] for name in ("uses_rms_norm", "use_normalization_before_and_after", "is_stateful")] == [
        None
    ] * 3
    assert [empty[name] for name in ("use_local_attn", "attn_only")] == [None] * 2


def test_a_spec_cannot_be_written() -> None:
    with pytest.raises(FrozenInstanceError):
        spec("llama").num_layers = 3  # type: ignore[misc]


def test_a_spec_reads_as_a_table() -> None:
    found = ModelSpec(
        model_type="x", num_layers=3, rotary_base=1e6, qk_norm=True, gated_mlp=False, dtype=torch.float16,
        attention_types=("full", "full", None), eos_token_id=(1, 2),
    )  # fmt: skip
    assert str(found).splitlines() == [
        "model_type       x",
        "num_layers       3",
        "rotary_base      1e+06",
        "attention_types  2 x full, -",
        "qk_norm          yes",
        "gated_mlp        no",
        "eos_token_id     1, 2",
        "dtype            float16",
    ]
