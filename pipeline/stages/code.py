"""Stage `code`: the state of the code and of the libraries that each stage is computed by.

    python -m pipeline.stages.code        # in a run folder

DVC runs it always, and first, in a fraction of a second. Every other stage depends on what is said of it, as on
parameters, so that `dvc status` and `dvc params diff` name the module that has changed:

    code/NAME.json   the stage's modules, each with the fingerprint of its meaning (`pipeline.fingerprints`)
    versions.json    a section a stage: the minor versions of its libraries (`pipeline.stages.versions`)
"""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.files import write_json
from pipeline.fingerprints import of_stages, section_file
from pipeline.plugins import of_run
from pipeline.stages.common import stage_main
from pipeline.stages.versions import ANY, VERSIONS_FILE, minor_versions


def write_code() -> None:
    """Write `code/` and `versions.json` of the current run folder."""
    extra: dict[str, list[str]] = {}
    roots: dict[str, Path] = {}
    if of_run():  # else no config need be read for it
        from pipeline.stages.plugin_code import plugin_code

        extra, roots = plugin_code()
    for name, modules in of_stages(extra=extra, roots=roots).items():
        write_json(section_file(name), modules)
    sections = minor_versions()
    write_json(VERSIONS_FILE, sections if _policy() == "recompute" else dict.fromkeys(sections, ANY))


def _policy() -> str:
    """`cache.versions` of the run folder."""
    try:
        values = yaml.load(Path("params.yaml").read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        policy = values["cache"]["versions"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        policy = None
    if policy in ("recompute", "warn", "ignore"):
        return str(policy)
    from pipeline.config.base import load  # what is wrong is said as in any section; it takes its time
    from pipeline.config.tracking import CacheConfig

    return load(CacheConfig).versions


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("code", write_code)


if __name__ == "__main__":
    main()
