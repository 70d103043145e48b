"""Stage `code`: write down the state of the code and of the libraries that each stage is computed by.

    python -m pipeline.stages.code        # in a run folder

DVC runs it always, and first, in a fraction of a second. Every other stage depends on what is said of it, as on
parameters, so that `dvc status` and `dvc params diff` name the module that has changed:

    code/NAME.json   the stage's modules, each with the fingerprint of its meaning (`pipeline.fingerprints`); of
                     `tokenize` also the digest of the images that the task's table names, which DVC knows nothing of
    versions.json    a section a stage: the minor versions of its libraries (`pipeline.fingerprints`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.files import write_json
from pipeline.fingerprints import ANY, VERSIONS_FILE, minor_versions, of_stages, section_file
from pipeline.plugins import load, of_run, roots, used
from pipeline.stages.common import stage_main

IMAGES = "images of the task"  # beside the modules of stage `tokenize`


def write_code() -> None:
    """Write `code/` and `versions.json` of the current run folder."""
    extra, places = plugin_code()
    images = images_of_task()
    for name, modules in of_stages(extra=extra, roots=places).items():
        write_json(section_file(name), modules | images if name == "tokenize" else modules)
    sections = minor_versions()
    write_json(VERSIONS_FILE, sections if _policy() == "recompute" else dict.fromkeys(sections, ANY))


def plugin_code() -> tuple[dict[str, list[str]], dict[str, Path]]:
    """The plugins' code as part of the code of the stages of the current run folder.

    Returns:
        Stage -> the plugins' modules that it uses, by the kinds that the config chooses and the metrics that there are;
        and top-level name -> where its code lies. Both are empty without plugins.
    """
    names = of_run()
    if not names:
        return {}, {}
    import pipeline.tasks  # noqa: F401 its kinds are known then; all this takes its time
    from pipeline.config.lens import load_lenses
    from pipeline.config.section import load as load_config
    from pipeline.config.task import TaskConfig
    from pipeline.metrics import METRICS

    load(names)
    chosen: dict[str, list[Any]] = {
        "tokenize": [type(load_config(TaskConfig))],
        "lens": [type(config) for config in load_lenses().values()],
        "evaluate": [metric.measure for metric in METRICS.values()],  # all that there are, whatever the config says
    }
    return used(names, chosen), roots(names)


def images_of_task() -> dict[str, str]:
    """`IMAGES` -> one digest of the images that the input of the run folder's task names; empty where it names none.

    Raises:
        InterpError: the input cannot be read, or an image is missing.
    """
    if not _said("task", "image_columns"):  # only such a task names any, and to import them all takes its time
        return {}
    import pipeline.tasks  # noqa: F401 its kinds are known then
    from pipeline.config.section import load as load_config
    from pipeline.config.task import TaskConfig
    from pipeline.tables.image_files import combined_digest

    load(of_run())
    return {IMAGES: combined_digest(load_config(TaskConfig).files())}


def _said(section: str, key: str) -> Any:
    """A value of `params.yaml`; None: there is none."""
    try:
        values = yaml.load(Path("params.yaml").read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return values[section][key]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def _policy() -> str:
    """`cache.versions` of the run folder."""
    policy = _said("cache", "versions")
    if policy in ("recompute", "warn", "ignore"):
        return str(policy)
    from pipeline.config.section import load  # what is wrong is said as in any section; it takes its time
    from pipeline.config.tracking import CacheConfig

    return load(CacheConfig).versions


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("code", write_code)


if __name__ == "__main__":
    main()
