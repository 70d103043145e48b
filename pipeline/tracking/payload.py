"""Turn the files of a run folder into parameters, metrics and tags, without MLflow."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from interp.errors import InterpError

# Sections and keys that say nothing about what was measured, and would only widen the table of runs.
UNTRACKED_SECTIONS = {"report", "store", "tracking"}
UNTRACKED_KEYS = {"depends_on", "template", "batch_size", "batch_tokens", "share_prefixes", "trust_remote_code"}
ARTIFACTS = ("params.yaml", "dvc.lock", "run.json", "metrics.json", "curves.parquet", "grids.parquet", "report")
VALUE_LENGTH = 500  # MLflow cuts parameters at 6000 characters with only a warning; nobody compares longer ones by eye


@dataclass(frozen=True)
class Payload:
    """A run, ready to be sent.

    Arguments:
        name: what the table of runs shows.
        status: `FINISHED`, `FAILED` or `KILLED`.
        started, ended: milliseconds since 1970-01-01 UTC.
        parameters: flattened config.
        tags: versions, git state, swept values, where the tensors are.
        curves: (metric, layer, value).
        summary: metric -> value.
        artifacts: files and folders to upload.
        dataset: (name, source, digest) of the tokenized prompts, where they exist.
        sweep: name and key of the sweep that the run belongs to.
    """

    name: str
    status: str
    started: int
    ended: int
    parameters: dict[str, str]
    tags: dict[str, str]
    curves: list[tuple[str, int, float]]
    summary: dict[str, float]
    artifacts: list[Path]
    dataset: tuple[str, str, str] | None
    sweep: tuple[str, str] | None


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted names; a list is a leaf."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def parameters_of(params: dict[str, Any]) -> dict[str, str]:
    """The config as MLflow parameters: dotted names, short values, only what can make two runs differ."""
    parameters = {}
    for section, values in params.items():
        if section in UNTRACKED_SECTIONS or not values:
            continue
        for key, value in flatten(values, section):
            if value is None or value == {} or key.rsplit(".", 1)[-1] in UNTRACKED_KEYS:
                continue
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parameters[key] = text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 1] + "…"
    return parameters


def metric_name(*parts: str) -> str:
    """A name that MLflow takes: other characters than letters, digits and `_-. /` become `_`."""
    allowed = frozenset(string.ascii_letters + string.digits + "_-. ")
    return "/".join("".join(c if c in allowed else "_" for c in part) for part in parts if part)


def curves_of(path: Path) -> list[tuple[str, int, float]]:
    """The means by layer of `curves.parquet`: (`lens/metric/group/block`, layer, value), finite ones only."""
    from pipeline.stages.evaluate.tables import read_curves

    return [
        (metric_name(row.lens, row.metric, row.group, row.block), row.layer, row.mean)
        for row in read_curves(path)
        if row.layer >= 0 and row.mean is not None and math.isfinite(row.mean)
    ]


def summary_of(metrics: dict[str, Any], stages: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Scalars: the numbers of `metrics.json` under `summary/`, and what each stage cost under `stage/`.

    MLflow's chart page makes a section of everything before the last slash, so dots separate the rest.
    """
    summary = {}
    for key, value in flatten(metrics, ""):
        if isinstance(value, int | float) and math.isfinite(value):
            summary[metric_name("summary", key)] = float(value)
    for stage, measured in stages.items():
        for key, value in measured.items():
            if isinstance(value, int | float) and math.isfinite(value):
                summary[metric_name("stage", f"{stage}.{key}")] = float(value)
        tokens, seconds = measured.get("tokens"), measured.get("model_seconds") or measured.get("seconds")
        if tokens and seconds:
            summary[metric_name("stage", f"{stage}.tokens_per_second")] = tokens / seconds
    return summary


def milliseconds(moment: str) -> int:
    """An ISO 8601 moment as milliseconds since 1970-01-01 UTC."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is no file."""
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> Payload:
    """Read all that a run folder has to tell.

    Arguments:
        folder: a run folder; the run may have failed half-way.

    Raises:
        InterpError: the folder holds no run.
    """
    run = read_json(folder / "run.json")
    if not run or not (folder / "params.yaml").is_file():
        raise InterpError(
            f"expected a run folder with run.json and params.yaml, got {folder}. Run folders are under outputs/; "
            "`python -m pipeline` makes one."
        )
    loaded = OmegaConf.to_container(OmegaConf.load(folder / "params.yaml"), resolve=True)
    assert isinstance(loaded, dict)
    params: dict[str, Any] = {str(section): values for section, values in loaded.items()}
    sweep = run.get("sweep") or {}
    swept: dict[str, Any] = sweep.get("swept") or {}
    outputs: dict[str, str] = run.get("outputs") or {}
    git: dict[str, Any] = run.get("git") or {}

    tags = {f"version.{library}": str(version) for library, version in (run.get("versions") or {}).items()}
    tags |= {f"sweep.{key}": str(value) for key, value in swept.items()}
    tags |= {f"plugin.{name}": str(digest) for name, digest in (run.get("plugins") or {}).items()}
    tags |= {f"git.{key}": str(value) for key, value in git.items() if value is not None}
    tags |= {"run_folder": str(folder.resolve()), "overrides": " ".join(run.get("overrides") or [])[:4000]}
    if git.get("commit"):
        tags["mlflow.source.git.commit"] = str(git["commit"])
    if run.get("message"):
        tags["message"] = str(run["message"])[:4000]
    for store in ("activations.zarr", "lens.zarr"):
        if store in outputs:
            tags |= {f"store.{store}": str(folder.resolve() / store), f"store.{store}.digest": outputs[store]}
    tags |= {str(key): str(value) for key, value in (params.get("tracking", {}).get("tags") or {}).items()}

    name = ", ".join(f"{key}={value}" for key, value in swept.items())
    curves = folder / "curves.parquet"
    kind, prompts = params["task"]["kind"], outputs.get("tokens/prompts")
    finished = run["status"] == "FINISHED"  # what a failed run left of an older attempt is not its result
    return Payload(
        name=name or f"{params['model']['name']} {_experiment(run) or kind} {folder.name}",
        # A driver that was killed without a word never got to say that the run is over.
        status="KILLED" if run["status"] == "RUNNING" else run["status"],
        started=milliseconds(run["started"]),
        ended=milliseconds(run["ended"]),
        parameters=parameters_of(params),
        tags=tags,
        curves=curves_of(curves) if finished and curves.is_file() else [],
        summary=summary_of(read_json(folder / "metrics.json") if finished else {}, run.get("stages") or {}),
        artifacts=[folder / artifact for artifact in ARTIFACTS if (folder / artifact).exists()],
        dataset=(f"{kind} prompts", str(folder.resolve() / "tokens/prompts"), prompts) if prompts else None,
        sweep=(sweep["name"], sweep.get("key") or sweep["name"]) if sweep.get("name") else None,
    )


def _experiment(run: dict[str, Any]) -> str:
    """The choice of the group `experiment` that a run was started with; empty: none."""
    chosen = [text.removeprefix("experiment=") for text in run.get("overrides") or [] if text.startswith("experiment=")]
    return chosen[-1] if chosen and chosen[-1] != "null" else ""
