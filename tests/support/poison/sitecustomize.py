"""Kills every Python process that opens a file named poison.png, as a decoder with a fault would."""

import os
import signal
import sys


def _hook(event: str, arguments: tuple) -> None:
    if event == "open" and str(arguments[0]).endswith("poison.png"):
        os.kill(os.getpid(), signal.SIGSEGV)


sys.addaudithook(_hook)
