"""Text that came from files, on its way to a person: one line, bounded, without anything that a terminal acts on."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

MAX_LINE = 1000
"""Characters of the longest line that is shown; paths and lists of names stay well below it."""
_TAIL = 200


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """The text as one printable line of at most `limit` characters; what it says already so is returned as it is.

    Line ends become spaces. Control characters, escape codes, lone surrogates, marks that turn the direction of writing
    and everything else that is not printable become backslash escapes. Of a long text the start and the end are kept.
    """
    if len(text) > limit:
        cut, tail = len(text) - limit, min(_TAIL, limit // 4)
        text = f"{text[: limit - tail]}[... {cut} characters ...]{text[-tail:]}"
    if text.isprintable():
        return text
    text = " ".join(text.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= 2 * limit else shown[: 2 * limit] + "..."


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """The number with its noun: "1 image", "2 images". plural: where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[:1] in tuple('aeiou') else 'a'} {noun}"


def show(text: str, *, to: TextIO | None = None) -> None:
    """Print one line on a terminal or into a pipe (stdout by default): the text through `one_line`.

    Spaces at its start stay. A character that the stream's encoding lacks becomes an escape.
    """
    stream = sys.stdout if to is None else to
    content = text.lstrip(" ")
    line = " " * min(len(text) - len(content), _TAIL) + one_line(content)
    encoding = getattr(stream, "encoding", None) or "ascii"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def show_lines(text: str, *, to: TextIO | None = None) -> None:
    """Print every line of a text, such as a table, through `show`."""
    for line in text.split("\n"):
        show(line, to=to)


def describe(value: Any, limit: int = 60) -> str:
    """A short, single-line account of any value of an untrusted file; never raises, whatever the nesting or size."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return "null" if value is None else repr(value)
    if isinstance(value, str):
        return ascii(value) if len(value) <= limit else f"{value[:limit]!a}..."
    if isinstance(value, (list, tuple)):
        if 0 < len(value) <= 4 and all(v is None or isinstance(v, (bool, int, float)) for v in value):
            return "[" + ", ".join(describe(v) for v in value) + "]"
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    return f"a {type(value).__name__}"


def number_in(text: str) -> float | None:
    """The number that a text of a file is: decimal, in ASCII digits, spaces around it aside; None for anything else.

    Python's own `float` also takes "1_0", "nan", "infinity" and the digits of other scripts.
    """
    found = numbers_of([text]) if len(text) <= _LONGEST_NUMBER else None
    return None if found is None else found[0]


def numbers_in(text: str) -> list[float] | None:
    """The numbers of a text with commas or spaces between them; None unless it is that, and for no number at all."""
    return numbers_of(text.replace(",", " ").split()) or None


def numbers_of(texts: Sequence[str]) -> list[float] | None:
    """The numbers that texts are (`number_in`), equal ones shared; None unless all of them are."""
    together = " ".join(texts)
    if not together.isascii() or "_" in together or "n" in together or "N" in together:  # n: nan, inf
        return None
    known: dict[str, float] = {}
    try:
        return [known[text] if text in known else known.setdefault(text, float(text)) for text in texts]
    except ValueError:
        return None


_LONGEST_NUMBER = 64


def close_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that look most like a mistyped one. Of many names only some are compared, those that start alike."""
    if len(name) >= 100:
        return []
    alike = [other for other in names if abs(len(other) - len(name)) <= len(name)]
    if len(alike) > _COMPARED:
        alike = [other for other in alike if other[:1].lower() == name[:1].lower()][:_COMPARED]
    return difflib.get_close_matches(name, alike, n=count)


_COMPARED = 5000
