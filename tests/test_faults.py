"""docs/faults.md names the tests of every promise; each of them is there, looks at something, and is not left out."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]


def named(row: str) -> list[tuple[str, str]]:
    """The tests beside a promise: file and function."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[-2])


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_promise_stands_beside_tests_that_exist() -> None:
    assert len(ROWS) > 25
    for row in ROWS:
        assert named(row) and row.split("|")[-2].count("`") == 2 * len(named(row)), (
            f"no test of a function beside: {row}"
        )
        for file, name in named(row):
            assert (ROOT / file).exists(), f"{file}: is not there any more; named in docs/faults.md"
            found = functions(ROOT / file)
            assert name in found, f"{file}: has no {name}; named in docs/faults.md"
            called = {
                node.func.id
                for node in ast.walk(found[name])
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            inside = [found[name], *(found[one] for one in called if one in found)]
            looks = any(isinstance(node, ast.Assert) for one in inside for node in ast.walk(one))
            raises = any(
                isinstance(node, ast.Attribute) and node.attr == "raises" for one in inside for node in ast.walk(one)
            )
            assert looks or raises or "check_message" in called, f"{file}::{name} looks at nothing"
            marks = "".join(ast.unparse(mark) for mark in found[name].decorator_list)
            assert "mark.skip(" not in marks and "xfail" not in marks and "mark.large" not in marks, (
                f"{file}::{name}: {marks}"
            )


def test_numbers_in_promises_are_those_of_the_tests() -> None:
    poisons = ast.parse((ROOT / "tests/hostile/test_readers.py").read_text())
    tables = {
        n.target.id: n.value
        for n in ast.walk(poisons)
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    assert isinstance(tables["BYTES"], ast.Dict)
    cases = (ROOT / "tests/cli/test_bad_input.py").read_text().count("\n@case\n")
    said = "\n".join(ROWS)
    assert f"| {len(tables['BYTES'].keys)} poisons" in said and f"| {cases} kinds of bad input" in said
