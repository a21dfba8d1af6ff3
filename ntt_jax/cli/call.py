"""A command that is made of others: they are called with its options."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ntt_jax.config import DetectConfig

_SHARED = ("dtype", "batch_size", "devices", "compilation_cache", "cores", "method")


def call(
    args: argparse.Namespace, command: Any, name: str, given: Mapping[str, object], more: Sequence[str] = ()
) -> None:
    """Run a command, a module of this room, with options by their names, and how to compute as `args` says it.

    more: further arguments. Raises what the command raises.
    """
    commands = argparse.ArgumentParser().add_subparsers()
    command.add_parser(commands)
    inner = commands.choices[name].parse_args([*(f"--{option}={value}" for option, value in given.items()), *more])
    for option in (*_SHARED, *(field.name for field in dataclasses.fields(DetectConfig))):
        if hasattr(args, option) and hasattr(inner, option):
            setattr(inner, option, getattr(args, option))
    inner.run(inner)
