"""One holder at a time: a file lock on a local disk, a lease on an object store.

An object store has no locks. Whoever wants the lease writes a claim of its own, and the oldest
claim that is alive holds; ages are told by the store's clock alone, so the askers' clocks may
differ. A claim is alive while its holder rewrites its beat. Between writing and looking an asker
waits longer than the store's clock is coarse: no later claim can then appear to be as old.

A holder that an outage kept from beating may lose its lease to another; what they then both write
is covered by digests, never trusted.

Not by a conditional put (`If-None-Match: *`), though S3 and GCS have one. pyarrow 25 drops the
condition without a word and overwrites. obstore 0.12 keeps it on both, but does not read
~/.aws/credentials, so that a store which takes checkpoints would refuse its leases; boto3 is for S3
alone; and holders with and without such a library would not see each other. It would tell who was
first and save the wait before looking; who has died would still be told by beats.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from filelock import FileLock, Timeout

from fmoe.storage.folder import Folder

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 1.5  # seconds; S3 tells time to the second
BEAT_SECONDS = 5.0
STALE_AFTER = timedelta(seconds=30)


class Held(Exception):
    """Another process, which is alive, holds the lease."""


@contextmanager
def exclusive(folder: Folder, name: str, *, wait: bool) -> Iterator[None]:
    """Holds `name` in `folder` for as long as the block runs.

    wait: until another holder lets go or dies; otherwise raises `Held` where it is alive.
    Raises `UserError` for an object store that does not answer.
    """
    local = folder.local
    if local is None:
        with _lease((folder / f"{name}.lease").reach(), wait):
            yield
        return
    local.mkdir(parents=True, exist_ok=True)
    # released by the kernel when the holder dies, however it dies
    lock = FileLock(local / f".{name}.lock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise Held from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lease(folder: Folder, wait: bool) -> Iterator[None]:
    claim = _Claim(folder, uuid.uuid4().hex[:12])
    stop = threading.Event()
    thread = threading.Thread(target=claim.keep_alive, args=(stop,), daemon=True)
    try:
        claim.acquire(wait)
        thread.start()
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        with contextlib.suppress(OSError):  # it goes stale by itself
            folder.delete_file(f"{claim.id}.claim")
            folder.delete_file(f"{claim.id}.beat")


@dataclass
class _Claim:
    folder: Folder
    id: str

    def acquire(self, wait: bool) -> None:
        """Returns once this claim is the oldest that is alive."""
        seen: dict[str, datetime] = {}
        entries: dict[str, datetime] = {}
        while True:
            if f"{self.id}.claim" not in entries:  # at first, or taken for dead in an outage
                self.folder.write(f"{self.id}.claim", b"")
            self.beat()
            time.sleep(SETTLE_SECONDS)
            entries = self.folder.entries()
            now = entries[f"{self.id}.beat"]
            beats = {
                name.removesuffix(".claim"): entries.get(name.replace(".claim", ".beat"), written)
                for name, written in entries.items()
                if name.endswith(".claim")
            }
            if self.id not in beats:
                continue
            alive = [claim for claim, beat in beats.items() if beat >= now - STALE_AFTER]
            first = min(alive, key=lambda claim: (entries[f"{claim}.claim"], claim))
            if first == self.id:
                for dead in beats.keys() - set(alive):
                    self.folder.delete_file(f"{dead}.claim")
                    self.folder.delete_file(f"{dead}.beat")
                return
            if not wait and seen.get(first, beats[first]) < beats[first]:
                raise Held
            if not seen:
                logger.warning(
                    "%s: held by another process, or by one that was killed; waiting to see",
                    self.folder.uri,
                )
            seen.setdefault(first, beats[first])

    def beat(self) -> None:
        self.folder.write(f"{self.id}.beat", b"")

    def keep_alive(self, stop: threading.Event) -> None:
        folder = self.folder.impatient()  # an outage must not hold up the end of the block
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                folder.write(f"{self.id}.beat", b"")
