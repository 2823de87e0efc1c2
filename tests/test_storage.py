"""Files appear whole or not at all; a manifest's digests tell what counts."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmoe.errors import UserError
from fmoe.storage.folder import MANIFEST, Damaged, Folder, sha256


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "run")


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("a.bin", b"\x00\xff" * 1000)
    assert folder.read("a.bin") == b"\x00\xff" * 1000
    assert folder.exists("a.bin")


def test_writing_makes_the_folders_above(folder: Folder) -> None:
    inner = folder / "pool/benign-0" / "epoch-0001"
    inner.write("a", b"1")
    assert inner.uri == f"{folder.uri}/pool/benign-0/epoch-0001"
    assert (folder / "pool").names() == ["benign-0"]


def test_writing_again_replaces(folder: Folder) -> None:
    folder.write("a", b"a long first version")
    folder.write("a", b"2")
    assert folder.read("a") == b"2"
    assert folder.names() == ["a"]


def test_missing_file(folder: Folder) -> None:
    assert not folder.exists("a")
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    with pytest.raises(FileNotFoundError):
        folder.read_json("a.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_write_keeps_the_old_file_and_leaves_nothing(
    step: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a", b"old")

    def disk_full(*args: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, disk_full)
        with pytest.raises(OSError, match="No space left"):
            folder.write("a", b"new")
    assert folder.read("a") == b"old"
    assert folder.local is not None
    assert [file.name for file in folder.local.iterdir()] == ["a"]


def test_readers_beside_writers_see_whole_files(folder: Folder) -> None:
    versions = [bytes([i]) * 50_000 for i in range(4)]
    folder.write("a", versions[0])

    def write(version: bytes) -> None:
        for _ in range(10):
            folder.write("a", version)

    def read(_: int) -> set[bytes]:
        return {folder.read("a") for _ in range(50)}

    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(write, version) for version in versions]
        seen = set.union(*pool.map(read, range(2)))
        for future in writing:
            future.result()
    assert seen <= set(versions)
    assert folder.names() == ["a"]


def test_names_are_sorted_and_hide_what_is_unfinished(folder: Folder) -> None:
    assert folder.names() == []
    for name in ("b", "a"):
        folder.write(name, b"")
    (folder / "c").write("inside", b"")
    assert folder.local is not None
    (folder.local / ".d.1234.tmp").write_bytes(b"half")
    assert folder.names() == ["a", "b", "c"]


def test_delete_takes_the_folder_and_may_be_repeated(folder: Folder) -> None:
    (folder / "inner").write("a", b"")
    folder.delete()
    assert not folder.exists("inner")
    assert folder.names() == []
    folder.delete()


@settings(deadline=None, max_examples=25)
@given(
    value=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
    )
)
def test_json_round_trip(
    value: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Folder.at(tmp_path_factory.getbasetemp() / "json")
    folder.write_json("a.json", value)
    assert folder.read_json("a.json") == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1, 2]", b"null", b"\xff\xfe"])
def test_what_is_no_json_object_is_damaged(content: bytes, folder: Folder) -> None:
    folder.write("a.json", content)
    with pytest.raises(Damaged, match=r"a\.json: not a JSON object"):
        folder.read_json("a.json")


def test_sha256_is_the_standards() -> None:
    # FIPS 180-2, appendix B.1
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_commit_writes_files_and_their_digests(folder: Folder) -> None:
    assert folder.manifest() is None
    folder.commit({"a": b"one", "b": b"two"}, {"epoch": 3})
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest["epoch"] == 3
    assert manifest["sha256"] == {
        "a": hashlib.sha256(b"one").hexdigest(),
        "b": hashlib.sha256(b"two").hexdigest(),
    }
    assert folder.committed("a", manifest) == b"one"
    assert folder.committed("b", manifest) == b"two"
    assert folder.names() == ["a", "b", MANIFEST]


def test_nothing_counts_when_a_commit_fails_halfway(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write

    def fail_on_b(self: Folder, name: str, data: bytes) -> None:
        if name == "b":
            raise OSError("gone")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", fail_on_b)
    with pytest.raises(OSError, match="gone"):
        folder.commit({"a": b"one", "b": b"two"}, {})
    assert folder.manifest() is None


@settings(deadline=None, max_examples=25)
@given(length=st.integers(0, 99))
def test_truncated_file_is_damaged(length: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Folder.at(tmp_path_factory.getbasetemp() / "truncated")
    folder.commit({"a": bytes(range(100))}, {})
    manifest = folder.manifest()
    assert manifest is not None
    folder.write("a", bytes(range(length)))
    with pytest.raises(Damaged, match="/a: its digest differs"):
        folder.committed("a", manifest)


def test_missing_and_uncommitted_files_are_damaged(folder: Folder) -> None:
    folder.commit({"a": b"one"}, {})
    manifest = folder.manifest()
    assert manifest is not None
    folder.write("stray", b"never committed")
    with pytest.raises(Damaged, match="/stray: its digest differs"):
        folder.committed("stray", manifest)
    with pytest.raises(Damaged, match="/gone: missing"):
        folder.committed("gone", manifest)


def test_truncated_manifest_is_damaged(folder: Folder) -> None:
    folder.commit({"a": b"one"}, {})
    folder.write(MANIFEST, folder.read(MANIFEST)[:-5])
    with pytest.raises(Damaged, match=MANIFEST):
        folder.manifest()


def test_folders_pickle(folder: Folder) -> None:
    folder.write("a", b"1")
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder
    assert again.read("a") == b"1"


def test_local_folders_know_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Folder.at(tmp_path / "a").local == tmp_path / "a"
    assert Folder.at(f"{tmp_path}/a/").uri == (tmp_path / "a").as_posix()
    monkeypatch.chdir(tmp_path)
    assert Folder.at("a").local == tmp_path / "a"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder.at("~/a").local == tmp_path / "a"


def test_credentials_in_a_uri_are_refused_and_not_shown() -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as refusal:
        Folder.at("s3://AKIAKEY:hunter2@bucket/prefix")
    assert "hunter2" not in str(refusal.value)
    assert "AKIAKEY" not in str(refusal.value)


def test_file_uris_are_local_folders(tmp_path: Path) -> None:
    folder = Folder.at(f"file://{tmp_path.as_posix()}/a")
    folder.write("b", b"1")
    assert folder.local == tmp_path / "a"
    assert (tmp_path / "a" / "b").read_bytes() == b"1"


@pytest.mark.parametrize("uri", ["nosuch://bucket/runs", "ftp://host/runs", "s3:///no-bucket"])
def test_uri_of_an_unknown_kind_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=f"{uri}: not a usable storage URI"):
        Folder.at(uri)


@pytest.mark.parametrize("name", ["", "/etc", "..", "a/../../b"])
def test_paths_do_not_climb_out(name: str, folder: Folder) -> None:
    with pytest.raises(AssertionError):
        folder / name


def test_a_folder_that_is_made_while_it_is_listed(tmp_path: Path) -> None:
    """Arrow looks twice: what is missing at the first look and there at the second was an error."""
    listed = 0

    def make() -> None:
        for number in range(100):
            while listed < number:
                pass
            (tmp_path / str(number)).mkdir()

    maker = threading.Thread(target=make)
    maker.start()
    try:
        for number in range(100):
            listed = number
            folder = Folder.at(tmp_path / str(number))
            while not (tmp_path / str(number)).exists():
                assert folder.names() == []
    finally:
        listed = 100
        maker.join()
