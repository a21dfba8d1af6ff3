"""docs/api.md against the docstrings and the public names; docs/README.md and all links against what is there."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ntt_jax
import weight_port

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PUBLIC = [f"ntt_jax.{name}" for name in ntt_jax.__all__] + [f"weight_port.{name}" for name in weight_port.__all__]
# Their fields are the arguments of the classes of Meta that their docstrings name.
MIRRORED = {"ntt_jax.Sam2Config", "ntt_jax.DinoV2Config"}
# Say what they are by their names; the models' own docstrings tell the rest.
MODELS = {"sam2", "dinov2"}


def public(name: str) -> Any:
    package, attribute = name.split(".")
    return getattr({"ntt_jax": ntt_jax, "weight_port": weight_port}[package], attribute)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "ntt_jax.__version__"])
def test_docstrings_name_all_arguments(name):
    found = public(name)
    text = inspect.getdoc(found)
    assert text and "." in text
    if name in MIRRORED:
        assert "Mirrors" in text
    elif found is not ntt_jax.InputError:
        arguments = [argument for argument in inspect.signature(found).parameters if argument not in MODELS]
        missing = [argument for argument in arguments if not re.search(rf"\b{argument}\b", text)]
        assert not missing
    if name in ("ntt_jax.aggregate_memory", "ntt_jax.detect", "ntt_jax.segment"):
        assert re.search(r"`\[[A-Z], ", text) and "Returns:" in text and "Raises:" in text  # shapes


def test_api_page_lists_exactly_the_public_names():
    listed = re.findall(r"\[`((?:ntt_jax|weight_port)\.\w+)`\]", (DOCS / "api.md").read_text())
    assert sorted(listed) == sorted(PUBLIC)


def test_index_links_every_page():
    linked = set(re.findall(r"\]\(([\w.]+)\)", (DOCS / "README.md").read_text()))
    pages = {path.name for path in DOCS.iterdir() if path.suffix in (".md", ".ipynb")} - {"README.md"}
    assert linked >= pages, pages - linked


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS.glob("*.[mi][dp]*"))])
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        text = "".join(line for cell in json.loads(text)["cells"] for line in cell["source"])
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.large
def test_pdoc_renders_all_modules(tmp_path):
    """Without a warning, in a process of its own: it imports every module."""
    pytest.importorskip("pdoc")
    script = [sys.executable, "-W", "error::UserWarning", ROOT / "scripts" / "api_reference.py", "--out", tmp_path]
    subprocess.run(script, check=True)
    assert "aggregate_memory" in (tmp_path / "ntt_jax.html").read_text()
    assert (tmp_path / "ntt_jax" / "sam2" / "hiera.html").exists()
