import importlib
import pkgutil
import subprocess
import sys

import pytest

import ntt_jax
from ntt_jax import _moved


@pytest.mark.parametrize("name", [name for name in ntt_jax.__all__ if name != "__version__"])
def test_exported_names_are_objects_whatever_was_imported_before(name):
    """A submodule of the same name as an export would take its place once imported."""
    for module in pkgutil.iter_modules(ntt_jax.__path__):
        if module.name not in ("demo", "training"):
            importlib.import_module(f"ntt_jax.{module.name}")
    found = getattr(ntt_jax, name)
    assert callable(found)
    assert found.__doc__ and "." in found.__doc__


def test_all_lists_what_is_there():
    assert set(ntt_jax.__all__) == {"__version__", *ntt_jax._EXPORTS}


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ntt_jax.nothing  # noqa: B018
    assert "detect" in dir(ntt_jax)


@pytest.mark.parametrize(("old", "new"), _moved.MOVED.items())
def test_modules_are_found_under_their_old_names(old, new):
    moved, module = importlib.import_module(f"ntt_jax.{old}"), importlib.import_module(f"ntt_jax.{new}")
    assert moved is module is getattr(ntt_jax, old)
    assert module.__name__ == module.__spec__.name == f"ntt_jax.{new}"


def test_import_costs_nothing():
    """Of the whole package two modules, and of what it needs nothing."""
    code = "import sys; before = set(sys.modules); import ntt_jax; print(*(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ntt_jax" in found and not {"jax", "numpy", "PIL", "flax"} & set(found)
