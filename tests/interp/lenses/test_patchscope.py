"""The patchscope lens against its twins: one target prompt and one layer at a time, with the model's own head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.lenses import Latents, patchscope_lens
from interp.model import StandardizedTransformer
from tests.interp.lenses.twins import FAMILIES, HookTwin, NnsightTwin, assert_equal, expected, log_softmax
from tests.made import one_each
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS

SOURCES = [[1, 17, 33, 250], [1, 8], [1, 99, 98, 97], [1, 300, 12, 13, 14], [1, 5, 5]]
# Ragged, two of them equal, and written at the first, a middle and the last token.
TARGETS = [[1, 40, 41, 42, 43, 44], [1, 60], [1, 40, 41, 42, 43, 44], [1, 70, 71, 72, 73, 74, 75, 76, 77], [1, 80, 81]]
POSITIONS = [5, 1, 2, 0, 1]
GROUPS = [[[3 * n, 3 * n + 1], [100 + n], [200, 201, 202]] for n in range(len(TARGETS))]
ALL = list(range(NUM_LAYERS))


def sources(twin: HookTwin) -> Tensor:
    """(layer, example, hidden) at the last token of the sources."""
    return torch.stack([twin.residuals(ids)[:, -1] for ids in SOURCES], dim=1)


def twin_examples(
    twin: HookTwin | NnsightTwin,
    latents: Tensor,
    patch: str,
    layers: list[int] = ALL,
    own: HookTwin | None = None,
    targets: list[list[int]] = TARGETS,
    positions: list[int] = POSITIONS,
) -> list[dict[str, np.ndarray]]:
    """The examples one by one; `latents` holds every layer of the model."""
    wanted = []
    for example, (ids, position, groups) in enumerate(zip(targets, positions, GROUPS, strict=True)):
        by_layer = []
        for layer in layers:
            written = range(layer, NUM_LAYERS) if patch == "from_layer" else [layer]
            by_layer.append(twin.logits(ids, position, {j: latents[j, example] for j in written}))
        one = expected(by_layer, groups, 3, own.logits(SOURCES[example]) if own else None)
        unpatched = np.exp(log_softmax(twin.logits(ids)))
        one["baseline"] = np.log([sum(unpatched[t] for t in group) for group in groups])
        wanted.append(one)
    return wanted


@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_twins(family, patch, standardized):
    twin = HookTwin(family)
    latents = sources(twin)
    result = patchscope_lens(
        standardized(family),
        Latents(latents, ALL, reference=latents[-1]),
        TARGETS,
        one_each(POSITIONS),
        GROUPS,
        patch=patch,
        top_k=3,
        batch_size=2,
    )
    assert_equal(result.arrays(), twin_examples(twin, latents, patch, own=twin), atol=1e-5)
    assert_equal(result.arrays(), twin_examples(NnsightTwin(family), latents, patch, own=twin), atol=1e-5)


@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
def test_some_layers(patch, standardized):
    twin = HookTwin("llama")
    latents = sources(twin)
    held = [1, 3] if patch == "one_layer" else [1, 2, 3]
    result = patchscope_lens(
        standardized("llama"),
        Latents(latents[held], held),
        TARGETS,
        one_each(POSITIONS),
        GROUPS,
        layers=[1, 3],
        patch=patch,
        top_k=3,
    )
    assert_equal(result.arrays(), twin_examples(twin, latents, patch, [1, 3]), atol=1e-5)
    assert np.isnan(result.surprisal).all()
    assert (result.model_top_id == -1).all()


def test_mean_latents_and_one_identity_prompt_for_all(standardized):
    """Dumas et al. write a mean that no prompt has; Ghandeharioun et al. write into one prompt for all."""
    targets, positions = [[1, 90, 91, 92, 93]] * len(SOURCES), [4] * len(SOURCES)
    twin = HookTwin("gpt_neox")
    latents = sources(twin)
    mean = (latents + latents.roll(1, dims=1)) / 2
    result = patchscope_lens(
        standardized("gpt_neox"),
        Latents(mean, ALL),
        targets,
        one_each(positions),
        GROUPS,
        patch="from_layer",
        top_k=3,
        batch_size=3,
    )
    assert_equal(
        result.arrays(), twin_examples(twin, mean, "from_layer", targets=targets, positions=positions), atol=1e-5
    )
    assert (result.baseline[0] != result.baseline[1]).any()  # the same prompt, other groups


def test_writing_what_is_there_changes_nothing(standardized):
    """A target's own states, written back where they came from, give the unpatched model at every layer."""
    twin = HookTwin("gemma2")
    own = torch.stack([twin.residuals(ids)[:, p] for ids, p in zip(TARGETS, POSITIONS, strict=True)], dim=1)
    result = patchscope_lens(standardized("gemma2"), Latents(own, ALL), TARGETS, one_each(POSITIONS), GROUPS)
    np.testing.assert_allclose(result.log_prob, np.repeat(result.baseline[:, None], NUM_LAYERS, axis=1), atol=1e-5)
    np.testing.assert_allclose(result.kl, 0, atol=1e-6)


def test_other_sites(standardized):
    """`resid_pre` of a layer is `resid_post` of the one before; `mlp_out` is what the MLP module of Llama gives."""
    twin = HookTwin("llama")
    latents = sources(twin)
    model = standardized("llama")
    arguments = dict(target_prompts=TARGETS, target_positions=one_each(POSITIONS), targets=GROUPS)
    pre = patchscope_lens(model, Latents(latents[:3], [1, 2, 3]), **arguments, site="resid_pre")
    post = patchscope_lens(model, Latents(latents[:3], [0, 1, 2]), **arguments, site="resid_post")
    np.testing.assert_allclose(pre.log_prob, post.log_prob, atol=1e-5)

    result = patchscope_lens(model, Latents(latents, ALL), **arguments, site="mlp_out")
    for example, (ids, position) in enumerate(zip(TARGETS, POSITIONS, strict=True)):
        for layer in ALL:
            mlp: nn.Module = twin.layers[layer].mlp

            def write(_module, _args, output, position=position, latent=latents[layer, example]):
                output[0, position] = latent

            hook = mlp.register_forward_hook(write)
            log_probs = log_softmax(twin.logits(ids))
            hook.remove()
            wanted = [np.log(np.exp(log_probs[group]).sum()) for group in GROUPS[example]]
            np.testing.assert_allclose(result.log_prob[example, layer], wanted, atol=1e-4)


def test_the_batch_size_and_the_order_change_nothing(standardized):
    latents = sources(HookTwin("gpt2"))
    whole = patchscope_lens(standardized("gpt2"), Latents(latents, ALL), TARGETS, one_each(POSITIONS), GROUPS)
    shuffled = [4, 2, 0, 1, 3]
    targets, positions, groups = ([part[i] for i in shuffled] for part in (TARGETS, POSITIONS, GROUPS))
    other = patchscope_lens(
        standardized("gpt2"), Latents(latents[:, shuffled], ALL), targets, one_each(positions), groups, batch_size=1
    )
    for name, values in whole.arrays().items():
        np.testing.assert_allclose(other.arrays()[name], values[shuffled], atol=1e-4, rtol=1e-4)


def test_the_head_sees_last_tokens_only(model_folder):
    """No (row, position, vocabulary) logits, and no graph for gradients."""
    model = StandardizedTransformer(model_folder("llama"), dtype="float32", device_map="cpu")
    seen: list[tuple[int, bool]] = []
    head = model._module.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda _module, args, _output: seen.append((args[0].numel() // HIDDEN_SIZE, torch.is_grad_enabled()))
    )
    latents = torch.zeros(NUM_LAYERS, len(TARGETS), HIDDEN_SIZE)
    patchscope_lens(model, Latents(latents, ALL), TARGETS, one_each(POSITIONS), GROUPS, batch_size=2)
    hook.remove()
    assert seen
    assert max(rows for rows, _ in seen) <= 2
    assert not any(grad for _, grad in seen)


def test_bfloat16_is_near_float32(model_folder):
    """Stated tolerance: 0.05 in probability; bfloat16 has 8 bits of mantissa, rounded at every layer."""
    twin = HookTwin("llama")
    latents = sources(twin)
    model = StandardizedTransformer(model_folder("llama"), dtype="bfloat16", device_map="cpu")
    result = patchscope_lens(model, Latents(latents, ALL), TARGETS, one_each(POSITIONS), GROUPS, patch="from_layer")
    wanted = [one["log_prob"] for one in twin_examples(twin, latents, "from_layer")]
    assert result.log_prob.dtype == np.float32
    np.testing.assert_allclose(np.exp(result.log_prob), np.exp(wanted), atol=0.05)


def test_no_examples(standardized):
    result = patchscope_lens(standardized("llama"), Latents(torch.zeros(1, 0, HIDDEN_SIZE), [2]), [], [], [], top_k=4)
    assert result.top_ids.shape == (0, 1, 4)
    assert result.baseline.shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [0, 1]}, r"latents: expected shape \(layer, example, hidden_size\) = \(2, 2, 32\)"),
        ({"layers": [0, 1, 2, 4]}, "layers of the model, 0 to 3"),
        ({"target_prompts": [[1, 2]] * 3}, "expected one, or one for each of 2 examples, got 3"),
        ({"target_positions": [[0]]}, "target_positions: expected one entry for each of 2 examples, got 1"),
        ({"target_positions": [[0], [3]]}, "example 1 has 3, expected a token of its target prompt, 0 to 2"),
        ({"target_positions": [[-1], [0]]}, "example 0 has -1"),
        ({"target_prompts": [[1, 400], [1, 2, 3]]}, "example 0 has ids 1 to 400"),
        ({"targets": []}, "targets: expected one entry for each of 2 examples, got 0"),
        ({"patch": "one_layr"}, "unknown 'one_layr'. Did you mean 'one_layer'"),
        ({"site": "embed"}, "a kind of site that each layer has, got 'embed'"),
        ({"site": "z"}, "a kind of site that each layer has, got 'z'. .* a hidden state"),
        ({"held": [0, 1, 2, 2]}, "ascending order"),
        ({"layers": [1, 3], "held": [0, 1, 2]}, r"needs latents of layers \[1, 3\], got none of \[3\]"),
        ({"layers": [1], "held": [1, 3], "patch": "from_layer"}, r"got none of \[2\]"),
        ({"batch_size": 0}, "batch_size"),
        ({"reference": torch.zeros(1, 3)}, "reference: expected shape"),
    ],
)
def test_errors(changes, message, standardized):
    arguments = dict(target_prompts=[[1, 2], [1, 2, 3]], target_positions=[[0], [2]], targets=[[], []], layers=ALL)
    arguments |= changes
    held, reference = arguments.pop("held", arguments["layers"]), arguments.pop("reference", None)
    source = Latents(torch.zeros(NUM_LAYERS, 2, HIDDEN_SIZE), held, reference)
    with pytest.raises(InterpError, match=message):
        patchscope_lens(standardized("llama"), source, **arguments)
