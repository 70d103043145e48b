"""Virtual environments of the tools that cannot live in ours: made once, at the root, in folders that git ignores."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ENVIRONMENTS", "NoEnvironmentError", "python_for"]

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
# By tool, the folder; the file of requirements has the tool's name, and pins every version.
ENVIRONMENTS = {"nnterp": ROOT / ".venv-nnterp", "transformer_lens": ROOT / ".venv-transformer-lens"}


class NoEnvironmentError(Exception):
    """A tool's environment could not be made; one line that says why."""


def python_for(tool: str) -> Path:
    """The Python that runs a tool; makes its environment if it is missing or was made for other versions.

    Raises:
        NoEnvironmentError: pip could not install the tool, for lack of a network above all.
    """
    if tool not in ENVIRONMENTS:
        return Path(sys.executable)
    folder, requirements = ENVIRONMENTS[tool], REQUIREMENTS / f"{tool}.txt"
    python, marker = folder / "bin" / "python", folder / ".ready"
    wanted = requirements.read_text(encoding="utf-8")
    if python.exists() and marker.exists() and marker.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Installing {tool} into {folder.name} (once, about two minutes) ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "--requirement", str(requirements)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            reason = errors[-1] if errors else f"exit status {done.returncode}"
            raise NoEnvironmentError(f"{tool}: no environment could be made: {reason}")
    marker.write_text(wanted, encoding="utf-8")
    return python
