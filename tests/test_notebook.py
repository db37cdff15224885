"""pytest tests/test_notebook.py: run.ipynb runs from top to bottom, with small settings, and its figures show something."""
import base64
import io
from pathlib import Path

import nbformat
import numpy as np
from matplotlib.image import imread
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FIGURES = 11


def images(notebook):
    """The pictures among the outputs, as arrays (height, width, channels) of 0 to 1."""
    return [imread(io.BytesIO(base64.b64decode(output.data["image/png"]))) for cell in notebook.cells
            for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]


def check(notebook):
    for cell in notebook.cells:
        assert all(output.output_type != "error" for output in cell.get("outputs", ())), cell.source
    found = images(notebook)
    assert len(found) == FIGURES
    for picture in found:
        inside = picture[picture.shape[0] // 5:-picture.shape[0] // 5, picture.shape[1] // 5:-picture.shape[1] // 5, :3]
        assert (np.abs(inside - 1) > 0.1).any(axis=-1).mean() > 0.002, "an empty figure"
    text = "\n".join(output.get("data", {}).get("text/markdown", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    for method in ("base", "icl", "sft", "ia2", "ia2-sft"):
        assert f"| {method} " in text


def test_the_notebook_runs_clean_with_small_settings(monkeypatch):
    monkeypatch.setenv("IA2_QUICK", "1")
    notebook = nbformat.read(ROOT / "run.ipynb", 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    check(notebook)


def test_the_committed_outputs_are_whole():
    notebook = nbformat.read(ROOT / "run.ipynb", 4)
    nbformat.validate(notebook)
    check(notebook)
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(ran) + 1)), "run from top to bottom, once"
    assert "IA2_QUICK" not in "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
