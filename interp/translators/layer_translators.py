"""`TunedLens`: one affine translator a layer, kept in safetensors beside what it was trained for.

Lenses in the format of the tuned-lens library (https://github.com/AlignmentResearch/tuned-lens), such as those
published with the paper, are read too: a folder with `config.json` and `params.pt`. Its translator number i takes the
i-th of transformers' `hidden_states`: 0 is the embedding, i is the residual stream that enters block i, which is
`resid_post` of layer i - 1. So its translators 1 to L-1 are ours of layers 0 to L-2, and its translator 0, of the
embedding, has no place here.

Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023), arXiv 2303.08112.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from interp.errors import InterpError
from interp.sites.parsing import check_lens_layers
from interp.tensor_files import write_tensors

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer
    from interp.translators.affine_maps import LatentMap

__all__ = ["CONFIG_FILE", "PUBLIC_WEIGHTS", "WEIGHTS_FILE", "TunedLens", "load_public", "unembedding_digest"]


FORMAT, VERSION = "interpipe.tuned_lens", 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "lens.safetensors"


class TunedLens(nn.Module):
    """A tuned lens (Belrose et al. 2023): h + W h + b, for the residual stream h after a layer.

    Translators start at zero, which is the logit lens; written as an addition, decaying weights pull them back there.
    They are float32 whatever the model's dtype. The model's last layer needs none, and has none.

    Arguments:
        hidden_size: numbers in a residual stream.
        num_layers: the model's depth.
        layers: the layers that get a translator, ascending; None: all but the last.
        bias_only: no W, only b.
        model_name: hub id or folder name of the model, for the reader of the saved lens.
        unembedding: `unembedding_digest` of the model; None: not known, and not checked.
        training: how it was trained, JSON; None: not known.

    Raises:
        InterpError: no layers, or layers that cannot have a translator.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        layers: Sequence[int] | None = None,
        *,
        bias_only: bool = False,
        model_name: str | None = None,
        unembedding: str | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 2:
            raise InterpError(f"a tuned lens needs a model with at least 2 layers, this one has {num_layers}.")
        self.layers = check_lens_layers(range(num_layers - 1) if layers is None else layers, num_layers)
        if self.layers[-1] == num_layers - 1:
            raise InterpError(
                f"layers: layer {num_layers - 1} is the model's last, whose translator is the identity. Expected "
                f"layers of 0 to {num_layers - 2}, got {list(self.layers)}."
            )
        self.hidden_size, self.num_layers, self.bias_only = hidden_size, num_layers, bias_only
        self.model_name, self.unembedding, self.training_record = model_name, unembedding, training
        zeros = [torch.zeros(hidden_size, dtype=torch.float32, device="cpu") for _ in self.layers]
        self.biases = nn.ParameterDict({str(layer): zero for layer, zero in zip(self.layers, zeros, strict=True)})
        squares = (
            {}
            if bias_only
            else {
                str(layer): torch.zeros(hidden_size, hidden_size, dtype=torch.float32, device="cpu")
                for layer in self.layers
            }
        )
        self.weights = nn.ParameterDict(squares)

    @classmethod
    def of(
        cls, model: StandardizedTransformer, layers: Sequence[int] | None = None, *, bias_only: bool = False
    ) -> TunedLens:
        """An untrained lens for a model, on its device: it says what the logit lens says."""
        return cls(
            model.hidden_size,
            model.num_layers,
            layers,
            bias_only=bias_only,
            model_name=_name(model),
            unembedding=unembedding_digest(model),
        ).to(model.device)

    def parameters_of(self, layer: int) -> list[nn.Parameter]:
        """The translator of one layer: bias, and weight where there is one."""
        held = [self.biases[str(layer)]]
        return held if self.bias_only else [*held, self.weights[str(layer)]]

    def translated(self, hidden: Tensor, layer: int) -> Tensor:
        """Translate the residual stream after one layer, under the caller's grad mode.

        The product is taken in the dtype of `hidden`, the sum in float32.

        Arguments:
            hidden: (..., hidden_size), on the lens's device.
            layer: one of `layers`.

        Returns:
            (..., hidden_size) float32.
        """
        moved = hidden.float() + self.biases[str(layer)]
        if self.bias_only:
            return moved
        return moved + functional.linear(hidden, self.weights[str(layer)].to(hidden.dtype)).float()

    @torch.no_grad()
    def translate(self, hidden: Tensor, layers: Sequence[int]) -> Tensor:
        """What the lens says that the model's last layer would hold.

        Arguments:
            hidden: (layer, row, hidden_size), residual streams after layers; any device and float dtype.
            layers: what the axis `layer` of `hidden` stands for. The model's last layer stays as it is.

        Returns:
            (layer, row, hidden_size) float32, on the lens's device.

        Raises:
            InterpError: layers that the lens has no translator for, or shapes that do not fit.
        """
        missing = [layer for layer in layers if layer not in (*self.layers, self.num_layers - 1)]
        if missing:
            raise InterpError(
                f"the tuned lens has no translator for layers {missing}, only for {list(self.layers)} (the last layer, "
                f"{self.num_layers - 1}, needs none). Leave them out, or train a lens with them."
            )
        if hidden.dim() != 3 or hidden.shape[0] != len(layers) or hidden.shape[2] != self.hidden_size:
            raise InterpError(
                f"hidden: expected shape (layer, row, hidden_size) = ({len(layers)}, any, {self.hidden_size}), got "
                f"{tuple(hidden.shape)}."
            )
        held = hidden.to(self.device, torch.float32)
        return torch.stack(
            [
                rows if layer == self.num_layers - 1 else self.translated(rows, layer)
                for layer, rows in zip(layers, held, strict=True)
            ]
        )

    def as_map(self) -> LatentMap:
        """The lens as a map of latents: from after layer l to what it says that the last layer holds."""
        return self.translate

    @property
    def device(self) -> torch.device:
        """Where the translators are."""
        return self.biases[str(self.layers[0])].device

    def config(self) -> dict[str, Any]:
        """What is saved beside the translators."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model_name,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "layers": list(self.layers),
            "bias_only": self.bias_only,
            "unembedding_sha256": self.unembedding,
            "training": self.training_record,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The translators by name, `bias.3` and `weight.3`, on the CPU."""
        named = {f"bias.{layer}": value for layer, value in self.biases.items()}
        named |= {f"weight.{layer}": value for layer, value in self.weights.items()}
        return {name: value.detach().cpu().contiguous() for name, value in named.items()}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put translators in place, by the names of `tensors()`.

        Raises:
            InterpError: others than this lens has, or of another shape.
        """
        own = {f"bias.{layer}": value for layer, value in self.biases.items()}
        own |= {f"weight.{layer}": value for layer, value in self.weights.items()}
        if set(own) != set(tensors):
            wrong = sorted(set(own) ^ set(tensors))
            raise InterpError(
                f"expected translators of layers {list(self.layers)} "
                f"({'bias' if self.bias_only else 'weight and bias'} of each), got a file that differs in "
                f"{', '.join(wrong[:4])}. It is not whole, or belongs to another lens."
            )
        for name, value in tensors.items():
            if value.shape != own[name].shape:
                raise InterpError(
                    f"{name}: expected shape {tuple(own[name].shape)} (hidden_size {self.hidden_size}), got "
                    f"{tuple(value.shape)}."
                )
            own[name].copy_(value)

    def save(self, folder: str | Path) -> None:
        """Write `lens.safetensors` and `config.json` into a folder; the same lens gives the same bytes.

        The config comes last, each file under its name only when it is whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / f".{CONFIG_FILE}.partial"
        config.write_text(json.dumps(self.config(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tensors(folder / WEIGHTS_FILE, self.tensors())
        os.replace(config, folder / CONFIG_FILE)

    @classmethod
    def load(cls, folder: str | Path, model: StandardizedTransformer, *, check: bool = True) -> TunedLens:
        """Read a saved lens, for the model that it was trained for.

        Arguments:
            folder: where `save` wrote.
            model: the model; the lens goes to its device.
            check: compare the model's unembedding with that of the training; False: take the lens all the same.

        Raises:
            InterpError: no lens there, one that is not whole, or one of another model.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config.get("format") != FORMAT or config.get("version") != VERSION:
            raise InterpError(
                f"{folder / CONFIG_FILE}: expected format {FORMAT!r}, version {VERSION}, got {config.get('format')!r}, "
                f"version {config.get('version')!r}. Lenses of the tuned-lens library are read by `load_public`."
            )
        check_sizes(folder, model, config["hidden_size"], config["num_layers"])
        digest = unembedding_digest(model) if check else None
        if check and config["unembedding_sha256"] != digest:
            raise InterpError(
                f"the lens in {folder} was trained for {config['model']!r} with unembedding "
                f"{str(config['unembedding_sha256'])[:12]}, that of {_name(model)!r} is {str(digest)[:12]}: final norm "
                "or head differ (fine-tuned, or resized?). Load the model that it was trained for, train a lens for "
                "this one (`python -m interp tune`), or pass check=False to use it all the same."
            )
        lens = cls(
            config["hidden_size"],
            config["num_layers"],
            config["layers"],
            bias_only=config["bias_only"],
            model_name=config["model"],
            unembedding=config["unembedding_sha256"],
            training=config["training"],
        )
        try:
            lens.take(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError) as error:
            raise InterpError(f"{folder / WEIGHTS_FILE} cannot be read ({error}). Train or copy it again.") from error
        return lens.to(model.device)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a lens.

    Raises:
        InterpError: there is none, or it is no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise InterpError(
            f"expected a tuned lens in {folder}, found no {CONFIG_FILE}. `python -m interp tune MODEL --text TEXT "
            f"--output {folder}` trains one."
        ) from error
    except ValueError as error:
        raise InterpError(f"{folder / CONFIG_FILE} is not JSON ({error}). Train or copy the lens again.") from error
    if not isinstance(config, dict):
        raise InterpError(f"{folder / CONFIG_FILE}: expected an object, got {type(config).__name__}.")
    return config


def check_sizes(folder: Path, model: StandardizedTransformer, hidden_size: int, num_layers: int) -> None:
    """Raise where a lens is one for a model of another size."""
    if (hidden_size, num_layers) != (model.hidden_size, model.num_layers):
        raise InterpError(
            f"the lens in {folder} is for a model with hidden_size {hidden_size} and {num_layers} layers, "
            f"{_name(model)!r} has hidden_size {model.hidden_size} and {model.num_layers} layers. Load the model that "
            "it was trained for."
        )


def _name(model: StandardizedTransformer) -> str:
    """Hub id, or a folder's name without the way to it; a class, for a model in memory."""
    source = getattr(model, "repo_id", None)
    if not source:
        return type(model._module).__name__
    return Path(source).expanduser().resolve().name if Path(source).expanduser().exists() else str(source)


# Numbers that are hashed at once.
_CHUNK = 1 << 24


def unembedding_digest(model: StandardizedTransformer) -> str:
    """SHA-256 over the model's readout: the weights of final norm and head, scale and softcap.

    Weights count as rounded to bfloat16, so that a checkpoint has one digest whether it is loaded as float32 or as
    bfloat16. (float16 can round a weight of a float32 checkpoint otherwise.)

    Arguments:
        model: the model.

    Returns:
        64 hexadecimal digits.
    """
    tail = model.tail
    digest = hashlib.sha256(json.dumps([tail.scale, tail.divisor, tail.softcap]).encode())
    for path in tail.paths:
        module = model._module.get_submodule(path)
        with align_module_device(module):  # brings weights back that accelerate has offloaded
            for name, weight in sorted(module.named_parameters()):
                digest.update(f"{name} {tuple(weight.shape)}\n".encode())
                _update(digest, weight.detach())
    return digest.hexdigest()


def _update(digest: hashlib._Hash, weight: Tensor) -> None:
    for chunk in weight.reshape(-1).split(_CHUNK):
        digest.update(chunk.to(torch.bfloat16).cpu().view(torch.uint8).numpy().data)


# The format of the tuned-lens library ------------------------------------------------------------------------------

PUBLIC_WEIGHTS = "params.pt"
_KEY = re.compile(r"(?:layer_translators\.)?(\d+)\.(weight|bias)")
_log = logging.getLogger(__name__)


def load_public(folder: str | Path, model: StandardizedTransformer, *, check: bool = True) -> TunedLens:
    """Read a lens that the tuned-lens library saved (Belrose et al. 2023).

    Its `params.pt` is read as tensors alone; nothing in it is run.

    Arguments:
        folder: with `config.json` and `params.pt`.
        model: the model that it was trained for; the lens goes to its device.
        check: compare the hash of the head that the library keeps; False: take the lens all the same.

    Returns:
        The lens for layers 0 to L-2; the translator of the embedding is left out, which one line of the log says.

    Raises:
        InterpError: no lens there, one that is not whole, or one of another model.
    """
    folder = Path(folder)
    config = read_config(folder)
    absent = [name for name in ("base_model_name_or_path", "d_model", "num_hidden_layers") if name not in config]
    if absent:
        raise InterpError(
            f"{folder}: expected a config.json of the tuned-lens library, got one without {', '.join(absent)}. Lenses "
            "of this library are read by `TunedLens.load`."
        )
    check_sizes(folder, model, config["d_model"], config["num_hidden_layers"])
    if check and config.get("unembed_hash"):
        _check_head(folder, model, config)
    translators = _translators(folder / PUBLIC_WEIGHTS)
    expected = list(range(config["num_hidden_layers"]))
    if sorted(translators) != expected:
        raise InterpError(f"{folder}: expected translators {expected}, got {sorted(translators)}. It is not whole.")
    _log.info("%s: the translator of the embedding is left out, there is no layer before it.", folder)
    lens = TunedLens.of(model)
    lens.model_name = config["base_model_name_or_path"]
    lens.take(
        {
            f"{kind}.{number - 1}": value.float()
            for number, parts in translators.items()
            if number > 0
            for kind, value in {
                "bias": torch.zeros(model.hidden_size, dtype=torch.float32, device="cpu"),
                **parts,
            }.items()
        }
    )
    return lens


def _translators(path: Path) -> dict[int, dict[str, Tensor]]:
    """Number of the translator -> `weight`, `bias`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InterpError(
            f"{path} cannot be read as a dictionary of tensors ({type(error).__name__}). Download the lens again."
        ) from error
    translators: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is not None:
            translators.setdefault(int(match[1]), {})[match[2]] = value
        elif not key.startswith("unembed"):  # some lenses carry a copy of the model's head
            raise InterpError(
                f"{path}: {key!r} is not part of a linear tuned lens. Expected 0.weight, 0.bias, 1.weight, ...; "
                "lenses with several layers or low rank are not read."
            )
    return translators


def _check_head(folder: Path, model: StandardizedTransformer, config: dict[str, Any]) -> None:
    """Compare the library's hash of the head: of its first and last few numbers, printed to one decimal."""
    head = model._module.get_submodule(model.tail.paths[-1]).weight.detach().cpu()
    found = {
        hashlib.sha256(_printed(head.to(dtype).numpy()).encode()).hexdigest()
        for dtype in (torch.float32, torch.float16)  # what it printed depends on the dtype that it was loaded in
    }
    if config["unembed_hash"] not in found:
        raise InterpError(
            f"the lens in {folder} was trained for {config['base_model_name_or_path']!r} with a head of hash "
            f"{config['unembed_hash'][:12]}, the head of this model has {' or '.join(h[:12] for h in sorted(found))}. "
            "Load that model (its revision too), or pass check=False to use the lens all the same."
        )


def _printed(weight: np.ndarray) -> str:
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75, suppress=False, floatmode="maxprec", sign="-"):
        return np.array_str(weight, precision=1)
