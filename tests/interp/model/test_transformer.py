"""`StandardizedTransformer` against plain transformers with torch hooks, for every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.sites import parse_sites
from tests.interp.reference import CASES, IDS, PARALLEL, plain, read_all, reading, wrapped, writing
from tests.tiny import FAMILIES, HIDDEN_SIZE, NUM_LAYERS, VOCABULARY_SIZE, tiny_tokenizer

KINDS = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
RAGGED = [[1, 40, 41], [1, 17, 250, 33, 94, 301, 77, 210, 9, 11], [1, 300, 6, 120, 44, 91, 3]]


def sites_of(case: str) -> list[str]:
    kinds = [kind for kind in KINDS if kind != "resid_mid" or case not in PARALLEL]
    return [
        str(s) for s in parse_sites(["embed", *(f"{kind}.*" for kind in kinds), "final_norm", "logits"], NUM_LAYERS)
    ]


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_site_is_what_a_torch_hook_sees(case: str) -> None:
    sites = sites_of(case)
    values = read_all(wrapped(case), sites, input_ids=IDS)
    with reading(case, sites) as expected:
        plain(case)(input_ids=IDS)
    assert list(values) == sites
    for site in sites:
        torch.testing.assert_close(values[site], expected[site], atol=0, rtol=0, msg=f"{case} {site}")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_identities(case: str) -> None:
    model = wrapped(case)
    v = read_all(model, sites_of(case), input_ids=IDS)
    assert torch.equal(v["embed"], v["resid_pre.0"])
    hidden_states = plain(case)(input_ids=IDS, output_hidden_states=True).hidden_states
    for i in range(NUM_LAYERS):
        assert torch.equal(v[f"resid_pre.{i}"], hidden_states[i])
        added = v[f"resid_pre.{i}"] + v[f"attn_out.{i}"]
        if case not in PARALLEL:
            torch.testing.assert_close(v[f"resid_mid.{i}"], added, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(v[f"resid_post.{i}"], added + v[f"mlp_out.{i}"], atol=1e-6, rtol=1e-6)
        if i + 1 < NUM_LAYERS:
            assert torch.equal(v[f"resid_post.{i}"], v[f"resid_pre.{i + 1}"])
    assert torch.equal(v["final_norm"], hidden_states[-1])
    assert torch.equal(model.readout(v[f"resid_post.{NUM_LAYERS - 1}"]), v["logits"])


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_accessors_are_the_modules_own_values(case: str) -> None:
    model = wrapped(case)
    values: dict[str, Tensor] = {}
    with model.trace(input_ids=IDS):
        values["layers_input"] = model.layers_input[1].clone()
        values["attentions_input"] = model.attentions_input[1].clone()
        values["attentions_output"] = model.attentions_output[-3].clone()
        values["mlps_input"] = model.mlps_input[1].clone()
        values["mlps_output"] = model.mlps_output[1].clone()
        values["layers_output"] = model.layers_output[1].clone()
        values["logits"] = model.logits.clone()
        values["next_token_probs"] = model.next_token_probs.clone()
    sites = {"layers_input": "resid_pre.1", "attentions_input": "attn_in.1", "mlps_input": "mlp_in.1"}
    sites |= {"layers_output": "resid_post.1", "logits": "logits"}
    if case != "gemma2":  # where what modules return is added as it is
        sites |= {"attentions_output": "attn_out.1", "mlps_output": "mlp_out.1"}
    with reading(case, list(sites.values())) as expected:
        plain(case)(input_ids=IDS)
    for name, site in sites.items():
        assert torch.equal(values[name], expected[site]), name
    torch.testing.assert_close(values["next_token_probs"], expected["logits"][:, -1].softmax(-1))
    if case == "gemma2":
        layer = plain(case).get_submodule("model.layers.1")
        with reading(case, ["attn_out.1", "mlp_out.1"]) as added:
            plain(case)(input_ids=IDS)
        assert torch.equal(layer.post_attention_layernorm(values["attentions_output"]), added["attn_out.1"])
        assert torch.equal(layer.post_feedforward_layernorm(values["mlps_output"]), added["mlp_out.1"])


@pytest.mark.parametrize("case", CASES)
def test_sizes(case: str) -> None:
    model = wrapped(case)
    assert (model.num_layers, len(model.layers), len(model.layers_output)) == (NUM_LAYERS,) * 3
    assert (model.num_heads, model.head_dim, model.hidden_size) == (4, 8, HIDDEN_SIZE)
    assert model.num_kv_heads == (4 if case.startswith("gpt") else 2)
    assert model.vocab_size == VOCABULARY_SIZE == model.lm_head._module.weight.shape[0]
    assert model.embed_tokens._module.weight.shape == (VOCABULARY_SIZE, HIDDEN_SIZE)
    assert model.parallel == (case in PARALLEL)
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")
    assert not model._module.training
    assert model.tokenizer.padding_side == "left"


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_write_changes_the_logits_as_a_torch_hook_does(case: str) -> None:
    model = wrapped(case)
    sites = [site for site in sites_of(case) if site.endswith(".2") or "." not in site]
    clean = plain(case)(input_ids=IDS).logits
    before = read_all(model, sites, input_ids=IDS)
    for number, site in enumerate(sites):
        value = before[site] + torch.randn(before[site].shape, generator=torch.Generator().manual_seed(number))
        with model.trace(input_ids=IDS):
            model.write(site, value.clone())
            seen = model.read(site).clone().save()
            logits = model.logits.clone().save()
        with writing(case, site, value):
            expected = plain(case)(input_ids=IDS).logits
        assert torch.equal(seen, value), site
        # the reference reaches a resid_mid through a difference, which rounds
        tolerance = 2e-4 if site.startswith("resid_mid") else 0.0
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance, msg=f"{case} {site}")
        assert (logits - clean).abs().max() > 1e-2, site
    assert torch.equal(read_all(model, ["logits"], input_ids=IDS)["logits"], clean)


@pytest.mark.parametrize("case", ["llama", "gemma2", "olmo2", "gpt2"])
@torch.no_grad()
def test_writing_what_was_read_changes_nothing(case: str) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS):
        for site in sites_of(case):
            model.write(site, model.read(site))
        logits = model.logits.clone().save()
    assert torch.equal(logits, plain(case)(input_ids=IDS).logits)


@torch.no_grad()
def test_accessors_write() -> None:
    model = wrapped("llama")
    zeros = torch.zeros(2, 6, HIDDEN_SIZE)
    with model.trace(input_ids=IDS):
        model.attentions_output[1] = zeros
        model.layers_output[2][:, -1] = 0  # in place, into the model's live tensor
        model.layers_input[-1] = model.layers_input[-1] * 2
        logits = model.logits.clone().save()
    handles = [
        plain("llama").get_submodule("model.layers.1.self_attn").register_forward_hook(lambda m, i, o: (zeros, *o[1:]))
    ]

    def last_token(_: object, args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, -1] = 0
        return output * 2

    handles.append(plain("llama").get_submodule("model.layers.2").register_forward_hook(last_token))
    expected = plain("llama")(input_ids=IDS).logits
    for handle in handles:
        handle.remove()
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("case", ["llama", "gemma2", "olmo2", "gpt2"])
@torch.no_grad()
def test_each_invoke_of_a_batch_writes_its_own_rows(case: str) -> None:
    model = wrapped(case)
    value = torch.randn(1, 6, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
    with model.trace() as tracer:
        with tracer.invoke(IDS[:1]):
            model.write("resid_mid.1", value)
            model.write("attn_out.2", value)
            first = model.logits.clone().save()
        with tracer.invoke(IDS[1:]):
            model.write("resid_mid.2", value)
            second = model.logits.clone().save()
            model.logits = second * 0
            zeroed = model.logits.clone().save()
    alone = []
    for row, sites in ((0, ("resid_mid.1", "attn_out.2")), (1, ("resid_mid.2",))):
        with model.trace(input_ids=IDS[row : row + 1]):
            for site in sites:
                model.write(site, value)
            alone.append(model.logits.clone().save())
    torch.testing.assert_close(first, alone[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(second, alone[1], atol=2e-5, rtol=1e-5)
    assert zeroed.abs().max() == 0


@torch.no_grad()
def test_sites_work_in_sessions_edits_and_generation() -> None:
    model = wrapped("gpt2")
    with model.session():
        with model.trace(input_ids=IDS):
            hidden = model.read("resid_post.0").clone()
        with model.trace(input_ids=IDS):
            model.write("resid_post.2", hidden)
            in_session = model.logits.clone().save()
    with reading("gpt2", ["resid_post.0"]) as values:
        plain("gpt2")(input_ids=IDS)
    with writing("gpt2", "resid_post.2", values["resid_post.0"]):
        expected = plain("gpt2")(input_ids=IDS).logits
    assert torch.equal(in_session, expected)

    with model.edit() as (_, edited):
        edited.write("resid_post.2", values["resid_post.0"])
    with edited.trace(input_ids=IDS):
        in_edit = edited.logits.clone().save()
    assert torch.equal(in_edit, expected)

    steps: list[Tensor] = []
    with model.generate(IDS[:1], max_new_tokens=3, do_sample=False) as tracer:
        for _ in tracer.iter[:3]:
            steps.append(model.read("resid_post.1").clone())
        ids = tracer.result.save()
    with reading("gpt2", ["resid_post.1"]) as values:
        plain("gpt2")(input_ids=ids[:, :-1])
    torch.testing.assert_close(torch.cat(steps, 1), values["resid_post.1"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["resid_mid.1", "attn_out.1", "resid_post.1", "mlp_in.1"])
def test_gradients_flow_into_a_written_value(site: str) -> None:
    model = wrapped("llama")
    value = torch.randn(2, 6, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with model.trace(input_ids=IDS):
        model.write(site, value)
        loss = model.logits.square().mean().save()
    (gradient,) = torch.autograd.grad(loss, value)
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for step in (1e-3, -1e-3):
        with torch.no_grad(), writing("llama", site, value.detach() + step * direction):
            losses.append(plain("llama")(input_ids=IDS).logits.double().square().mean())
    numeric = (losses[0] - losses[1]) / 2e-3
    torch.testing.assert_close((gradient * direction).sum().double(), numeric, rtol=2e-2, atol=1e-4)


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_gives_what_single_prompts_give(family: str, side: str) -> None:
    model = wrapped(family)
    width = max(map(len, RAGGED))
    input_ids, mask = torch.zeros(2, len(RAGGED), width, dtype=torch.long)
    spans = [slice(width - len(ids), width) if side == "left" else slice(0, len(ids)) for ids in RAGGED]
    for row, (ids, span) in enumerate(zip(RAGGED, spans, strict=True)):
        input_ids[row, span], mask[row, span] = torch.tensor(ids), 1
    sites = ["resid_post.0", "attn_out.2", f"resid_post.{NUM_LAYERS - 1}", "logits"]
    batch = read_all(model, sites, input_ids=input_ids, attention_mask=mask)
    for row, (ids, span) in enumerate(zip(RAGGED, spans, strict=True)):
        with reading(family, sites) as expected:
            plain(family)(input_ids=torch.tensor([ids]))
        for site in sites:
            torch.testing.assert_close(batch[site][row, span], expected[site][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_next_token_probs_of_prompts_as_text() -> None:
    model, tokenizer = wrapped("gpt2"), tiny_tokenizer()
    prompts = ["hello", "The quick brown fox"]
    with model.trace(prompts):
        probs = model.next_token_probs.clone().save()
    for row, prompt in enumerate(prompts):
        logits = plain("gpt2")(**tokenizer(prompt, return_tensors="pt")).logits
        torch.testing.assert_close(probs[row], logits[0, -1].softmax(-1), atol=1e-6, rtol=1e-4)


# Readout --------------------------------------------------------------------------------------------------------------


def test_readout_is_plain_torch_with_the_caller_s_grad_mode() -> None:
    model = wrapped("gemma2")
    hidden = torch.randn(3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model.readout(hidden)
    assert logits.shape == (3, VOCABULARY_SIZE)
    reference = plain("gemma2")
    expected = 2.0 * torch.tanh(reference.lm_head(reference.get_submodule("model.norm")(hidden)) / 2.0)
    torch.testing.assert_close(logits, expected, atol=0, rtol=0)
    (gradient,) = torch.autograd.grad(logits.sum(), hidden)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        assert not model.readout(hidden).requires_grad
    assert model.readout(hidden.detach().double()).dtype == torch.float32
    with pytest.raises(InterpError, match=r"expected hidden \(..., 32\), got shape \(3, 31\)"):
        model.readout(hidden[:, :31])


@pytest.mark.parametrize("case", ["llama", "gemma2", "cohere", "gpt2"])
@torch.no_grad()
def test_readout_inside_a_trace_leaves_the_trace_alone(case: str) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS):
        hidden = model.read("resid_post.1").clone().save()
        early = model.project_on_vocab(hidden).save()
        again = model.readout(hidden).save()
        normed = model.read("final_norm").clone().save()
        logits = model.logits.clone().save()
    assert torch.equal(early, model.readout(hidden))
    assert torch.equal(again, early)
    with reading(case, ["final_norm"]) as expected:
        reference = plain(case)(input_ids=IDS).logits
    assert torch.equal(normed, expected["final_norm"])
    assert torch.equal(logits, reference)


# Errors inside a trace ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "site", "message"),
    [
        ("llama", "resid_pst.1", "unknown kind 'resid_pst'. Did you mean 'resid_post'"),
        ("llama", "resid_post.4", "layer 4 is out of range. The model has 4 layers: 0 to 3"),
        ("llama", "resid_post.*", "expected one site"),
        ("gpt_neox", "resid_mid.1", r"'resid_mid.1' does not exist in GPTNeoXForCausalLM: .*parallel"),
    ],
)
def test_a_site_that_is_not_there(case: str, site: str, message: str) -> None:
    model = wrapped(case)
    with pytest.raises(InterpError, match=message):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.read(site)
    with pytest.raises(InterpError, match=message):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.write(site, torch.zeros(2, 6, HIDDEN_SIZE))


@pytest.mark.parametrize("site", ["resid_post.1", "attn_out.1", "resid_mid.1", "attn_in.1", "logits"])
def test_a_write_of_another_shape(site: str) -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match=rf"write {site}: expected a tensor of shape \(2, 6, .*got shape \(32,\)"):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.write(site, torch.zeros(32))
    with pytest.raises(InterpError, match=r"got <class 'float'>"):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.write(site, 0.0)  # type: ignore[arg-type]
    assert torch.equal(
        read_all(model, ["logits"], input_ids=IDS)["logits"], plain("llama")(input_ids=IDS).logits.detach()
    )


def test_an_accessor_s_layer_out_of_range() -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match=r"layers_output\[4\]: the model has 4 layers, 0 to 3"):
        model.layers_output[4]
    with pytest.raises(InterpError, match=r"mlps_output\[-5\]"):
        model.mlps_output[-5] = torch.zeros(2, 6, HIDDEN_SIZE)
