"""Scripts for nnterp, run as text after `nnterp` is replaced in their imports, and nothing else.

The results of the whole script on the demo model are compared with plain transformers.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.interp.compat.nnterp.scripts import EXAMPLES, STUDY
from tests.tiny import tiny_model, tiny_tokenizer

DEMO = Path(__file__).parents[4] / "pipeline" / "demo" / "model"


def run(text: str, folder: Path, model: Path) -> dict[str, Any]:
    """Run a script as a file, since nnsight reads its source; its global names."""
    changed = re.sub(r"^(from|import) nnterp\b", r"\1 interp.compat.nnterp", text, flags=re.MULTILINE)
    assert changed != text
    path = folder / "script.py"
    path.write_text(changed)
    return runpy.run_path(str(path), init_globals={"MODEL": str(model)})


@pytest.fixture(scope="module")
def twelve_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2-12")
    tiny_model("gpt2", n_layer=12).save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[go.Figure]:
    """Figures that a script shows, in place of a browser."""
    figures: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: figures.append(figure))
    return figures


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, twelve_layers: Path, shown: list[go.Figure]) -> None:
    run(EXAMPLES[name], tmp_path, twelve_layers)
    assert len(shown) == (2 if name == "advanced features" else 0)


@torch.no_grad()
def test_a_whole_script_on_the_demo_model(tmp_path: Path, shown: list[go.Figure]) -> None:
    found = run(STUDY, tmp_path, DEMO)
    close: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    texts, vector = found["texts"], found["vector"]
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    outputs = [model(each, output_hidden_states=True, output_attentions=True) for each in ids]
    length = ids[0].shape[1]
    padding = ids[1].shape[1] - length
    assert padding > 0

    # A trace: attention, a layer, the next token, of a left-padded batch.
    torch.testing.assert_close(found["pattern"][0, :, padding:, padding:], outputs[0].attentions[2][0], **close)
    torch.testing.assert_close(found["middle"][0, padding:], outputs[0].hidden_states[5][0], **close)
    last = torch.stack([output.logits[0, -1].softmax(-1) for output in outputs])
    torch.testing.assert_close(found["next_probs"], last, **close)

    # The logit lens: hidden_states[i + 1] is what layer i gives, but for the last, which is normed already.
    def read_out(hidden: torch.Tensor) -> torch.Tensor:
        return model.lm_head(model.model.norm(hidden)).softmax(-1)

    by_hand = torch.stack(
        [torch.stack([read_out(output.hidden_states[i + 1][0, -1]) for i in range(7)]) for output in outputs]
    )
    torch.testing.assert_close(found["lens"][:, :7], by_hand, **close)
    torch.testing.assert_close(found["lens"][:, 7], last, **close)

    # The patchscope lens, and generation from the patched repeat prompt.
    def patching(layer: int, position: int, hidden: torch.Tensor) -> Any:
        def change(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            if output.shape[1] == 1:
                return output
            new = output.clone()
            new[0, position] = hidden
            return new

        return model.model.layers[layer].register_forward_hook(change)

    target_ids = tokenizer(found["target"].prompt, return_tensors="pt").input_ids
    repeat_ids = tokenizer(found["repeat_prompt"]().prompt, return_tensors="pt").input_ids
    for source, output in enumerate(outputs):
        for layer in (0, 3, 6):
            hook = patching(layer, -6, output.hidden_states[layer + 1][0, -1])
            probs = model(target_ids).logits[0, -1].softmax(-1)
            hook.remove()
            torch.testing.assert_close(found["scope"][source, layer], probs, **close)
        for layer in (2, 5):
            hook = patching(layer, -1, output.hidden_states[layer + 1][0, -1])
            generated = model.generate(repeat_ids, max_new_tokens=3, do_sample=False)[0]
            hook.remove()
            assert torch.equal(found["texts_by_layer"][layer][source][: len(generated)], generated)

    # Tracked answers: the model translates, and what it says is what is counted.
    for row, prompt in enumerate(found["prompts"]):
        for name, tokens in prompt.target_tokens.items():
            torch.testing.assert_close(found["tracked"][name][row, 0], last[row, tokens].sum(), **close)
            torch.testing.assert_close(
                found["tracked_by_layer"][name][row, :7], by_hand[row][:, tokens].sum(-1), **close
            )
        assert found["tracked"]["italian"][row, 0] > 0.5

    # Steering and skipping.
    def add(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        new = output.clone()
        new[:, -1] += vector
        return new

    hook = model.model.layers[4].register_forward_hook(add)
    torch.testing.assert_close(found["steered"], model(ids[0]).logits[:, -1], **close)
    hook.remove()
    for layer in (5, 6):
        model.model.layers[layer].forward = lambda hidden_states, *args, **kwargs: hidden_states
    torch.testing.assert_close(found["skipped"], model(ids[0]).logits[:, -1], **close)

    # The figure.
    assert shown == [found["figure"]] and len(found["figure"].data) == 2
    top = found["lens"][1, 7].topk(4)
    assert list(found["figure"].data[1].z[7]) == pytest.approx(top.values.tolist())
    expected = [f"'{token}'" for token in tokenizer.convert_ids_to_tokens(top.indices.tolist())]
    assert list(found["figure"].data[1].text[7]) == expected
    assert len(found["names"]) == 5
