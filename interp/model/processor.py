"""Loads the processor of a model that sees: what makes pixel values and image tokens of images and a text.

transformers' `AutoProcessor` asks for torchvision wherever a family can read videos too, though its images need Pillow
alone. Here a processor is put together from its parts, so that without torchvision only the videos are missing.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoVideoProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file, is_torchvision_available

from interp.errors import InterpError
from interp.model.loading import load_tokenizer

__all__ = ["image_feeds", "image_token", "load_processor", "processor_of", "quiet_pipeline", "sees_images"]

# Where the hub's repositories say which processor is theirs, in the order in which transformers looks.
_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
# Keyword arguments of `from_pretrained` that say where files are.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token")
# What its parts may need beyond what the library does.
_PACKAGES = ("torchvision", "num2words", "pillow")
# What a bad folder, a hub that is down, a missing package or a config of another version raise inside transformers.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


def sees_images(module: Any) -> bool:
    """Whether a model takes images."""
    return "pixel_values" in image_feeds(module)


def image_feeds(module: Any) -> set[str]:
    """Names of what a model's forward pass takes."""
    return set(inspect.signature(type(module).forward).parameters)


def image_token(module: Any) -> int | None:
    """The token in whose place a model puts what it sees; None: it takes no images."""
    return getattr(module.config, "image_token_id", None) if sees_images(module) else None


@contextmanager
def quiet_pipeline() -> Iterator[None]:
    """Leave out that a model which sees images is none for a pipeline of text: nnsight's, which prompts go past."""
    logger = logging.getLogger("transformers.pipelines.base")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def load_processor(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ProcessorMixin:
    """Load the processor of a model that sees, with or without torchvision.

    Arguments:
        source: a local folder or a hub id.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that the hub repository carries.
        options: keyword arguments that say where the files are (`cache_dir`, `token`, ...).

    Returns:
        A processor of the family's own class. Without torchvision it raises when it is given a video.

    Raises:
        InterpError: there is none, or it needs a package that is missing; the message says what to do.
    """
    name = str(Path(source).expanduser()) if Path(source).expanduser().exists() else str(source)
    hub = {"revision": revision, **dict(options or {})}
    try:
        kind = _class_of(name, hub, trust_remote_code)
        if kind is None:  # code that the repository carries
            found = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
            if not isinstance(found, ProcessorMixin):
                raise InterpError(
                    f"no processor in {str(source)!r}, only a {type(found).__name__}: expected processor_config.json "
                    "or preprocessor_config.json beside the weights; or pass processor=, an object."
                )
            return found
        tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code, options=options)
        return _assembled(kind, name, tokenizer, hub)
    except InterpError:
        raise
    except _LOAD_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        missing = [name for name in _PACKAGES if isinstance(error, ImportError) and name in str(error).lower()]
        if missing:
            advice = f"It needs a package that is missing: pip install {missing[0]}."
        else:
            advice = (
                "Expected preprocessor_config.json and processor_config.json beside the weights; or pass processor=, "
                "an object."
            )
        raise InterpError(f"no processor of images in {str(source)!r} ({said}). {advice}") from error


def processor_of(
    given: ProcessorMixin | str | Path | None,
    module: nn.Module,
    model: str | Path | nn.Module,
    revision: str | None,
    *,
    trust_remote_code: bool,
    options: Mapping[str, Any],
) -> tuple[ProcessorMixin | None, str]:
    """The processor that is given, or that lies where the model is; or None, which texts do without, and why.

    Arguments:
        given: what the user gave, an object or where it lies.
        module: the model, loaded.
        model: the same, or where it was loaded from.
        revision, trust_remote_code: of where the model is.
        options: keyword arguments of `from_pretrained`; those that say where files are hold for the processor too.

    Raises:
        InterpError: there is none where the user says that it is.
    """
    where = {name: value for name, value in options.items() if name in _WHERE}
    if isinstance(given, ProcessorMixin):
        return given, ""
    if given is not None:
        return load_processor(given, trust_remote_code=trust_remote_code, options=where), ""
    name = type(module).__name__
    if not sees_images(module):
        return None, f"{name} takes no images."
    if isinstance(model, nn.Module):
        return None, f"{name} was given no processor: pass processor=."
    try:
        found = load_processor(model, revision=revision, trust_remote_code=trust_remote_code, options=where)
    except InterpError as error:
        return None, str(error)
    return found, ""


def _class_of(name: str, hub: Mapping[str, Any], trust_remote_code: bool) -> type[ProcessorMixin] | None:
    """The family's class, one that reads images alone where torchvision is missing; None: not one of transformers'."""
    named = _class_name(name, hub, trust_remote_code)
    if named is None:
        return None
    if named == "PixtralProcessor" and not is_torchvision_available():  # its module imports torchvision, for nothing
        return PixtralProcessor
    found: Any = getattr(transformers, named, None)
    if not (inspect.isclass(found) and issubclass(found, ProcessorMixin)):
        return None
    return found if is_torchvision_available() else _images_only(found)


def _class_name(name: str, hub: Mapping[str, Any], trust_remote_code: bool) -> str | None:
    for file in _FILES:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        said: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if "AutoProcessor" in said.get("auto_map", {}) and trust_remote_code:
            return None
        if said.get("processor_class"):
            return str(said["processor_class"])
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    found = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return None if found is None else str(found)


def _images_only(kind: Any) -> Any:
    """The family's class without its video processor; the class itself where it has none."""
    attributes: list[str] = kind.get_attributes() if hasattr(kind, "get_attributes") else []
    if "video_processor" not in attributes:
        return kind
    kept = [part for part in attributes if part != "video_processor"]
    # Of the same name, which `save_pretrained` writes down.
    return type(
        kind.__name__,
        (kind,),
        {
            "__doc__": f"{kind.__name__} for images and text: videos need torchvision.",
            "__module__": __name__,
            "get_attributes": classmethod(lambda own: list(kept)),
            "video_processor": _NoVideos(),
        },
    )


def _assembled(kind: Any, name: str, tokenizer: PreTrainedTokenizerBase, hub: Mapping[str, Any]) -> ProcessorMixin:
    """A processor from its parts, as `ProcessorMixin.from_pretrained` makes it, but with the given tokenizer."""
    settings, _ = kind.get_processor_dict(name, **hub)
    parameters = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {"image_processor": AutoImageProcessor.from_pretrained(name, **hub), "tokenizer": tokenizer}
    unknown = set(kind.get_attributes()) - {*parts, "video_processor"}
    if unknown:
        raise InterpError(
            f"{kind.__name__} has parts for more than images, which are not loaded here: {', '.join(sorted(unknown))}. "
            "Load it with transformers, and pass processor=."
        )
    if "video_processor" in kind.get_attributes():
        parts["video_processor"] = AutoVideoProcessor.from_pretrained(name, **hub)
    elif "video_processor" in parameters:
        parts["video_processor"] = None
    said = {key: value for key, value in settings.items() if key in parameters and key not in parts}
    with _without_number_words():
        return kind(**parts, **said)


@contextmanager
def _without_number_words() -> Iterator[None]:
    """SmolVLM's class wants a package, num2words, that spells how many frames a video has."""
    if processing_smolvlm.num2words is not None:
        yield
        return
    with mock.patch.object(processing_smolvlm, "num2words", _NoVideos()):
        yield


class _NoVideos:
    """Stands where a video processor would."""

    num_frames = fps = None  # SmolVLM's chat template asks for them

    def __call__(self, *videos: Any, **settings: Any) -> Any:
        raise InterpError("reading videos needs torchvision: pip install torchvision. Images are read without it.")


class PixtralProcessor(ProcessorMixin):
    """Pixtral's processor for images and text, without torchvision; of the same name as transformers' own.

    An image is rows of `[IMG]`, each closed by `[IMG_BREAK]`, the last by `[IMG_END]`.
    """

    text_kwargs: ClassVar[Any] = {"return_tensors": "pt"}
    images_kwargs: ClassVar[Any] = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: Any = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        """Put it together; the arguments are those of transformers' class."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_break_token_id = tokenizer.convert_tokens_to_ids(image_break_token)
        self.image_end_token_id = tokenizer.convert_tokens_to_ids(image_end_token)

    @property
    def image_token_ids(self) -> list[int]:
        """The tokens that make up an image, breaks and end included."""
        return [self.image_token_id, self.image_break_token_id, self.image_end_token_id]

    def _process_images(self, images: Any, **settings: Any) -> Any:
        return super()._process_images(images, **{**settings, "patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **settings: Any) -> str:
        """The tokens of one image, as text."""
        patch = self.patch_size * self.spatial_merge_size
        rows, columns = (int(side) // patch for side in image_inputs["image_sizes"][image_idx])
        row = self.image_token * columns
        return self.image_break_token.join([row] * rows) + self.image_end_token

    @property
    def model_input_names(self) -> list[str]:
        """Names of what it gives to a model."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
