"""What the page of `ntt-jax tune` is made of; the browser's part is in test_page.py, a real run in tests/tuning."""

import json

import pytest
from report_files import data_of, make_run
from tuned_files import make_tuned

from ntt_jax.cli import main
from ntt_jax.report.tuned import MAX_ROWS, read_tuned


@pytest.fixture
def folder(tmp_path):
    return make_tuned(tmp_path / "tuned", ["square", "disc"], configurations=MAX_ROWS + 7)


def test_best_rows_first_and_no_more_than_a_page_holds(folder):
    content, shown = json.loads((folder / "tune.json").read_text()), read_tuned(folder / "tune.json")
    assert shown["configurations"] == MAX_ROWS + 7 and len(shown["rows"]) == MAX_ROWS
    values = [row["choose"][0] for row in shown["rows"]]
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(0.631)
    assert [point["name"] for point in shown["points"]] == ["square", "disc"]
    for point, one in zip(shown["points"], content["thresholds"], strict=True):
        assert point["threshold"] == pytest.approx(one["threshold"], abs=1e-6)
        chosen = [point["threshold"], point["precision"], point["recall"]]
        assert any(row == pytest.approx(chosen, abs=2e-5) for row in point["curve"])


def test_beside_a_run_it_is_a_section_of_the_run(folder, tmp_path, capsys):
    run = make_run(tmp_path, 2)
    assert main(["report", str(run.folder), "--max-images", "0"]) == 0
    assert "tune" not in data_of(run.folder / "report.html")
    (folder / "tune.json").rename(run.folder / "tune.json")
    assert main(["report", str(run.folder), "--max-images", "0"]) == 0
    data = data_of(run.folder / "report.html")
    assert data["tune"]["metric"] == "segm" and data["metrics"]["images"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "AP"},
        {"table": [{}]},
        {"thresholds": [{"class": "a"}]},
        {"configurations": -1},
        {"chosen": None},
        {"threshold_target": {"kind": "f1", "value": None}, "images": {}},
        {"skipped": ["a.png"]},
    ],
)
def test_what_tune_does_not_write_is_refused(folder, change, capsys):
    path = folder / "tune.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "tune.json" in said and said.count("\n") == 1 and not (folder / "report.html").exists()
