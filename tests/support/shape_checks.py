"""Functions over arrays are held to their annotations while the tests run: jaxtyping's shapes, checked by beartype.

A call is checked once it has returned. So what a function refuses by itself, with an `InputError` that says more, is
not refused here before, and what it takes and gives must be what its signature says. Sizes of one name are equal
throughout a call; arrays of numpy count as JAX's. Without beartype, which the newest run lacks, nothing is checked.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

try:
    from beartype.door import is_bearable
except ImportError:
    is_bearable = None

_Array = type(jaxtyping.Float[Any, "..."])


def install(package: str = "ntt_jax") -> None:
    """From now on the modules of a package are imported with their annotated functions held to what they say."""
    if is_bearable is not None:
        sys.meta_path.insert(0, _Finder(package))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str):
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] != self._package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader.exec_module = functools.partial(_run_and_hold, spec.loader.exec_module)
        return spec


def _run_and_hold(run: Callable[[types.ModuleType], None], module: types.ModuleType) -> None:
    run(module)

    def own(place: Any, kind: Callable[[object], bool]) -> list[tuple[str, Any]]:
        return [(n, x) for n, x in vars(place).items() if kind(x) and x.__module__ == module.__name__]

    for place in [module, *(one for _, one in own(module, inspect.isclass))]:
        for name, function in own(place, inspect.isfunction):
            if _shapes(function):
                setattr(place, name, held(function))


def held(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails once it has returned if arguments or result are not as annotated."""
    fits = is_bearable
    assert fits is not None
    signature, shapes = inspect.signature(function), _shapes(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        values = {**signature.bind(*args, **kwargs).arguments, "return": result}
        with jaxtyping.jaxtyped("context"):
            for name, hint in shapes.items():
                if name in values and not fits(jax.tree.map(_as_jax, values[name]), hint):
                    where = f"{function.__module__}.{function.__qualname__}"
                    raise AssertionError(f"{where}: {name} is {_describe(values[name])}, annotated as {hint}")
        return result

    return call


def _as_jax(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _shapes(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function that say an array's shape, that of the result last."""
    return {name: hint for name, hint in function.__annotations__.items() if _says_shape(hint)}


def _says_shape(hint: Any) -> bool:
    return isinstance(hint, _Array) or any(map(_says_shape, typing.get_args(hint)))


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else repr(value)[:80]
