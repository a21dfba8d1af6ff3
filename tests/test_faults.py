"""docs/faults.md names the test of every promise; each of them is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]


def test_every_promise_stands_beside_a_test_that_exists() -> None:
    assert len(ROWS) > 15
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/.]+?)(?:::(\w+))?`", row.split("|")[-2])
        assert named, f"no test beside the promise: {row}"
        for path, name in named:
            assert (ROOT / path).exists(), f"{path}: is not there any more; named in docs/faults.md"
            if name:
                tree = ast.parse((ROOT / path).read_text("utf-8"))
                tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
                assert name in tests, f"{path}: has no {name}; named in docs/faults.md"
