"""The notebook runs from its first to its last cell, and its pictures are not empty."""

import pytest
from helpers import ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbformat and nbclient: requirements-dev.txt")
nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient: requirements-dev.txt")

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SETTINGS = 'name="quickstart", epochs=8, steps=(5.0, 7.0), eval_every=8, resume=True'


@pytest.mark.slow
def test_the_notebook_runs_from_first_to_last_cell(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(NOTEBOOK, 4)
    tiny = f'name="quickstart", epochs=1, steps=(), eval_every=1, data_root={str(tree)!r}, log_dir={str(tmp_path)!r}'
    tiny += ', device="cpu", batch_size=8, images_per_id=2, height=32, width=16, k1=4, k2=2, ranked_lists=2'
    cell = next(cell for cell in book.cells if SETTINGS in cell.source)
    cell.source = cell.source.replace(SETTINGS, tiny)
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.get("text", "") for output in outputs)
    assert "flip+rerank" in printed and (tmp_path / "quickstart" / "last.pth").exists()


def test_the_notebook_is_stored_without_outputs():
    """Pictures of a run would make every commit of it large, and could show what must not be shown."""
    book = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.outputs for cell in book.cells if cell.cell_type == "code")
