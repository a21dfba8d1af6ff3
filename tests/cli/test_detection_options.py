"""`--method`: constants from a file, with single options before it."""

import argparse
import json

import pytest

from ntt_jax.cli import detection_options, main, options
from ntt_jax.config import DetectConfig


def config_of(*line):
    parser = argparse.ArgumentParser()
    detection_options.add_detection(parser)
    return detection_options.detect_config(parser.parse_args([*map(str, line)]))


def test_options_take_precedence_over_the_file_and_the_file_over_the_published_constants(tmp_path):
    path = tmp_path / "method.json"
    path.write_text(json.dumps({"iou_power": 1, "points_per_side": 8}))
    assert config_of() == DetectConfig()
    assert config_of("--method", path) == DetectConfig(iou_power=1, points_per_side=8)
    assert config_of("--method", path, "--points-per-side", 4) == DetectConfig(iou_power=1, points_per_side=4)
    assert config_of("--nms-iou-threshold", 0.5) == DetectConfig()


@pytest.mark.parametrize("command", ["evaluate", "run", "ablate", "segment", "reproduce", "tune"])
def test_a_file_that_is_none_is_one_line_and_status_2(tmp_path, capsys, command):
    path = tmp_path / "method.json"
    path.write_text('{"iou_powr": 1}')
    assert main([command, "--method", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "method.json" in said and "iou_powr" in said, said


@pytest.mark.parametrize("text", ["1_0", "\uff11\uff10", "0x10", "1e1", "", "nan", "1.0"])
def test_whole_numbers_are_ascii_digits(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number from 1 to 100"):
        options.whole_number(1, 100)(text)
    assert options.whole_number(0, 2**63)(f" {2**63 - 1}") == 2**63 - 1  # to the last digit
    for number in ("0_1", "nan", "\uff11"):
        with pytest.raises(argparse.ArgumentTypeError):
            options.fraction(number)
