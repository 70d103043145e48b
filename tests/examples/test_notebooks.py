"""The notebooks in examples/: each runs from top to bottom, and is kept without what it printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def test_there_are_five() -> None:
    names = {notebook.stem for notebook in NOTEBOOKS}
    assert names >= {"lenses_on_your_prompts", "patchscopes", "tuned_lens", "sweep", "your_own_lens"}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel for all of them, since importing torch and transformers is most of what a small one does."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # the debugger of a kernel, which nobody attaches to
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # nothing of the user's own
            patch.setenv(name, str(folder / name))
        client = NotebookClient(nbformat.v4.new_notebook(), timeout=600, kernel_name="python3")
        with client.setup_kernel():
            yield client


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path, kernel: NotebookClient) -> None:
    kernel.nb = content = nbformat.read(notebook, as_version=4)
    content.cells.insert(
        0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {notebook.parent}")
    )  # as if it were the first
    # A cell that fails raises; the assertions of a notebook are in its cells.
    kernel.execute(cleanup_kc=False)
    assert any(cell.get("outputs") for cell in content.cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
