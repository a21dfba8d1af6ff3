"""A lint of the page's script: each file by our rules, and the whole for names that nothing declares or uses."""

import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from ntt_jax.report.page import SCRIPTS

PROJECT = Path(__file__).parents[2]
OXLINT = shutil.which("oxlint", path=str(Path(sys.executable).parent)) or shutil.which("oxlint")
pytestmark = pytest.mark.skipif(OXLINT is None, reason="no oxlint is installed (it is in the extra `test`)")
WHOLE = ("no-undef", "no-unused-vars", "no-redeclare")


def lint(*arguments):
    command = [OXLINT, "--config", str(PROJECT / ".oxlintrc.json"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


def whole(folder, more=""):
    text = "".join((resources.files("ntt_jax") / "report" / name).read_text("utf-8") for name in SCRIPTS)
    path = folder / "whole.js"
    path.write_text(text + more, "utf-8")
    return [*(word for rule in WHOLE for word in ("--deny", rule)), path]


def test_every_file_is_clean():
    status, said = lint(PROJECT / "ntt_jax")
    assert status == 0 and "0 warnings and 0 errors" in said, said


def test_every_name_is_declared_and_used(tmp_path):
    status, said = lint(*whole(tmp_path))
    assert status == 0 and "0 warnings and 0 errors" in said, said


@pytest.mark.parametrize(
    "spoilt", ["paint(nobodyDeclaredThis);", "function nobodyUsesThis() {}", "function paint() {}", "eval('1');"]
)
def test_the_lint_finds_what_it_is_for(tmp_path, spoilt):
    status, said = lint(*whole(tmp_path, spoilt + "\n"))
    assert status != 0, said
