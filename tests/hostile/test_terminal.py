"""What comes from files reaches a terminal as one printable, bounded line, whatever the terminal can print."""

import io
import subprocess
import sys

import pytest

from ntt_jax.errors import InputError
from ntt_jax.text import close_names, one_line, show, show_lines

HOSTILE = "a\x1b]0;pwn\x07\x1b[2J\u202eb\ud800\r\nc\u2028d\x9b31m"


def test_lines_are_printable_and_bounded():
    assert one_line("plain words, Größe, 犬") == "plain words, Größe, 犬"
    shown = one_line(HOSTILE)
    assert shown.isprintable() and "\\x1b" in shown and "\\u202e" in shown and "\\ud800" in shown
    assert len(one_line("x" * 10**7)) < 1100 and one_line("x" * 5000 + " the end").endswith("the end")
    assert len(one_line("\x1b" * 10**6)) < 2100


def test_errors_are_lines_from_the_start():
    error = InputError(f"{HOSTILE}: {'k' * 5_000_000}; use --restart")
    assert str(error).isprintable() and len(str(error)) < 2100 and str(error).endswith("use --restart")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_prints_any_name(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    show("  犬 é " + HOSTILE, to=stream)
    show_lines("a\n  b", to=stream)
    text = raw.getvalue().decode(encoding)
    assert text.startswith("  ") and text.count("\n") == 3 and "\x1b" not in text and text.endswith("a\n  b\n")


def test_the_command_line_on_a_terminal_of_ascii():
    code = "import sys; from ntt_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["sample", "--annotations", "\x1b[2J犬.json", "--classes", "all", "--shots", "1", "--out", "o.json"]
    environment = {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False, env=environment)
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.count(b"\n") == 1 and b"\x1b" not in result.stderr and result.stderr.isascii()


def test_a_mistyped_name_among_a_million():
    names = [f"class {i}" for i in range(1_000_000)]
    assert close_names("clas 77", [*names[:100], "class 77"])
    found = close_names("klass 999999", names)  # starts like none of them: no answer, but at once
    assert found == [] and close_names("x" * 200, names) == []
