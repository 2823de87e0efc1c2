"""Who runs this: a number without a name, as in `docker run -u 12345`, has neither name nor home.

Libraries ask for both (MLflow and Ray for `~`, torch for the user's name) and end with a traceback
where the password file does not know the number.
"""

from __future__ import annotations

import os
import pwd

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # as getpass.getuser looks for them


def named() -> None:
    """Gives this process, and those that it starts, what is missing: the number as the name, and
    FMOE_HOME as the home, also where the container's (often /) cannot be written to."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        if not any(map(os.environ.get, NAMES)):
            os.environ["LOGNAME"] = str(os.getuid())
        home = os.environ.get("HOME") or "/"
        if not os.access(home, os.W_OK):
            home = os.path.abspath(os.environ.get("FMOE_HOME") or home)
        os.environ["HOME"] = home
    else:
        os.environ["HOME"] = os.environ.get("HOME") or entry.pw_dir
