"""Ray's authentication token, which whoever drives a cluster must have."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from fmoe.errors import UserError


def auth_token() -> str:
    """The token, made where there is none.

    Ray would make the file readable for all; ours is there before it looks. Where this user has no
    home to keep it in, it is this process's and its children's alone. Raises `UserError`.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else _kept()
    if file is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return os.environ["RAY_AUTH_TOKEN"]
    try:
        if not named:
            file.chmod(0o600)
        return file.read_text().strip()
    except OSError as error:
        raise UserError(f"{file}: Ray's token cannot be read ({error.strerror})") from None


def _kept() -> Path | None:
    """~/.ray/auth_token, which is there; None where there is no home, or none to write to."""
    try:
        file = Path.home() / ".ray" / "auth_token"
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as new:
                new.write(secrets.token_hex(32))
    except (RuntimeError, OSError):
        return None
    return file
