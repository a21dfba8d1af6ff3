"""The console script `ntt-jax`: one module per command, and here the frame around them.

A command module offers `add_parser(commands)`, which describes its arguments, and `run(args)`, which does the work with
the package's public functions and raises `InputError` for whatever is wrong with what it was given. `main` alone turns
exceptions into messages and exit statuses. Nothing here or in a command module imports JAX before the arguments are
checked: `--help` and a mistyped option answer at once.
"""

import argparse
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import ntt_jax
from ntt_jax.cli import (
    ablate,
    app,
    demo,
    doctor,
    evaluate,
    export,
    fit,
    import_memory,
    masks,
    memory,
    negatives,
    references,
    report,
    reproduce,
    run,
    sample,
    segment,
    serve,
    tune,
    weights,
)
from ntt_jax.errors import InputError
from ntt_jax.text import show, show_lines

INTERRUPTED = 130
PATIENCE = 10.0
"""Seconds after Ctrl-C in which another one changes nothing: what is finished is being saved, processes are ended."""

DESCRIPTION = """\
Training-free instance segmentation from a few reference masks (No Time To Train, arXiv 2507.02798), in JAX.
SAM 2 proposes masks, DINOv2 features name them after the references; nothing is trained."""

EPILOG = """\
The files, in the order in which they come:
  checkpoints         SAM 2 and DINOv2 weights: by name, fetched when first used (`ntt-jax weights`), or your own files
  annotations         COCO or LVIS (JSON), or VOC's lists; --images is the folder that the file names start from
  references.json     `sample`: which annotations serve as references of each class
  memory.safetensors  `memory`: one prototype per class, made from the references
  RUN_DIR             `evaluate`: results.json (COCO results format) and metrics.json (AP of boxes and masks)

Start with `ntt-jax demo --out demo_out`: it needs no file at all. `ntt-jax COMMAND --help` shows each command.
`ntt-jax doctor` prints what a bug report needs."""


_NO_BACKEND = re.compile("[Uu]nable to initialize backend|[Uu]nknown backend|not in the list of known backends")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ntt-jax",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ntt-jax {ntt_jax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    every = (
        demo,
        fit,
        masks,
        sample,
        memory,
        evaluate,
        run,
        ablate,
        tune,
        segment,
        app,
        serve,
        report,
        references,
        negatives,
        import_memory,
        export,
        reproduce,
        weights,
        doctor,
    )
    for command in every:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ntt-jax` with the given arguments (default: the process's own) and return its exit status.

    0: done. 2: an argument or an input is wrong, or the disk is full or gone; one line `ntt-jax: error: ...` on stderr
    says what and where. 130: interrupted (Ctrl-C or SIGTERM) with everything finished so far saved. 1: anything else.
    """
    with _interrupted_once():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    """`main`, in whatever way Ctrl-C arrives."""
    args = None
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        return 0
    except SystemExit as end:  # argparse, after --help and --version
        return end.code if isinstance(end.code, int) else 0
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        hint = getattr(args, "resume_hint", "nothing was written")
        _say(f"interrupted; {hint}")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone away: nobody is left to tell
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(_os_message(error))
    except Exception as error:
        if isinstance(error, RuntimeError) and _NO_BACKEND.search(str(error)):
            asked = os.environ.get("JAX_PLATFORMS")
            where = f"JAX_PLATFORMS={asked}" if asked else "JAX"
            reason = " ".join(str(error).split())[:200]
            return _fail(f"{where}: JAX cannot start on it: {reason}; unset it, or name cpu, cuda or tpu")
        if "RESOURCE_EXHAUSTED" in str(error):
            _say("error: the device ran out of memory; use a smaller --batch-size or --dtype bfloat16")
            return 1
        show_lines(traceback.format_exc().rstrip(), to=sys.stderr)
        _say("error: this is a fault of ntt-jax, not of your input; please report it with the lines above")
        return 1


def _say(message: str) -> None:
    show(f"ntt-jax: {message}", to=sys.stderr)


def _fail(message: str) -> int:
    _say(f"error: {message}")
    return 2


def _os_message(error: OSError) -> str:
    """One line for what the operating system refused, with what to do about the cases people meet."""
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = {
        errno.ENOSPC: "; free some space and start the same command again",
        errno.EDQUOT: "; free some space and start the same command again",
        errno.ESTALE: "; the network file system went away: mount it again and start the same command again",
        errno.EIO: "; check the disk or the network file system and start the same command again",
    }.get(error.errno or 0, "")
    return f"{where}{error.strerror or error}{advice}"


class _interrupted_once:
    """While inside, Ctrl-C and SIGTERM (a scheduler's request to stop) end the run, once.

    What saves and ends processes on the way out is not interrupted in its turn, however impatient a person or a
    scheduler is; only if it takes longer than `PATIENCE`.
    """

    def __enter__(self) -> None:
        self.previous: dict[int, Any] = {}
        self.first: float | None = None
        if threading.current_thread() is threading.main_thread():
            self.previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._interrupt)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
                self.previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.first is None or time.monotonic() - self.first > PATIENCE:
            self.first = time.monotonic()
            raise KeyboardInterrupt

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
