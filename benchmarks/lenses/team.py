"""The parent's side of the workers."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.lenses.environments import ROOT, python_for
from benchmarks.lenses.works import Result

__all__ = ["Worker", "WorkerError"]


class WorkerError(Exception):
    """A tool could not be loaded, or a work failed in it; `details` is what was printed."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class Worker:
    """A tool's process: started with its model, then asked for one thing after another.

    Arguments:
        tool: its name (`benchmarks.lenses.tools.TOOLS`).
        model: the folder of the model.
        threads: of the tool's matrix products.

    Raises:
        NoEnvironmentError: the tool's virtual environment could not be made.
        WorkerError: the tool did not load the model.
    """

    def __init__(self, tool: str, model: Path, threads: int) -> None:
        self.tool = tool
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        hub = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self._process = subprocess.Popen(
            [str(python_for(tool)), "-m", "benchmarks.lenses.worker", tool, str(model), str(threads)],
            cwd=ROOT,
            env={**os.environ, **hub, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self._answer()
        except WorkerError:
            self.close()
            raise

    def run(self, folder: Path, result: Path) -> tuple[dict[str, Any], Result]:
        """Run the work whose inputs lie in `folder`; what it cost (`Cost`'s fields) and its result."""
        cost = self.ask({"do": "run", "folder": str(folder), "result": str(result)})
        return cost, load_file(result)

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send one command and wait for the answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; reading says so, with what it printed last
            print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise WorkerError(f"{self.tool}: the process died.", self._log.read()[-3000:])
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.tool}: {answer['error']}", answer["traceback"][-3000:])
        return answer
