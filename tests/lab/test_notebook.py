"""pytest tests/lab/test_notebook.py: run.ipynb runs from top to bottom with small settings, its pictures
show something, and what is built by hand is compared with the scripts."""
import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from nbclient import NotebookClient

import data

ROOT = Path(__file__).parents[2]
PICTURES = 10


def read():
    return nbformat.read(ROOT / "run.ipynb", 4)


def check(notebook):
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", cell.source
            if "image/png" in output.get("data", {}):
                found.append(imread(io.BytesIO(base64.b64decode(output.data["image/png"]))))
    assert len(found) == PICTURES
    for picture in found:
        inside = picture[picture.shape[0] // 5:-picture.shape[0] // 5,
                         picture.shape[1] // 5:-picture.shape[1] // 5, :3]
        assert (np.abs(inside - 1) > 0.1).any(axis=-1).mean() > 0.001, "an empty picture"
    text = str([cell.get("outputs", ()) for cell in notebook.cells])
    assert text.count("not done yet") >= 5
    assert all(f"| {method} " in text for method in ("base", "icl", "sft", "ia2", "ia2-sft"))


def test_the_notebook_runs_clean_with_small_settings(monkeypatch):
    monkeypatch.setenv("IA2_QUICK", "1")
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": str(ROOT)}}).execute()
    check(notebook)


def test_the_committed_outputs_are_whole():
    notebook = read()
    nbformat.validate(notebook)
    check(notebook)
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(ran) + 1)), "run from top to bottom, once"
    assert (ROOT / "run.ipynb").stat().st_size < 2_500_000
    assert "qwen2.5-coder-0.5b, torch" in str([cell.get("outputs", ())
                                               for cell in notebook.cells]), "run with its live model"


def test_what_is_built_by_hand_is_compared_with_the_scripts():
    cells = [cell.source for cell in read().cells if cell.cell_type == "code"]
    asserts = [i for i, source in enumerate(cells) if "assert_close" in source
               and re.search(r"\b(ia2|lora|metrics|layer)[.(]", source)]
    assert len(asserts) >= 8 and all(source.count("\n") < 20 for source in cells)
    assert not any("lab.bench" in source or "import bench" in source for source in cells)


NAMES = {"torch": torch, "LR": 3e-4, "replace": replace,
         "movies": type("Movies", (), {"label_texts": [" negative", " positive"]}),
         "few_shot": data.FewShotSet(*[[data.Example(f"q{k}", (" negative", " positive")[k % 2], k % 2)
                                        for k in range(4)]] * 3, 0, 0)}
WRONG = {1: ("(A - A_icl).square().mean()", "value error"),
         2: ("(A - A_icl).square().mean(dim=(1, 2)).sum()", "value error"),
         3: ("few_shot", "value error"), 4: ("reset(), stage('ia2', LR), stage('sft', LR)", "value error"),
         5: ("(A - A_icl).square().mean(dim=(1, 2)).sum()", "value error")}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_the_folded_answers_are_right_and_wrong_ones_are_not(number):
    cells, names = read().cells, dict(NAMES)
    check_cell = next(cell.source for cell in cells
                      if f"def check_{number}" in cell.source).rsplit("\n", 1)[0]
    text = next(cell.source for cell in cells if f"Answer {number}</summary>" in cell.source)
    answer = re.search(rf"Answer {number}</summary>.*?```python\n(.*?)```", text, re.DOTALL)[1]
    arguments = re.search(r"\((.*)\):", answer)[1]
    for source, verdict in ((answer, "right"),
                            (f"def exercise_{number}({arguments}):\n    ...", "not done yet"),
                            (f"def exercise_{number}({arguments}):\n    return {WRONG[number][0]}",
                             WRONG[number][1])):
        exec(compile(f"{source}\n{check_cell}\nfound = check_{number}(exercise_{number})", "exercise",
                     "exec"), names)
        assert names["found"].startswith(verdict), names["found"]
