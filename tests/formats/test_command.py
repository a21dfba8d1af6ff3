"""`ntt-jax segment --format` and `--polygon-error`, before anything is read."""

import pytest

from ntt_jax.cli import main
from ntt_jax.formats import FORMATS
from ntt_jax.formats.parquet import AVAILABLE


@pytest.mark.parametrize(
    "given, said",
    [
        (
            ["--format", "labelme,yolo8"],
            f"expected some of csv, coco, labelme, yolo, yolo-boxes, voc, png{', parquet' * AVAILABLE}, found 'yolo8'",
        ),
        (["--format", ""], "found ''"),
        (["--polygon-error", "-1"], "expected a number of pixels, at least 0, found '-1'"),
        (["--polygon-error", "inf"], "found 'inf'"),
    ],
)
def test_bad_arguments(capsys, given, said):
    assert main(["segment", "a.png", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_help_names_every_format(capsys):
    assert main(["segment", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    others = [name for name in FORMATS if name != "parquet"]
    assert f"as {', '.join(others)} or parquet (needs pyarrow), several with commas" in shown
