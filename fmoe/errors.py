"""The one error for what a user can mend: printed as one line, exit code 2."""

from __future__ import annotations

import re


class UserError(ValueError):
    """A mistake in the input: the message names the file or key and the remedy."""


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
