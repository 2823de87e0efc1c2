"""A folder on any filesystem that pyarrow can reach: a local path, `s3://`, `gs://`.

A file appears whole or not at all: local files are written aside and renamed, object stores put
atomically. JSON documents carry their own meaning; `manifest.json`, written last with the digests
of its neighbours, is what makes a folder of files count.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from fmoe.errors import UserError, first_line

MANIFEST = "manifest.json"


class Damaged(ValueError):
    """A file is missing, truncated or not what its manifest says."""


@dataclass(frozen=True)
class Folder:
    """A folder and the filesystem it is on. Pickles: workers are given one."""

    uri: str

    @classmethod
    def at(cls, place: str | Path) -> Folder:
        """Raises `UserError` for a URI of a kind that pyarrow does not know."""
        text = str(place)
        try:
            uri = text if "://" in text else Path(text).expanduser().resolve().as_posix()
        except RuntimeError as error:  # ~nosuchuser
            raise UserError(f"{text}: not a folder ({first_line(error)})") from None
        base, mark, options = uri.partition("?")
        if base.endswith("://"):
            raise UserError(f"{text}: names no folder")
        folder = cls(f"{base.rstrip('/')}{mark}{options}")
        folder._resolve()
        return folder

    def _resolve(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), self.uri
        try:
            filesystem, path = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.uri}: not a usable storage URI ({first_line(error)})") from None
        return filesystem, path

    @property
    def local(self) -> Path | None:
        """The local path, or None where the folder is on an object store."""
        filesystem, path = self._resolve()
        return Path(path) if isinstance(filesystem, pafs.LocalFileSystem) else None

    def __truediv__(self, name: str) -> Folder:
        assert all(part not in ("", "..") for part in name.split("/"))
        base, mark, options = self.uri.partition("?")  # s3://bucket/runs?region=…
        return Folder(f"{base}/{name}{mark}{options}")

    def write(self, name: str, data: bytes) -> None:
        filesystem, folder = self._resolve()
        filesystem.create_dir(folder, recursive=True)
        target = f"{folder}/{name}"
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        aside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
        finally:
            Path(aside).unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        filesystem, folder = self._resolve()
        with filesystem.open_input_stream(f"{folder}/{name}") as stream:
            return bytes(stream.read())

    def exists(self, name: str) -> bool:
        filesystem, folder = self._resolve()
        return bool(filesystem.get_file_info(f"{folder}/{name}").type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """What stands in the folder, sorted; nothing where there is no folder."""
        filesystem, folder = self._resolve()
        selector = pafs.FileSelector(folder, allow_not_found=True)
        found = filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def delete(self) -> None:
        filesystem, folder = self._resolve()
        if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
            filesystem.delete_dir(folder)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises FileNotFoundError, or `Damaged` where it is not a JSON object."""
        try:
            value = json.loads(self.read(name))
        except (UnicodeDecodeError, json.JSONDecodeError):
            value = None
        if not isinstance(value, dict):
            raise Damaged(f"{self.uri}/{name}: not a JSON object")
        return value

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

    def committed(self, name: str, manifest: Mapping[str, Any]) -> bytes:
        """A committed file's bytes. Raises `Damaged` where they do not match the manifest."""
        try:
            data = self.read(name)
        except FileNotFoundError:
            raise Damaged(f"{self.uri}/{name}: missing") from None
        digests = manifest.get("sha256")
        if not isinstance(digests, dict) or sha256(data) != digests.get(name):
            raise Damaged(f"{self.uri}/{name}: its digest differs from {MANIFEST}")
        return data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
