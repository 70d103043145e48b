"""Loads model and tokenizer from a folder or the hub, with transformers; errors say what to do.

nnsight can load by name too, but its lazy load fails under transformers 5.23 ("Impossible to guess which tokenizer").
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from interp.errors import InterpError, nearest

__all__ = [
    "UnknownKeyword",
    "as_dtype",
    "check_options",
    "execution_device",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "reject_load_options",
    "unwrapped",
]

# What a bad folder, a hub that is down, an unknown model type or a missing package raise inside transformers.
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, SafetensorError)
# Names of the plain tokenizer that does what its tokenizer.json says.
_PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Keyword arguments of `from_pretrained` that say where the files are, so that they hold for the config too.
_HUB_OPTIONS = (
    "cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "subfolder", "token",
)  # fmt: skip
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class UnknownKeyword(InterpError):
    """A keyword argument that nothing takes; `name` is its name."""

    name: str


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    """Turn a name into a dtype; None is `auto`, the checkpoint's own."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    if dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise InterpError(f"dtype: expected a floating point type, got {dtype!r}.{nearest(dtype, _DTYPES)}")
    return _DTYPES[dtype]


def load_model(
    source: str | Path,
    *,
    revision: str | None,
    dtype: str | torch.dtype | None,
    device_map: Any,
    attn_implementation: str | None,
    trust_remote_code: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    """Load a causal language model, which may see images, safetensors only, every weight accounted for.

    Arguments:
        source: a local folder or a hub id; the rest as in `StandardizedTransformer`.
        options: further keyword arguments of `from_pretrained`, and fields of the config to change.

    Raises:
        InterpError: there is no such model, or it is not whole, or an option is unknown; the message says what to do.
    """
    name = _checked_source(source)
    options = dict(options)
    shared: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    shared |= {key: value for key, value in options.items() if key in _HUB_OPTIONS}
    try:
        config = options.pop("config", None)
        if config is None or isinstance(config, str | Path):
            config = AutoConfig.from_pretrained(config or name, **shared)
        check_options(options, config)
        placed = {} if device_map is None else {"device_map": device_map}
        attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        loading = {"use_safetensors": True, **shared, **options, **placed, **attention}
        module, report = _auto_class(config).from_pretrained(
            name, config=_changed(config, loading), dtype=as_dtype(dtype), output_loading_info=True, **loading
        )
    except InterpError:
        raise
    except _LOAD_ERRORS as error:
        raise InterpError(_not_loaded(source, revision, error)) from error
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if absent and not options.get("ignore_mismatched_sizes"):
        # transformers only warns, and leaves them random.
        raise InterpError(
            f"the weights of {str(source)!r} are incomplete: {len(absent)} of {type(module).__name__}'s tensors are "
            f"missing or of another shape, e.g. {', '.join(absent[:3])}. Get a checkpoint of a causal language model."
        )
    return module


def _auto_class(config: Any) -> Any:
    """What loads a model: of images and text where transformers has no causal language model of its type."""
    known, sees = AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if type(config) in sees and type(config) not in known else AutoModelForCausalLM


def reject_load_options(**given: Any) -> None:
    """Refuse loading options for a model that is in memory already.

    Raises:
        InterpError: something is given.
    """
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise InterpError(f"{', '.join(named)}: of no use with a model in memory. Load it so in the first place.")


def load_skeleton(
    source: str | Path, *, revision: str | None, trust_remote_code: bool, options: Mapping[str, Any], **given: Any
) -> nn.Module:
    """The model without its weights, on the `meta` device, for traces that run elsewhere.

    Arguments:
        source: a local folder or a hub id; the rest as in `StandardizedTransformer`.
        options: keyword arguments of `from_pretrained`; those that say where the files are.
        given: what else was said of how the weights are loaded.

    Raises:
        InterpError: there is no such model; or something is given that the machine with the weights decides.
    """
    placed = {**given, **{name: value for name, value in options.items() if name not in _HUB_OPTIONS}}
    named = [name for name, value in placed.items() if value is not None and (name, value) != ("device_map", "auto")]
    if named:
        raise InterpError(
            f"{', '.join(named)}: of no use with remote=True, where the server has loaded the model in its own way. "
            "Leave it out."
        )
    shared = {"revision": revision, "trust_remote_code": trust_remote_code, **options}
    try:
        config = AutoConfig.from_pretrained(str(source), **shared)
        with torch.device("meta"):
            return _auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except _LOAD_ERRORS as error:
        raise InterpError(_not_loaded(source, revision, error)) from error


@torch.no_grad()
def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model in a wrapper that computes what it computes: peft's, `torch.compile`'s, data parallel.

    Adapters stay active, since peft puts them into the model itself.

    Raises:
        InterpError: the wrapper computes more than the model in it, or holds its weights in parts; or parts of the
            model are compiled.
    """
    inner, adapted = model, None
    while not isinstance(inner, PreTrainedModel):
        kind = type(inner).__name__
        if kind.startswith("FullyShardedDataParallel") or "DeepSpeed" in kind:
            raise InterpError(f"{kind} holds its model's weights in parts. Load the model without it to look inside.")
        within = _inside(inner)
        if within is None:
            break
        adapted = inner if hasattr(inner, "peft_config") else adapted
        inner = within
    if isinstance(inner, FSDPModule):
        raise InterpError("fully_shard holds the model's weights in parts. Load the model without it to look inside.")
    if adapted is not None:
        _check_peft(adapted, inner)
    check_not_compiled(inner)
    return inner


def check_not_compiled(module: nn.Module) -> None:
    """Refuse a model with compiled parts.

    Raises:
        InterpError: there is one.
    """
    for path, part in module.named_modules():
        if isinstance(part, OptimizedModule) or part._compiled_call_impl is not None:
            raise InterpError(
                f"{path or type(module).__name__!r} is compiled by torch.compile: what runs in compiled code cannot be "
                "read or written. Wrap the model as it was before; torch.compile(model) keeps it in `_orig_mod`, "
                "and model.compile() is undone by `model._compiled_call_impl = None`."
            )


def _inside(wrapper: nn.Module) -> nn.Module | None:
    """The module in a wrapper; None where it is not known for one."""
    if isinstance(wrapper, OptimizedModule):
        return wrapper._orig_mod
    if isinstance(wrapper, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return wrapper.module
    unwrap: Any = getattr(wrapper, "get_base_model", None)
    if unwrap is not None and hasattr(wrapper, "peft_config"):
        base: nn.Module = unwrap()
        return base
    return None


def _check_peft(wrapper: nn.Module, inner: nn.Module) -> None:
    """Refuse adapters that work around the model (prompt tuning, say) and not inside it; found out on three tokens."""
    training = [part for part in wrapper.modules() if part.training]
    wrapper.eval()
    ids = torch.tensor([[0, 1, 1]], device=next(inner.parameters()).device)
    try:
        same = torch.equal(wrapper(input_ids=ids).logits, inner(input_ids=ids).logits)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InterpError(f"the adapter of {type(wrapper).__name__} does not run ({_first_line(error)}).") from error
    finally:
        for part in training:
            part.training = True
    if not same:
        adapters: Any = wrapper.peft_config
        kinds = ", ".join(sorted({str(getattr(one.peft_type, "value", one.peft_type)) for one in adapters.values()}))
        raise InterpError(
            f"adapters {kinds} change what {type(inner).__name__} is given or gives, not its "
            "modules: the model inside computes something else than with them. Use one that adds to modules (LoRA and "
            "its relatives), or get_base_model() to look at the model without its adapter."
        )


def check_options(options: Mapping[str, Any], config: Any) -> None:
    """Reject keyword arguments that neither `from_pretrained` nor the config knows.

    Raises:
        UnknownKeyword: there is one, with the nearest known names.
    """
    if not options:
        return
    fields = [] if config is None else [name for name in config.to_dict() if not name.startswith("_")]
    known = {*_loading_options(), *fields}
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.6)
            advice = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            error = UnknownKeyword(
                f"unknown keyword argument {name!r}: neither StandardizedTransformer nor transformers' from_pretrained "
                f"takes it, and the model's config has no such field.{advice}"
            )
            error.name = name
            raise error


def _loading_options() -> set[str]:
    """The keyword arguments that this version of transformers' `from_pretrained` takes, read from its source.

    It names few of them in its signature; the others it takes out of its `kwargs`, some to do nothing with them. Not
    `functools.cache`, whose functions cannot be sent to a server by what they say.
    """
    found: set[Any] = set()
    for method in (PreTrainedModel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        arguments = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)).args
        found |= {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("kwargs.pop", "kwargs.get"):
                found |= {name.value for name in node.args[:1] if isinstance(name, ast.Constant)}
            elif isinstance(node, ast.Compare) and "kwargs" in (ast.unparse(other) for other in node.comparators):
                found |= {node.left.value} if isinstance(node.left, ast.Constant) else set()
            elif isinstance(node, ast.List) and all(isinstance(name, ast.Constant) for name in node.elts):
                found |= {name.value for name in node.elts if isinstance(name, ast.Constant)}  # names in a loop
    ours = {"cls", "pretrained_model_name_or_path", "output_loading_info", "_from_auto", "_from_pipeline"}
    return {name for name in found - ours if isinstance(name, str)}


def _changed(config: Any, loading: dict[str, Any]) -> Any:
    """The config with those options put into it that are fields of it; they are taken out of the options."""
    fields = {name for name in loading if hasattr(config, name)}
    changes = {name: loading.pop(name) for name in fields - _loading_options()} if fields else {}
    changed = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def execution_device(module: nn.Module) -> torch.device | None:
    """Where a module computes, also where accelerate keeps its weights elsewhere; None: it has no weights."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next((parameter.device for parameter in module.parameters()), None)


def load_tokenizer(
    source: str | Path, *, revision: str | None, trust_remote_code: bool, options: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub.

    Arguments:
        source: a local folder or a hub id; the rest as in `StandardizedTransformer`.
        options: further keyword arguments of the tokenizer's `from_pretrained`.

    Where the folder asks for the plain tokenizer, it gets that: transformers' `AutoTokenizer` would put the family's
    own splitting rules over those of tokenizer.json (Qwen 2 does), and the same text would become other tokens.

    Raises:
        InterpError: there is none.
    """
    name = str(Path(source).expanduser()) if _is_local(source) else str(source)
    try:
        asked = get_tokenizer_config(name, revision=revision).get("tokenizer_class")
        loader = PreTrainedTokenizerFast if asked in _PLAIN_TOKENIZERS else AutoTokenizer
        return loader.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, **dict(options or {})
        )
    except _LOAD_ERRORS as error:
        raise InterpError(
            f"no tokenizer in {str(source)!r} ({_first_line(error)}). Expected tokenizer.json or the family's "
            "tokenizer files beside the weights; or pass tokenizer=, an object or where to load it from."
        ) from error


def _is_local(source: str | Path) -> bool:
    """A folder, or a spelling that can only be a path. `gpt2` and `meta-llama/Llama-3.2-1B` are hub ids."""
    path = Path(source).expanduser()
    text = str(source)
    return isinstance(source, Path) or path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1


def _checked_source(source: str | Path) -> str:
    """What to give to transformers; a local folder is looked at first, because transformers' own errors mislead."""
    if not _is_local(source):
        return str(source)
    folder = Path(source).expanduser()
    get = f"hf download ORGANISATION/NAME --local-dir {folder}"
    if not folder.is_dir():
        what = "found a file" if folder.exists() else "there is none"
        raise InterpError(
            f"expected a folder with a model at {folder.absolute()}, {what}. Get one with `{get}`, or give a hub id "
            "such as openai-community/gpt2."
        )
    if not (folder / "config.json").is_file():
        raise InterpError(f"expected a model in {folder}, found no config.json. Get one with `{get}`.")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        found = f"only {', '.join(pickles[:3])}, which are pickles and can run code" if pickles else "config.json only"
        raise InterpError(
            f"expected weights as *.safetensors in {folder}, found {found}. Get them with `{get} --include "
            "'*.safetensors' '*.json'`."
        )
    return str(folder)


def _not_loaded(source: str | Path, revision: str | None, error: BaseException) -> str:
    what = f"could not load {str(source)!r}" + (f" at revision {revision!r}" if revision else "")
    if _is_local(source):
        return f"{what} from its folder: {_first_line(error)}."
    return (
        f"{what}: no local folder of that name, and the hub gave: {_first_line(error)}. Where this machine reaches "
        f"the hub, `hf download {source}{f' --revision {revision}' if revision else ''}` gets it (gated models: "
        f"`hf auth login` first); else copy its folder here and give the path."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
