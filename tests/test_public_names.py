import importlib
import pkgutil

import pytest

import ntt_jax


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
