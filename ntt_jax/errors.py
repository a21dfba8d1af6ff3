"""The one error type a user is meant to see."""

from ntt_jax.text import one_line


class InputError(ValueError):
    """Something handed in from outside (a file, an argument, an array) is not usable.

    The message is one line that says what was expected, what was found, where, and what to do about it. The command
    line prints it without a traceback and exits with status 2; every reader in this project raises this type, and only
    this type, for bad input. Whatever a message quotes of a file, it is printable, on one line, and bounded in length.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))
