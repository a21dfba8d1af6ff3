"""The tutorial notebook, as a reader runs it: all code cells in order, in a fresh namespace and an empty folder."""

import ast
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compilations import compilations
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def notebook():
    return json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Execute a cell; the value of its last line, if that is an expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "tutorial.ipynb", "exec"), namespace)
    exec(compile(ast.Module(tree.body[:-1], []), "tutorial.ipynb", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "tutorial.ipynb", "eval"), namespace)


def test_notebook_is_stripped_and_well_formed(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and cell["source"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_tutorial(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    pictures = []
    with compilations() as compiled:
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                shown = run_cell("".join(cell["source"]), namespace)
                if hasattr(shown, "_repr_png_"):
                    pictures.append(np.asarray(Image.open(io.BytesIO(shown._repr_png_())).convert("RGB")))
    printed = capsys.readouterr().out

    # Scenes, references, two predictions, similarity maps.
    assert len(pictures) == 5
    assert all(min(picture.shape[:2]) > 200 and picture.std() > 20 for picture in pictures)

    found, found_six = namespace["found"], namespace["found_six"]
    height, width = namespace["targets"][namespace["busiest"]].shape[:2]
    assert found.masks.shape == (len(found), height, width) and len(found) >= 1
    assert len(found.classes) == 5 and len(found_six.classes) == 6
    assert namespace["same"] and "are as they were: True" in printed
    np.testing.assert_array_equal(namespace["again"].memory.prototypes, namespace["prototypes"])
    np.testing.assert_allclose(np.diag(namespace["between"]), 1, atol=1e-6)

    assert namespace["cosines"].shape == (24, 24, 6) and namespace["cosines"].max() > 0.4

    # A segmenter and a predictor with as many prototypes are one program: the same bits, and compiled once.
    direct = namespace["detections"][namespace["busiest"]]
    kept = direct.scores >= np.float32(0.5)
    np.testing.assert_array_equal(direct.scores[kept], found_six.scores)
    np.testing.assert_array_equal(direct.boxes[kept], found_six.boxes)
    assert 1 <= len(compiled.target_pass) <= 2  # the pass and the drawing of its masks

    # Seeded, so these numbers move only with the shipped weights; detections at random places give 0.
    assert namespace["metrics"]["images"] == 8
    assert namespace["metrics"]["segm"]["AP50"] > 0.2 and namespace["metrics"]["bbox"]["AP50"] > 0.2
