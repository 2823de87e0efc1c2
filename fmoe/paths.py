"""Where fmoe keeps its own: FMOE_HOME, or ~/.local/share/fmoe."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    return Path(os.environ.get("FMOE_HOME") or Path.home() / ".local" / "share" / "fmoe").resolve()
