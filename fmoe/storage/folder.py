"""A folder on any filesystem that pyarrow can reach: a local path, `s3://`, `gs://`.

A file appears whole or not at all: local files are written aside and renamed, object stores put
atomically. JSON documents carry their own meaning; `manifest.json`, written last with the digests
of its neighbours, is what makes a folder of files count. A patient folder waits out a full disk
and an object store's outage.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from fmoe.deadline import within
from fmoe.documents import LARGEST_JSON, NotRead, parse_json
from fmoe.errors import PASSWORD, UserError, first_line

MANIFEST = "manifest.json"
PATIENCE_SECONDS = 600.0  # seconds; less than what a worker waits for the others in a collective
FIRST_ANSWER_SECONDS = 20.0  # seconds, for a store's first answer
PASSING_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
PASSING_TEXT = (  # as pyarrow words what S3 and GCS say
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "NETWORK_CONNECTION",
    "REQUEST_TIMEOUT",
    "THROTTLING",
    "HTTP status 50",
    "Status(UNAVAILABLE",
    "Status(DEADLINE_EXCEEDED",
)
logger = logging.getLogger(__name__)
T = TypeVar("T")


def passing(error: OSError) -> bool:
    """Whether the fault is of a kind that goes away by itself, or when someone frees space."""
    return error.errno in PASSING_ERRNO or any(text in str(error) for text in PASSING_TEXT)


class Damaged(ValueError):
    """A file is missing, truncated or not what its manifest says."""


def parts(uri: str) -> tuple[str, str, str]:
    """The place, `?`, and the filesystem's options; a local path has none, and may have a `?`."""
    return uri.partition("?") if "://" in uri else (uri, "", "")


@dataclass(frozen=True)
class Folder:
    """A folder and the filesystem it is on. Pickles: workers are given one.

    patience: seconds for which an operation is tried again after a `passing` fault.
    """

    uri: str
    patience: float = 0.0

    @classmethod
    def at(cls, place: str | Path) -> Folder:
        """Raises `UserError` for a URI of a kind that pyarrow does not know."""
        text = str(place)
        if text != text.encode(errors="replace").decode():
            raise UserError(f"{text}: the name is not UTF-8: rename it")
        try:
            uri = text if "://" in text else Path(text).expanduser().resolve().as_posix()
        except RuntimeError as error:  # ~nosuchuser
            raise UserError(f"{text}: not a folder ({first_line(error)})") from None
        base, mark, options = parts(uri)
        if base.endswith("://"):
            raise UserError(f"{text}: names no folder")
        if PASSWORD.search(base):
            raise UserError(
                f"{PASSWORD.sub('//…@', text)}: credentials in a URI would stand in logs; "
                "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        folder = cls(f"{base.rstrip('/')}{mark}{options}")
        folder.resolve()
        return folder

    def resolve(self) -> tuple[pafs.FileSystem, str]:
        """pyarrow's filesystem and the path on it. Raises `UserError`."""
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), self.uri
        base, mark, options = parts(self.uri)
        scheme, _, path = base.partition("://")
        root, slash, rest = path.partition("/")
        try:
            place = f"{scheme}://{root}{slash}{mark}{options}"
            filesystem, start = within(FIRST_ANSWER_SECONDS, lambda: _filesystem(place))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.uri}: not a usable storage URI ({first_line(error)})") from None
        return filesystem, f"{start.rstrip('/')}/{rest}".rstrip("/")

    def reach(self) -> Folder:
        """Itself. Raises `UserError` within half a minute for an object store that does not answer
        or refuses; nothing is asked on behalf of a patient folder."""
        if self.local is None and not self.patience:
            try:
                within(FIRST_ANSWER_SECONDS, self.entries)
            except OSError as error:
                raise UserError(f"{self.uri}: cannot be reached ({first_line(error)})") from None
        return self

    def patient(self) -> Folder:
        return replace(self, patience=PATIENCE_SECONDS)

    def impatient(self) -> Folder:
        return replace(self, patience=0.0)

    def _persist(self, call: Callable[[], T]) -> T:
        deadline, pause = time.monotonic() + self.patience, 0.5
        while True:
            try:
                return call()
            except OSError as error:
                if not passing(error) or time.monotonic() > deadline:
                    raise
                logger.warning("%s: %s; trying again", self.uri, first_line(error))
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return parts(self.uri)[0].rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The local path, or None where the folder is on an object store."""
        filesystem, path = self.resolve()
        return Path(path) if isinstance(filesystem, pafs.LocalFileSystem) else None

    def __truediv__(self, name: str) -> Folder:
        assert all(part not in ("", "..") for part in name.split("/"))
        base, mark, options = parts(self.uri)  # s3://bucket/runs?region=…
        return replace(self, uri=f"{base}/{name}{mark}{options}")

    def write(self, name: str, data: bytes) -> None:
        self._persist(lambda: self._write(name, data))

    def _write(self, name: str, data: bytes) -> None:
        filesystem, folder = self.resolve()
        target = f"{folder}/{name}"
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        filesystem.create_dir(folder, recursive=True)
        aside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
        finally:
            Path(aside).unlink(missing_ok=True)

    def read(self, name: str, *, limit: int | None = None, first: int | None = None) -> bytes:
        """The file's bytes, or the `first` so many. Raises FileNotFoundError, and `Damaged` where
        there are more than `limit`, or where it is no file: a pipe would never end."""
        filesystem, folder = self.resolve()

        def read() -> bytes:
            size = self._size(filesystem, f"{folder}/{name}")
            if limit is not None and size > limit:
                raise Damaged(f"{self.uri}/{name}: has {size} bytes, at most {limit} are read")
            with filesystem.open_input_stream(f"{folder}/{name}") as stream:
                return bytes(stream.read(size if first is None else min(first, size)))

        return self._persist(read)

    def size(self, name: str) -> int:
        """Bytes of a file. Raises as `read`."""
        filesystem, folder = self.resolve()
        return self._persist(lambda: self._size(filesystem, f"{folder}/{name}"))

    def _size(self, filesystem: pafs.FileSystem, path: str) -> int:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if info.type != pafs.FileType.File:
            raise Damaged(f"{self.uri}/{path.rpartition('/')[2]}: cannot be read: no regular file")
        return int(info.size)

    def exists(self, name: str) -> bool:
        filesystem, folder = self.resolve()
        info = self._persist(lambda: filesystem.get_file_info(f"{folder}/{name}"))
        return bool(info.type != pafs.FileType.NotFound)

    def entries(self) -> dict[str, datetime]:
        """What stands in the folder and when it was written, by the filesystem's own clock."""
        filesystem, folder = self.resolve()
        selector = pafs.FileSelector(folder, allow_not_found=True)
        try:
            entries = self._persist(lambda: filesystem.get_file_info(selector))
        except FileNotFoundError:
            # made between Arrow's look at it and the one by which it tells a missing folder
            entries = self._persist(lambda: filesystem.get_file_info(selector))
        return {i.base_name: i.mtime for i in entries if not i.base_name.startswith(".")}

    def names(self) -> list[str]:
        """Sorted; nothing where there is no folder."""
        return sorted(self.entries())

    def delete(self) -> None:
        filesystem, folder = self.resolve()

        def delete() -> None:
            if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
                filesystem.delete_dir(folder)

        self._persist(delete)

    def delete_file(self, name: str) -> None:
        filesystem, folder = self.resolve()
        with contextlib.suppress(FileNotFoundError):
            self._persist(lambda: filesystem.delete_file(f"{folder}/{name}"))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises FileNotFoundError, or `Damaged` where it is not a JSON object (of a sane size)."""
        data = self.read(name, limit=LARGEST_JSON)
        try:
            return parse_json(data)
        except NotRead as error:
            raise Damaged(f"{self.uri}/{name}: {error}") from None

    def commit(self, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
        """Writes the files, then the manifest with their digests: from then on they count."""
        for name, data in files.items():
            self.write(name, data)
        digests = {name: sha256(data) for name, data in files.items()}
        self.write_json(MANIFEST, {**manifest, "sha256": digests})

    def manifest(self) -> dict[str, Any] | None:
        """What `commit` wrote, or None where nothing was committed."""
        try:
            return self.read_json(MANIFEST)
        except FileNotFoundError:
            return None

    def committed(self, name: str, manifest: Mapping[str, Any], limit: int | None = None) -> bytes:
        """A committed file's bytes. Raises `Damaged` where they do not match the manifest."""
        try:
            data = self.read(name, limit=limit)
        except FileNotFoundError:
            raise Damaged(f"{self.uri}/{name}: missing") from None
        digests = manifest.get("sha256")
        if not isinstance(digests, dict) or sha256(data) != digests.get(name):
            raise Damaged(f"{self.uri}/{name}: its digest differs from {MANIFEST}")
        return data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=64)
def _filesystem(root: str) -> tuple[pafs.FileSystem, str]:
    """Kept: making a client of an object store asks the network."""
    filesystem, start = pafs.FileSystem.from_uri(root)
    if isinstance(filesystem, pafs.S3FileSystem):
        # one made from a URI tries a silent server 30 times, for 100 seconds; this is how often one
        # made from options does. It pickles as these options
        _, (options,) = filesystem.__reduce__()
        tries = pafs.AwsStandardS3RetryStrategy(max_attempts=3)
        filesystem = pafs.S3FileSystem(**options, retry_strategy=tries)
    return filesystem, start
