"""Pillow and its C libraries say nothing while a picture is decoded: the exception says it all."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_stderr = threading.Lock()
_inside = 0
_filters = warnings.catch_warnings()
_handler = logging.NullHandler()


@contextmanager
def quiet() -> Iterator[None]:
    """No warning and no log record of Pillow's is shown, in whichever thread.

    Python's warning filters are the process's. Threads decode at once and leave in any order: the
    first one in sets the filters, and the last one out puts back what was there.
    """
    global _inside, _filters
    with _lock:
        if _inside == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            logging.getLogger("PIL").addHandler(_handler)  # else Python prints errors on stderr
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _filters.__exit__(None, None, None)
                logging.getLogger("PIL").removeHandler(_handler)


@contextmanager
def stderr_closed() -> Iterator[None]:
    """File descriptor 2 goes nowhere: libtiff writes its errors there and Pillow lets it."""
    with _stderr, open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
