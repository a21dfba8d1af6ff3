"""`ntt-jax doctor`: the state of this machine, to paste into a bug report."""

import argparse
from typing import Any

from ntt_jax.cli import options
from ntt_jax.text import show

EPILOG = """\
The command asks the servers of the weights whether they answer (3 seconds each; not with HF_HUB_OFFLINE=1) and sends
nothing else. No token, password or name of yours is printed; the home folder is shown as ~."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    options.add_command(
        commands, "doctor", run, "print versions, devices, memory, caches and network, for a bug report", EPILOG
    )


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    from ntt_jax.hub.system import describe

    for topic, text in describe():
        show(f"{topic + ':':<14}{text}")
