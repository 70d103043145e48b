"""Image prompts: the user's own images with prompts and answers, from a table or a folder.

    {"image": "photos/7.jpg", "question": "What is this?", "answer": "cat"}      a row
    task.template='USER: <image>\n{question} ASSISTANT:'                         what a model is fed of it

All that can be wrong with a row is found where the config is checked: an image that is missing or broken, a text whose
placeholders are not as many as its images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InterpError, nearest
from interp.prompts import POLICIES, Encoded, Prompt, encode_with_images
from pipeline.artifacts.tokens import Row, TaskData
from pipeline.config.paths import located
from pipeline.config.section import LARGEST_COUNT, MISSING, ConfigError, bounded, chosen, passage
from pipeline.config.task import TaskConfig
from pipeline.files import sha256_of
from pipeline.tables.image_files import check_image, folder_of, image_file, read_image_rows
from pipeline.tables.json_rows import Literal
from pipeline.tables.table import Cell, Table, TableError
from pipeline.tables.text_files import QUOTING
from pipeline.tasks.build import Answer, Answers, check_different, check_file_encoding, make_row, shortened
from pipeline.tasks.rows import Rows, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ImageEncoder", "ImagePromptsConfig", "placed"]

SPAN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")  # what positions can name
OF_IMAGES = ("image", "text")  # spans of the prompts' images, and of all that is none
OWN_LABELS = ("collides", "id", "image")
# Marks that a processor expects round its image token, and does not write (Qwen2-VL and later).
MARKED = {"<|image_pad|>": ("<|vision_start|>", "<|vision_end|>")}
NAME_LENGTH = 32  # hexadecimal digits of an image's digest, which is its name among the tokens


@dataclass(frozen=True)
class ImagePromptsConfig(TaskConfig):
    """The user's own images, each with a prompt and its answers: a table that names them, or a folder of images.

    Arguments:
        kind: `image_prompts`.
        source: a table (`.csv`, `.tsv`, `.json`, `.jsonl`, `.parquet`; also `.gz`), or a folder of images, with a
            metadata.csv, .jsonl or .parquet as `datasets` reads it ("imagefolder"), or without: then each image is a
            row, with the columns `image` and `label`, the folder that it lies in.
        encoding, quoting: as in `next_token`.
        image_columns: columns that hold paths of images, each a path, a list of them or nothing. Paths count from the
            folder of the table. A row's images are those of its columns, in order.
        template: the prompt; `{NAME}` is filled with a row's column and is the span `NAME`, `{{` and `}}` are braces.
        placeholder: the text in a prompt that stands for an image, once for each; the model's own goes in its place.
        target_columns: columns that hold accepted answers (a text or a number, or a list of those), one target group
            each.
        label_columns: columns kept as labels.
        id_column: column whose text names a row in the report, the label `id`; null: none.
        list_cells: as in `next_token`; also of the columns of images.
        max_prompts: how many rows at most, in order; null: all.
        target_policy: as in `translation`.
        depends_on: the file or folder that the stage depends on; what images hold counts as well.
    """

    file_key: ClassVar[str] = "source"
    sees: ClassVar[bool] = True

    kind: str = "image_prompts"
    source: str = MISSING
    encoding: str = "auto"
    quoting: str = chosen("auto", *QUOTING)
    image_columns: list[str] = field(default_factory=lambda: ["image"])
    template: str = passage("{prompt}")
    placeholder: str = "<image>"
    target_columns: list[str] = field(default_factory=list)
    label_columns: list[str] = field(default_factory=list)
    id_column: str | None = None
    list_cells: str = chosen("auto", "auto", "always", "text")
    max_prompts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = chosen("first_token", *POLICIES)
    depends_on: str = MISSING

    def spans(self) -> tuple[str, ...]:
        """The spans that it marks in its prompts: of images, as many as each prompt has, and of the template."""
        images = [
            span.format(number)
            for number in range(self._fewest_images)
            for span in ("image[{}]", "image[{}].begin", "image[{}].end", "text.after_image[{}]")
        ]
        named = [blank for blank in blanks_of(self.template) if _is_span(blank)]
        return (*named, "text", *(("image", *images) if images else ()))

    def files(self) -> dict[str, Path]:
        """Its images: path as the source names it -> file."""
        return dict(pair for row in self.rows(located(self.source)) for pair in row.images)

    def check(self) -> None:
        """Check the settings against each other, and every row that is used with its images; raises ConfigError."""
        check_file_encoding(self.encoding)
        if not self.placeholder.strip():
            raise ConfigError(f"task.placeholder: expected a text such as <image>, got {self.placeholder!r}.")
        if not self.image_columns:
            raise ConfigError("task.image_columns: expected at least one column, e.g. [image], got none.")
        check_different("task.target_columns", self.target_columns)
        for name in OWN_LABELS:
            if name in self.label_columns:
                raise ConfigError(
                    f"task.label_columns: {name!r} is a label that the task writes itself. Rename the column."
                )
        for row in self.rows(located(self.source)):
            for _, path in row.images:
                try:
                    check_image(path)
                except TableError as error:
                    raise ConfigError(f"{row.where}: {error}") from None

    def rows(self, source: Path) -> ImageRows:
        """The rows of its source, each checked as it comes.

        Arguments:
            source: where that is.

        Raises:
            ConfigError: it cannot be read, or lacks a column.
        """
        return ImageRows(self, source)

    def make(
        self, tokenizer: PreTrainedTokenizerBase, context_length: int | None, encoder: ImageEncoder | None = None
    ) -> TaskData:
        """One prompt a row, one answer group a target column.

        Spans: those of images (`interp.positions`), and each blank of the template.

        Arguments:
            tokenizer: the model's.
            context_length: how many tokens the model reads at most; None: no limit is known.
            encoder: of the model, which makes tokens of images.

        Returns:
            The prompts and their images. A group without answer (no value, or no word with a token) is empty there, and
            counted.

        Raises:
            ConfigError: the source cannot be read, or lacks a column; a row whose images or placeholders are wrong.
            InterpError: an answer that is none, a prompt that is too long, or no row is left; the message names the
                line. Rows without a text that the template asks for are left out, and counted.
        """
        if encoder is None:
            raise InterpError(f"task {self.kind}: expected what encodes images, got nothing.")
        rows = self.rows(Path(self.source))
        answers = Answers(tokenizer, self.target_policy)
        prompts: list[Row] = []
        files: dict[str, Path] = {}
        missing = unusable = 0
        for row in rows:
            names = []
            for _, path in row.images:
                name = f"{sha256_of(path)[:NAME_LENGTH]}{check_image(path)}"
                names.append(name)
                files[name] = path
            groups: dict[str, Answer] = {}
            for column in self.target_columns:
                words = rows.rows.words(row.values, column, row.where)
                groups[column] = answers(words)
                missing += not words
                unusable += bool(words) and not groups[column].token_ids
            text, spans = placed(row.text, row.spans, self.placeholder, encoder.placeholder)
            paths = tuple(path for _, path in row.images)
            prompts.append(
                make_row(
                    tokenizer,
                    context_length,
                    where=row.where,
                    prompt=text,
                    spans=spans,
                    labels=row.labels,
                    answers=groups,
                    find=rows.rows.find,
                    encoder=partial(encoder, images=paths) if paths else None,
                    images=names,
                )
            )
        rows.rows.check_left(len(prompts))
        counts = {
            "rows": rows.rows.total,
            "rows_over_limit": rows.rows.total - rows.rows.used,
            "rows_left_out": rows.rows.dropped,
            "prompts": len(prompts),
            "prompts_colliding": sum(row.labels["collides"] == "yes" for row in prompts),
            "images": len(files),
            "answers_missing": missing,
            "answers_without_tokens": unusable,
            "words_without_tokens": len(answers.unusable),
        }
        named = {column: column for column in self.target_columns}
        return TaskData(
            prompts, counts=counts, groups=named, notes=rows.rows.notes(), read_as=rows.rows.read_as, images=files
        )

    @cached_property
    def _fewest_images(self) -> int:
        return min((len(row.images) for row in self.rows(located(self.source))), default=0)


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes prompts with images as one model is fed them.

    Arguments:
        processor: the model's.
        image_token_id: the token in whose place the model puts what it sees.
    """

    processor: Any
    image_token_id: int

    @property
    def placeholder(self) -> str:
        """What stands in a text of the model's for an image, with the marks round it that the processor leaves out."""
        token: str = self.processor.image_token
        before, after = MARKED.get(token, ("", ""))
        marked = {before, after} <= set(self.processor.tokenizer.get_vocab())
        return f"{before}{token}{after}" if marked else token

    def __call__(self, text: str, spans: Mapping[str, tuple[int, int]], images: tuple[Path, ...]) -> Encoded:
        """Token ids and spans of one prompt.

        Raises:
            InterpError: as `interp.prompts.encode_with_images`.
        """
        prompt = Prompt(text, spans=spans, images=images)
        return encode_with_images(self.processor, prompt, (), self.image_token_id)


def placed(
    text: str, spans: Mapping[str, tuple[int, int]], placeholder: str, own: str
) -> tuple[str, dict[str, tuple[int, int]]]:
    """A text with a model's own placeholders.

    Arguments:
        text: with the task's placeholders.
        spans: name -> characters.
        placeholder: the task's.
        own: the model's.

    Returns:
        The text, and where its spans then are.
    """
    ends = [match.end() for match in re.finditer(re.escape(placeholder), text)]
    longer = len(own) - len(placeholder)

    def moved(character: int) -> int:
        return character + longer * sum(end <= character for end in ends)

    return text.replace(placeholder, own), {name: (moved(start), moved(stop)) for name, (start, stop) in spans.items()}


@dataclass(frozen=True)
class ImageRow:
    """A row that is used.

    Arguments:
        where: it stands, for messages.
        values: column -> cell.
        text: the prompt, with the task's placeholders.
        spans: blank of the template -> characters.
        images: (path as the row names it, file), in order.
        labels: name -> value.
    """

    where: str
    values: Mapping[str, Cell]
    text: str
    spans: Mapping[str, tuple[int, int]]
    images: list[tuple[str, Path]]
    labels: Mapping[str, str]


class ImageRows:
    """The rows of a source, with their texts and images.

    Attributes:
        rows: the source's, with what was odd about them.

    Raises:
        ConfigError: the source cannot be read, or lacks a column. While iterated: an image is missing, or a text has
            not as many placeholders as the row has images.
    """

    def __init__(self, config: ImagePromptsConfig, source: Path) -> None:
        self._config, self._folder = config, folder_of(source)
        try:
            table = read_image_rows(source, config.encoding, config.quoting)
        except TableError as error:
            raise ConfigError(f"task.source: {error}") from None
        blanks = blanks_of(config.template)
        _check_blanks(blanks, table)
        columns = {
            "image_columns": config.image_columns,
            "template": blanks,
            "target_columns": config.target_columns,
            "label_columns": config.label_columns,
            "id_column": [] if config.id_column is None else [config.id_column],
        }
        self.rows = Rows(Source(str(source), list_cells=config.list_cells), columns, config.max_prompts, table)

    def __iter__(self) -> Iterator[ImageRow]:
        for where, values in self.rows:
            filled = self._filled(where, values)
            if filled is None:
                continue
            text, spans = filled
            named = [
                name for column in self._config.image_columns for name in self.rows.words(values, column, where) if name
            ]
            self._check_placeholders(where, text, len(named))
            try:
                images = [(name, image_file(self._folder, name)) for name in named]
            except TableError as error:
                raise ConfigError(f"{where}: {error}") from None
            yield ImageRow(where, values, text, spans, images, self._labels(values, images))

    def _filled(self, where: str, values: Mapping[str, Cell]) -> tuple[str, dict[str, tuple[int, int]]] | None:
        """The template with a row's texts, and where each stands; None: one is missing, the row is dropped."""
        text = ""
        spans: dict[str, tuple[int, int]] = {}
        for literal, blank in _parts(self._config.template):
            text += literal
            if blank is None:
                continue
            value = values[blank]
            own = str(value) if isinstance(value, Literal) else self.rows.text(values, blank, where, blank)
            if own is None:
                return None
            if _is_span(blank):
                spans[blank] = len(text), len(text) + len(own)
            text += own
        return text, spans

    def _check_placeholders(self, where: str, text: str, images: int) -> None:
        placeholder, template = self._config.placeholder, self._config.template
        count = text.count(placeholder)
        if count == images:
            return
        if count == 0:
            remedy = f"Put it into the template, e.g. task.template={placeholder * images + template!r}"
        elif images == 0:
            remedy = "Name the image of the row, or take the placeholder out"
        else:
            remedy = "Write it once for each image, where that stands"
        raise ConfigError(
            f"{where}: expected {placeholder!r} once for each of its {images} image{'' if images == 1 else 's'}, got "
            f"it {count} time{'' if count == 1 else 's'} in {shortened(text)}. {remedy}; another text that stands for "
            "an image is named by task.placeholder."
        )

    def _labels(self, values: Mapping[str, Cell], images: list[tuple[str, Path]]) -> dict[str, str]:
        own = {"image": ", ".join(path.name for _, path in images)}  # no path, which could be a machine's
        named = self._config.id_column
        if named is not None:
            own = {"id": self.rows.labels(values, [named])[named]} | own
        return own | self.rows.labels(values, self._config.label_columns)


def blanks_of(template: str) -> list[str]:
    """The columns that a template names, each once.

    Raises:
        ConfigError: it cannot be read, or a blank has no name, a width or a conversion.
    """
    return list(dict.fromkeys(blank for _, blank in _parts(template) if blank is not None))


def _parts(template: str) -> list[tuple[str, str | None]]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"task.template: {template!r} is not a template ({error}). Write a brace itself as '{{{{'."
        ) from None
    for _, blank, width, conversion in parsed:
        if blank == "" or width or conversion:
            written = f"{blank}{f'!{conversion}' if conversion else ''}{f':{width}' if width else ''}"
            raise ConfigError(
                f"task.template: {{{written}}}: expected the name of a column alone in braces, e.g. {{question}}."
            )
    return [(literal, blank) for literal, blank, _, _ in parsed]


def _check_blanks(blanks: list[str], table: Table) -> None:
    for blank in blanks:
        if blank not in table.columns:
            known = ", ".join(map(repr, table.columns))
            raise ConfigError(
                f"task.template: {table.path} has no column {blank!r}, it has {known}.{nearest(blank, table.columns)} "
                "A text without blanks is the prompt of every row, e.g. task.template='<image> What is this?'"
            )


def _is_span(blank: str) -> bool:
    return SPAN.fullmatch(blank) is not None and blank not in OF_IMAGES
