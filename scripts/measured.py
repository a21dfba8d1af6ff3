"""What the scripts that measure share: the circumstances of a measurement, and the file of all numbers."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax


def circumstances() -> dict[str, Any]:
    """How the numbers came about: command, cores, JAX and its device."""
    return {
        "command": " ".join(sys.argv),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option whose file `show` writes."""
    parser.add_argument("--json", type=Path, help="write all numbers to this file")


def show(report: dict[str, Any], path: Path | None) -> None:
    """Print the numbers, and write them to the file of `--json`."""
    text = json.dumps(report, indent=1)
    print(text)
    if path:
        path.write_text(text, encoding="utf-8")
