"""The notebooks in examples/: each runs from top to bottom, and is kept without what it printed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def test_there_are_five() -> None:
    names = {notebook.stem for notebook in NOTEBOOKS}
    assert names >= {"lenses_on_your_prompts", "patchscopes", "tuned_lens", "sweep", "your_own_lens"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # the debugger of a kernel, which nobody attaches to
    for folder in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # nothing of the user's own
        monkeypatch.setenv(folder, str(tmp_path / folder))
    content = nbformat.read(notebook, as_version=4)
    # A cell that fails raises; the assertions of a notebook are in its cells.
    NotebookClient(
        content, timeout=600, kernel_name="python3", resources={"metadata": {"path": notebook.parent}}
    ).execute()
    assert any(cell.get("outputs") for cell in content.cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
