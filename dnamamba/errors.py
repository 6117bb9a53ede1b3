"""What a user can get wrong, reported in one line.

Anything that comes from outside (files, flags, tables) and is not usable raises `InputError`; the command line turns it
into one line on stderr and exit code 2. Our own invariants are `assert`s.
"""

import re
import reprlib
import sys

LONGEST_QUOTE = 200
"""Characters of a file's content that a message shows."""
LONGEST_MESSAGE = 1200
"""Characters of a message: its start and its end, which says what to do."""

_QUOTED = re.compile(rf"""'(?:[^'\\]|\\.){{{LONGEST_QUOTE},}}'|"(?:[^"\\]|\\.){{{LONGEST_QUOTE},}}\"""")
_QUOTES = reprlib.Repr()
_QUOTES.maxstring = _QUOTES.maxother = 80
_warned: set[str] = set()


class InputError(ValueError):
    """Bad input: names the file, the record and the position, what was expected and what to do about it."""


class GenomeWarning(UserWarning):
    """A model is used on another genome than its training's: another assembly or species."""


def one_line(message: str) -> str:
    """A message as a terminal may show it, whatever it quotes from a file: one line, without control characters or
    escape sequences, and cut where it is long."""
    text = printable(" ".join(message.split()))
    text = _QUOTED.sub(lambda found: f"{found[0][:LONGEST_QUOTE]}…{found[0][-1]}", text)
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE * 2 // 3]} … {text[3 - LONGEST_MESSAGE // 3 :]}"
    return text


def printable(text: str) -> str:
    """Text without control characters or escape sequences, which are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def warn(message: str) -> None:
    """Prints a line on stderr about input that is used although something is odd; each message once in a process."""
    if message not in _warned:
        _warned.add(message)
        print(f"warning: {one_line(message)}", file=sys.stderr)


def quoted(value: object) -> str:
    """A value from outside as a message quotes it: its `repr`, cut where it is long or deep."""
    return _QUOTES.repr(value)
