"""Saved activations by what was asked for: `ActivationSaver` writes them, `ActivationLoader` finds them again.

    saver = ActivationSaver("activations", "animals")
    saver.save_cache(cache, tag="first try")
    cache, metadata = ActivationLoader.from_saver(saver).query(tag="first try").load()

A run is a folder, `BASE/EXPERIMENT/MODEL/TIME`, with the activations as safetensors and `metadata.json`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from interp.compat.easyroutine.cache_files import described, read_values, write_values
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.errors import InterpError

__all__ = ["ActivationLoader", "ActivationSaver", "QueryResult", "SavedRun"]

_TENSORS, _METADATA = "activations.safetensors", "metadata.json"
_VARIABLE = "ACTIVATION_BASE_DIR"


class _Experiment:
    """A folder of experiments, and one of them."""

    def __init__(self, base_dir: str | Path, experiment_name: str = "default") -> None:
        """
        Arguments:
            base_dir: the folder.
            experiment_name: a name in it.
        """
        self.base_dir, self.exp_name = Path(base_dir), experiment_name

    @classmethod
    def from_env(cls, experiment_name: str = "default") -> Self:
        """With the folder that the environment variable `ACTIVATION_BASE_DIR` names."""
        folder = os.environ.get(_VARIABLE)
        if folder is None:
            raise InterpError(f"{_VARIABLE} is not set in the environment. Set it, or give base_dir.")
        return cls(folder, experiment_name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_dir={self.base_dir}, experiment_name={self.exp_name})"


class ActivationSaver(_Experiment):
    """Writes activations into an experiment."""

    def save_cache(
        self, cache: ActivationCache, other_metadata: Mapping[str, Any] | None = None, tag: str | None = None
    ) -> Path:
        """Write a cache of `extract_cache`, which knows what was asked for.

        Arguments:
            cache: with `metadata`.
            other_metadata: more to find it by.
            tag: a word to find it by.

        Returns:
            The run's folder.

        Raises:
            InterpError: the cache has no metadata.
        """
        held = cache.get("metadata")
        if held is None:
            raise InterpError("save_cache: the cache has no metadata, as extract_cache gives it. Write save(...).")
        return self.save(
            cache, held["model_name"], held["target_token_positions"], held["interventions"],
            held["extraction_config"], other_metadata, tag,
        )  # fmt: skip

    def save(
        self,
        activations: Any,
        model: Any,
        target_token_positions: Any,
        interventions: Any = None,
        extraction_config: Any = None,
        other_metadata: Mapping[str, Any] | None = None,
        tag: str | None = None,
    ) -> Path:
        """Write activations.

        Arguments:
            activations: a cache, or tensors, numbers and texts in lists and dictionaries.
            model: the `HookedModel`, or its name.
            target_token_positions, interventions, extraction_config: what was asked for.
            other_metadata: more to find it by.
            tag: a word to find it by.

        Returns:
            The run's folder.
        """
        name = str(getattr(model, "name", model))
        now = datetime.now()
        metadata = {
            "tag": tag,
            "save_time": now.strftime("%Y-%m-%d %H:%M:%S"),
            "model_name": name,
            "target_token_positions": target_token_positions,
            "interventions": interventions,
            "extraction_config": extraction_config,
            **(other_metadata or {}),
        }
        text = json.dumps(_plain(metadata), indent=2) + "\n"
        folder = self._new_folder(name, now)
        try:
            if isinstance(activations, ActivationCache):
                activations.save(folder / _TENSORS)
            else:
                write_values(folder / _TENSORS, {"activations": activations})
        except InterpError:
            folder.rmdir()
            raise
        (folder / _METADATA).write_text(text, encoding="utf-8")  # last: without it there is no run
        return folder

    def _new_folder(self, name: str, now: datetime) -> Path:
        """A folder of its own, also for the second run of a second."""
        model = self.base_dir / self.exp_name / name.strip("/").replace("/", "_")
        begin, count = now.strftime("%Y-%m-%d_%H_%M_%S"), 1
        while True:
            folder = model / (begin if count == 1 else f"{begin}_{count:03d}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                count += 1
            else:
                return folder

    def rename_experiment(self, new_experiment_name: str) -> None:
        """Call the experiment otherwise.

        Raises:
            InterpError: it is not there, or the other is.
        """
        old, new = self.base_dir / self.exp_name, self.base_dir / new_experiment_name
        if not old.is_dir() or new.exists():
            why = f"{old} is not there" if not old.is_dir() else f"{new} is there already"
            raise InterpError(f"rename_experiment: {why}.")
        old.rename(new)
        self.exp_name = new_experiment_name


@dataclass(frozen=True)
class SavedRun:
    """One run.

    Arguments:
        folder: where it is.
        metadata: what was asked for.
    """

    folder: Path
    metadata: dict[str, Any]

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return self.folder.parent.parent.name

    def load(self) -> tuple[Any, dict[str, Any]]:
        """The activations, and what was asked for."""
        held = read_values(self.folder / _TENSORS)
        if set(held) == {"activations"}:
            return held["activations"], self.metadata
        return ActivationCache.load(self.folder / _TENSORS), self.metadata


class QueryResult:
    """The runs that a query found, the oldest first."""

    def __init__(self, runs: list[SavedRun]) -> None:
        self.results = sorted(runs, key=lambda run: run.folder.name)

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[SavedRun]:
        return iter(self.results)

    def __getitem__(self, index: int | slice) -> Any:
        return QueryResult(self.results[index]) if isinstance(index, slice) else self.results[index]

    def __repr__(self) -> str:
        return "\n".join(
            f"{index} - Experiment: {run.experiment}, Model: {run.folder.parent.name}, Time Folder: {run.folder.name}"
            + (f", Tag: {run.metadata['tag']}" if run.metadata.get("tag") else "")
            for index, run in enumerate(self.results)
        )

    def get_paths(self) -> list[Path]:
        """The folders of the runs."""
        return [run.folder for run in self.results]

    def load(self, time: str | int = -1) -> tuple[Any, dict[str, Any]]:
        """The activations of one run, and what was asked for.

        Arguments:
            time: which: its place, or the name of its folder.

        Raises:
            InterpError: there is none.
        """
        return self._run(time).load()

    def remove(self, time: str | int) -> None:
        """Delete one run; see `load`."""
        run = self._run(time)
        shutil.rmtree(run.folder)
        self.results.remove(run)

    def update_run_experiment(self, identifier: str | int, new_experiment_name: str) -> None:
        """Move one run to another experiment; see `load`.

        Raises:
            InterpError: there is no such run, or one like it in the other experiment.
        """
        run = self._run(identifier)
        folder = run.folder.parent.parent.parent / new_experiment_name / run.folder.parent.name / run.folder.name
        if folder.exists():
            raise InterpError(f"update_run_experiment: {folder} is there already.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        run.folder.rename(folder)
        self.results[self.results.index(run)] = SavedRun(folder, run.metadata)

    def _run(self, which: str | int) -> SavedRun:
        if isinstance(which, str):
            named = [run for run in self.results if run.folder.name == which]
        else:
            named = self.results[which : which + 1 or None]
        if not named:
            raise InterpError(f"there is no run {which!r} among {len(self.results)}.\n{self!r}".rstrip())
        return named[0]


class ActivationLoader(_Experiment):
    """Finds saved activations by what was asked for."""

    @classmethod
    def from_saver(cls, saver: ActivationSaver) -> Self:
        """Of the same folder."""
        return cls(saver.base_dir, saver.exp_name)

    def query(
        self,
        experiment_name: str | None = None,
        model_name: str | None = None,
        target_token_positions: Any = None,
        pivot_positions: Any = None,
        save_time: str | None = None,
        custom_keys: Mapping[str, Any] | None = None,
        extraction_config: Any = None,
        interventions: Any = None,
        tag: str | None = None,
    ) -> QueryResult:
        """The runs for which all that is given is so; what is None may be anything.

        Arguments:
            experiment_name: of the experiment; None: every one.
            model_name, target_token_positions, pivot_positions, save_time, extraction_config, interventions, tag: what
                was asked for.
            custom_keys: fields of `other_metadata`.

        Raises:
            InterpError: there is no such folder.
        """
        if not self.base_dir.is_dir():
            raise InterpError(f"there is no folder {str(self.base_dir)!r}.")
        wanted = {
            "model_name": model_name,
            "target_token_positions": target_token_positions,
            "pivot_positions": pivot_positions,
            "save_time": save_time,
            "extraction_config": extraction_config,
            "interventions": interventions,
            "tag": tag,
            **(custom_keys or {}),
        }
        wanted = {name: _plain(value) for name, value in wanted.items() if value is not None}
        runs = []
        for path in self.base_dir.glob(f"{experiment_name or '*'}/*/*/{_METADATA}"):
            metadata = json.loads(path.read_text(encoding="utf-8"))
            if all(metadata.get(name) == value for name, value in wanted.items()):
                runs.append(SavedRun(path.parent, metadata))
        return QueryResult(runs)


def _plain(value: Any) -> Any:
    """What JSON gives back as it was."""
    value = value.to_dict() if callable(getattr(value, "to_dict", None)) and not hasattr(value, "columns") else value
    value = described(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return f"tensor of shape {tuple(value.shape)}" if hasattr(value, "shape") else value
