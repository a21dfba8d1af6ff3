"""Write the API reference, HTML made by pdoc from the docstrings (the extra `docs`).

python scripts/api_reference.py --out out/api
"""

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import pdoc  # pyright: ignore[reportMissingImports]  # the tests do without it

import ntt_jax
import weight_port


def write_reference(folder: Path) -> None:
    """One page per module of `ntt_jax` and `weight_port`, with a search."""
    for package in (ntt_jax, weight_port):
        # Both import their names on first use, and pdoc looks without using them.
        vars(package).update({name: getattr(package, name) for name in package.__all__})
        walked = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for inner in [package, *(importlib.import_module(m.name) for m in walked if m.ispkg)]:
            # Where there is an __all__, pdoc leaves out the modules that it does not name.
            if hasattr(inner, "__all__"):
                modules = {module.name for module in pkgutil.iter_modules(inner.__path__)} - {"__main__"}
                vars(inner)["__all__"] = [*inner.__all__, *sorted(modules - set(inner.__all__))]
    pdoc.pdoc("ntt_jax", "weight_port", output_directory=folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the API reference as HTML.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pages")
    write_reference(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
