"""The one error for what a user can mend: printed as one line, exit code 2."""

from __future__ import annotations

import re
import unicodedata


class UserError(ValueError):
    """A mistake in the input: the message names the file or key and the remedy. One line of text,
    whatever the names in it are."""

    def __init__(self, message: str):
        super().__init__(plain(message))


class NonFiniteLoss(ArithmeticError):
    """Training diverged; the message names the step and what was drawn for it."""


class TrainingFailed(RuntimeError):
    """Workers failed more often than is retried."""


PASSWORD = re.compile(r"//[^/@\s]+@")
"""Of a URI: user and password."""


def first_line(error: BaseException) -> str:
    """The gist of another library's error, fit for a one-line message."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return PASSWORD.sub("//", line)[:200]


HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what moves the cursor, turns the direction of a line, ends it or is not
seen: controls, formats, lone surrogates (of file names that are not UTF-8), separators."""


def plain(text: str) -> str:
    """A name from outside as text and nothing else, in one line: what is `HIDDEN` is written out,
    as \\x1b or \\u202e."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_written, text))


def _written(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN:
        return character
    return character.encode("unicode_escape").decode()
