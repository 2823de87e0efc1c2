"""Data files made to do harm: refused in one line, in seconds, in 4 GB, and no code of theirs run.

Each is read in a process of its own: a crash, a hang or a gigabyte too much is seen as such.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse
import torch

from fmoe import data
from fmoe.errors import UserError
from tests.published import X_TEST, Y_TEST, encode

READ = """
import json, os, resource, sys, time, warnings
warnings.simplefilter("error")
from fmoe import data
from fmoe.errors import UserError
import pyarrow.parquet, scipy.io
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))  # used, not reserved

def read(name, folder):
    os.chdir(folder)
    try:
        data.read(name, "test", folder)
    except UserError as error:
        sys.stderr.write(str(error))
        return 3
    return 0

for line in sys.stdin:
    name, folder = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT), 2)
        os._exit(read(name, folder))
    ended, status = 0, 0
    while not ended and time.monotonic() - started < 30:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status) if ended else "hangs"
    print(json.dumps([code, time.monotonic() - started]), flush=True)
"""
"""Of each line of stdin a data set's name and folder: its exit code, 3 for a refusal, and time."""


@dataclass
class Reader:
    """A process that has imported what it needs and forks for each folder."""

    process: subprocess.Popen[str]

    def answer(self, name: str, folder: Path) -> tuple[int | str, float, str]:
        """Exit code (or that it hangs), seconds, and what was said."""
        (folder / "said").unlink(missing_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, str(folder)]) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return code, seconds, (folder / "said").read_text()

    def refusal(self, name: str, folder: Path) -> str:
        code, seconds, said = self.answer(name, folder)
        assert code == 3, (code, seconds, said)
        assert len(said.splitlines()) == 1
        assert len(said) < 600
        assert not (folder / "made").exists(), "its code was run"
        return said


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with subprocess.Popen(
        [sys.executable, "-c", READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Reader(process)
        assert process.stdin is not None
        process.stdin.close()


Made = bytes | Callable[[], bytes]
"""A file's content; made when it is needed where it is large."""


def content(made: Made) -> bytes:
    return made if isinstance(made, bytes) else made()


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def function(module: str, name: str) -> bytes:
    """GLOBAL, the opcode."""
    return f"c{module}\n{name}\n".encode()


def dictionary(data: bytes, labels: bytes = b"](K\x00K\x01e", more: bytes = b"") -> bytes:
    """A batch out of opcodes."""
    return b"\x80\x04}(" + short("data") + data + short("labels") + labels + more + b"u."


EMPTY = function("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
RECONSTRUCTED = function("numpy.core.multiarray", "_reconstruct") + EMPTY
PIXELS = b"B" + struct.pack("<I", 2 * 3072) + bytes(2 * 3072)
SHAPE = b"K\x02M\x00\x0c\x86"  # (2, 3072)


def dtype(name: str) -> bytes:
    return function("numpy", "dtype") + short(name) + b"\x89\x88\x87R"


BYTES_STATE = b"(K\x03" + short("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
BYTES = dtype("u1") + BYTES_STATE


def array(kind: bytes = BYTES, shape: bytes = SHAPE, held: bytes = PIXELS) -> bytes:
    return RECONSTRUCTED + b"(K\x01" + shape + kind + b"\x89" + held + b"tb"


def buffer(kind: bytes = BYTES, shape: bytes = SHAPE, held: bytes = PIXELS) -> bytes:
    made = function("numpy._core.numeric", "_frombuffer")
    return made + b"(" + held + kind + shape + short("C") + b"tR"


MKDIR = function("os", "mkdir") + short("made") + b"\x85R"
POINTERS = b"C\x08" + b"A" * 8
DEEP = 200_000
DOUBLING = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(100))
PICKLES: dict[str, Made] = {
    "call": b"\x80\x04" + MKDIR + b".",
    "call in labels": dictionary(array(), b"](" + MKDIR + b"K\x01e"),
    "call beside": dictionary(array(), more=short("more") + MKDIR),
    "call by STACK_GLOBAL": b"\x80\x04"
    + short("os")
    + short("mkdir")
    + b"\x93"
    + short("made")
    + b"\x85R.",
    "eval": b"\x80\x04" + function("builtins", "eval") + short("open('made', 'w')") + b"\x85R.",
    "INST": b"(" + short("made") + b"ios\nmkdir\n.",
    "OBJ": b"(" + function("os", "mkdir") + short("made") + b"o.",
    "NEWOBJ": b"\x80\x04" + function("os", "mkdir") + short("made") + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + function("os", "mkdir") + short("made") + b"\x85}\x92.",
    "a module's attribute": b"\x80\x04" + short("numpy") + short("os.mkdir") + b"\x93.",
    "a deeper attribute": b"\x80\x04" + short("numpy") + short("ndarray.dumps") + b"\x93.",
    "names that are lists": b"\x80\x04]]\x93.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\xff\xff\xff\x7f.",
    "PERSID": b"Pmade\n.",
    "BINPERSID": b"\x80\x02K\x01Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "FROZENSET": b"\x80\x04(K\x01\x91.",
    "pointers": dictionary(array(dtype("O8"), b"K\x01\x85", POINTERS)),
    "pointers with a state": dictionary(array(dtype("O8") + BYTES_STATE, b"K\x01\x85", POINTERS)),
    "pointers in labels": dictionary(array(), array(dtype("O8"), b"K\x01\x85", POINTERS)),
    "pointers in a buffer": dictionary(buffer(dtype("O"), b"K\x01\x85", POINTERS)),
    "fields": dictionary(array(dtype("u1,O"))),
    "a record with pointers": dictionary(array(dtype("V8"), b"K\x01\x85", POINTERS)),
    "dtype with a subarray": dictionary(
        array(
            dtype("u1")
            + b"(K\x03"
            + short("|")
            + dtype("O8")
            + b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
    ),
    "dtype of a long name": dictionary(
        array(
            function("numpy", "dtype")
            + b"X"
            + struct.pack("<I", 10**6)
            + b"1" * 10**6
            + b"\x89\x88\x87R"
        )
    ),
    "state of a dtype that is an array": dictionary(array(BYTES[:-1] + array() + b"b")),
    "an array as its own content": b"\x80\x04}("
    + short("data")
    + RECONSTRUCTED
    + b"\x94(K\x01"
    + SHAPE
    + BYTES
    + b"\x89h\x00tb"
    + short("labels")
    + b"]u.",
    "ndarray called": dictionary(function("numpy", "ndarray") + SHAPE + BYTES + PIXELS + b"\x87R"),
    "scalar": dictionary(
        array(), b"](" + function("numpy.core.multiarray", "scalar") + BYTES + b"C\x01a\x86Re"
    ),
    "shape beyond the bytes": dictionary(array(shape=b"J\xff\xff\xff\x7fM\x00\x0c\x86")),
    "shape of huge numbers": dictionary(
        array(shape=b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"M\x00\x0c\x86")
    ),
    "negative shape": dictionary(array(shape=b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86")),
    "true shape": dictionary(array(shape=b"\x88M\x00\x0c\x86")),
    "many dimensions": dictionary(array(shape=b"(" + b"K\x01" * 10**5 + b"t")),
    "a buffer of lists": dictionary(buffer(held=b"]")),
    "data of text beyond bytes": dictionary(array(held=b"X" + struct.pack("<I", 3) + "€".encode())),
    "BUILD on a list": b"\x80\x04]}b.",
    "BUILD on a dict": b"\x80\x04}}b.",
    "BUILD on a function": b"\x80\x04" + function("numpy", "dtype") + b"}b.",
    "LONG_BINPUT alone": b"\x80\x04]r\xff\xff\xff\xff.",
    "LONG_BINPUT of nothing": b"\x80\x04r\xff\xff\xff\xff.",
    "LONG_BINPUT many": b"\x80\x04]"
    + b"".join(b"r" + struct.pack("<I", 2**31 + i) for i in range(10**5))
    + b".",
    "PUT of a huge number": b"]p" + b"9" * 10**6 + b"\n.",
    "GET of what is not there": b"\x80\x04h\x07.",
    "BINBYTES8 of a length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "BYTEARRAY8 of a length": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "BINBYTES of a length": b"\x80\x04B\xff\xff\xff\xffabc.",
    "BINUNICODE8 of a length": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc.",
    "FRAME of a length": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"].",
    "LONG4 of a negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "LONG4 label": dictionary(
        array(), b"](\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"K\x01e"
    ),
    "an integer of many digits": b"(lI" + b"9" * 10**6 + b"\na.",
    "deep lists": b"\x80\x04" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep tuples": b"\x80\x04)" + b"\x85" * DEEP + b".",
    "deep tuples as a key": b"\x80\x04})" + b"\x85" * DEEP + b"K\x01s.",
    "deep tuples as labels": dictionary(array(), b")" + b"\x85" * DEEP),
    "tuples that double, as a key": b"\x80\x04}()" + b"\x94" + DOUBLING + b"tK\x01s.",
    "lists that double": dictionary(array(), b"](" + b"K\x01\x94" + DOUBLING + b"e"),
    "a list in itself": dictionary(array(), b"]\x94h\x00a"),
    "many marks": lambda: b"\x80\x04" + b"(" * 30_000_000 + b".",
    "many dicts": lambda: b"\x80\x04" + b"}" * 30_000_000 + b".",
    "many references": lambda: b"\x80\x04]\x94(" + b"h\x00" * 10_000_000 + b"e.",
    "one text encoded again and again": lambda: (
        b"\x80\x04X"
        + struct.pack("<I", 10**7)
        + b"a" * 10**7
        + b"\x94("
        + (function("_codecs", "encode") + b"\x94h\x00" + short("latin1") + b"\x86R") * 10_000
        + b"l."
    ),
    "another encoding": dictionary(
        function("_codecs", "encode") + short("a") + short("rot13") + b"\x86R"
    ),
    "bz2": dictionary(function("_codecs", "decode") + b"C\x01a" + short("bz2") + b"\x86R"),
    "no stack": b"\x80\x04" + b"R" * 1000 + b".",
    "more after the end": dictionary(array()) + dictionary(array()),
    "a key twice": dictionary(array(), more=short("data") + array()),
    "a key twice in bytes": dictionary(array(), more=b"C\x04data" + array()),
    "terminal codes": b"\x80\x04c\x1b[31mos\nmk\x07dir\n.",
    "a protocol to come": b"\x80\xff].",
    "an opcode to come": b"\x80\x05\xff.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_hostile_pickle_is_refused(kind: str, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(content(PICKLES[kind]))
    message = reader.refusal("cifar10", tmp_path)
    assert message.startswith(f"{tmp_path / 'test_batch'}: not a CIFAR-10 batch (")
    assert message.isprintable()


def test_the_same_opcodes_without_harm_are_read(tmp_path: Path) -> None:
    """What the hostile ones are made of is no reason to refuse them."""
    for pixels in (array(), buffer()):
        far = b"r\xff\xff\xff\x7f"  # LONG_BINPUT, of which the C unpickler makes 16 GiB
        (tmp_path / "test_batch").write_bytes(dictionary(pixels + far))
        split = data.read("cifar10", "test", tmp_path)
        assert split.labels.tolist() == [0, 1]
        assert not split.images.any()


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 GiB of zeros in 6 MB: members of a gzip file may follow each other."""
    packed = gzip.compress(bytes(64 << 20))
    file = tmp_path_factory.mktemp("bomb") / "zeros.gz"
    file.write_bytes(packed * 96)
    return file


def member(name: str, held: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    info.size = len(held)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, held


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, held in members:
            tar.addfile(info, io.BytesIO(held))
    return stream.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's, of a size that its bytes need not have."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


BATCH = dictionary(array())
INSIDE = "cifar-10-batches-py/test_batch"
TARS: dict[str, Made] = {
    "symbolic link": tarred(member("test_batch", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": tarred(
        member("other", BATCH), member("test_batch", type=tarfile.LNKTYPE, linkname="other")
    ),
    "pipe": tarred(member("test_batch", type=tarfile.FIFOTYPE)),
    "device": tarred(member("test_batch", type=tarfile.CHRTYPE)),
    "folder": tarred(member("test_batch", type=tarfile.DIRTYPE)),
    "outside": tarred(member("../../cifar-10-batches-py/../test_batch", BATCH)),
    "elsewhere": tarred(member("inner/test_batch", BATCH)),
    "twice": tarred(member("test_batch", BATCH), member("test_batch", BATCH)),
    "call": tarred(member("test_batch", content(PICKLES["call"]))),
    "size beyond": header(INSIDE, 10**6) + BATCH,
    "size of 8 GB": header(INSIDE, 8 << 30) + BATCH,
    "sparse": header(INSIDE, 8 << 30, tarfile.GNUTYPE_SPARSE) + bytes(1024),
    "long name": header("././@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "long headers": lambda: header("pax", 512, tarfile.XHDTYPE) * 100_000,
    "many members": lambda: header("a", 0) * 500_000,
    "nothing": bytes(10240),
    "no tar": b"hello" * 1000,
}


@pytest.mark.parametrize("kind", TARS)
def test_hostile_archive_is_refused(kind: str, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content(TARS[kind]), 1))
    message = reader.refusal("cifar10", tmp_path)
    assert message.startswith(f"{tmp_path / 'cifar-10-python.tar.gz'}")
    assert {file.name for file in tmp_path.iterdir()} == {"cifar-10-python.tar.gz", "said"}


def test_archive_that_unpacks_without_end_is_refused(
    bomb: Path, reader: Reader, tmp_path: Path
) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(bomb.read_bytes())
    assert "unpacks to more than" in reader.refusal("cifar10", tmp_path)


def element(kind: int, held: bytes) -> bytes:
    return struct.pack("<II", kind, len(held)) + held + bytes(-len(held) % 8)


def matrix(name: str, shape: list[int], body: bytes, kind: int = 9, flags: int = 0) -> bytes:
    """A MATLAB array out of its elements; kind 9 is uint8."""
    head = element(6, struct.pack("<II", kind | flags << 8, 0))
    head += element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name.encode())
    return element(14, head + body)


PIXELS_4 = X_TEST.transpose(2, 3, 1, 0).tobytes("F")
COLUMN = matrix("y", [4, 1], element(2, bytes([1, 2, 3, 4])))
GOOD_X = matrix("X", [32, 32, 3, 4], element(2, PIXELS_4))
MATLAB = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
HUGE = 2**31 - 1


def saved(**variables: Any) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


def packed(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<II", 15, len(z)) + z for z in map(zlib.compress, parts))


def zeros() -> bytes:
    """2 GiB of zeros in 2 MB: after a full flush a block may be repeated."""
    packer = zlib.compressobj(1)
    start = packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(32 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * 64


IMAGES = X_TEST.transpose(2, 3, 1, 0)
LABELS = np.array([[1], [2], [3], [4]], np.uint8)
CELL = np.empty((4, 1), object)
CELL[:] = [[1], ["a"], [2], [2.5]]
MATS: dict[str, Made] = {
    "shape beyond the bytes": MATLAB
    + matrix("X", [32, 32, 3, 10**5], element(2, PIXELS_4))
    + COLUMN,
    "a huge shape": MATLAB + matrix("X", [32, 32, 3, HUGE], element(2, PIXELS_4)) + COLUMN,
    "huge in each": MATLAB + matrix("X", [HUGE] * 4, element(2, PIXELS_4)) + COLUMN,
    "negative": MATLAB + matrix("X", [32, 32, 3, -4], element(2, PIXELS_4)) + COLUMN,
    "many dimensions": MATLAB + matrix("X", [1] * 10**5, element(2, PIXELS_4)) + COLUMN,
    "stored as doubles": MATLAB
    + matrix("X", [32, 32, 3, 4], element(9, IMAGES.astype(float).tobytes("F")))
    + COLUMN,
    "labels stored as doubles": MATLAB
    + GOOD_X
    + matrix("y", [4, 1], element(9, np.ones(4).tobytes()), 6),
    "labels stored as singles": MATLAB
    + GOOD_X
    + matrix("y", [4, 1], element(7, np.ones(4, np.float32).tobytes()), 6),
    "logical labels": MATLAB + GOOD_X + matrix("y", [4, 1], element(2, bytes([1, 1, 1, 1])), 9, 2),
    "logical images": MATLAB + matrix("X", [32, 32, 3, 4], element(2, PIXELS_4), 9, 2) + COLUMN,
    "complex labels": MATLAB + GOOD_X + matrix("y", [4, 1], element(2, bytes(4)) * 2, 9, 8),
    "text for labels": saved(X=IMAGES, y=np.array(["1", "2", "3", "4"])),
    "cells for labels": saved(X=IMAGES, y=CELL),
    "a record for images": saved(X={"a": IMAGES}, y=LABELS),
    "sparse labels": saved(X=IMAGES, y=scipy.sparse.csc_matrix(LABELS)),
    "pairs of labels": saved(X=IMAGES, y=np.ones((4, 2), np.uint8)),
    "a function for images": MATLAB + matrix("X", [1, 1], GOOD_X, 16) + COLUMN,
    "an object for images": MATLAB + matrix("X", [1, 1], GOOD_X, 17) + COLUMN,
    "cells in cells": lambda: (
        MATLAB
        + COLUMN
        + b"".join(
            [
                struct.pack("<II", 14, 10**6 - 48 * i)
                + element(6, struct.pack("<II", 1, 0))
                + element(5, struct.pack("<ii", 1, 1))
                + element(1, b"X")
                for i in range(20_000)
            ]
        )
    ),
    "X twice": MATLAB
    + GOOD_X
    + matrix("X", [32, 32, 3, 4], element(2, bytes(len(PIXELS_4))))
    + COLUMN,
    "cut in packed": MATLAB + packed(GOOD_X, COLUMN)[:-4],
    "no zlib": MATLAB + struct.pack("<II", 15, 100) + b"a" * 100,
    "packed without end": lambda: MATLAB + struct.pack("<II", 15, len(zeros())) + zeros(),
    "packed in packed": MATLAB + packed(packed(GOOD_X), COLUMN),
    "many variables": lambda: MATLAB + matrix("a", [1, 1], element(2, b"a")) * 100_000,
    "version 7.3": b"MATLAB 7.3 MAT-file".ljust(124)
    + b"\x00\x02IM"
    + bytes(384)
    + b"\x89HDF\r\n\x1a\n"
    + bytes(1000),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(1000),
    "version 4": struct.pack("<5i", 50, 1, 1, 0, 2) + b"y\x00\x01",
    "header alone": MATLAB,
}


@pytest.mark.parametrize("kind", MATS)
def test_hostile_mat_is_refused(kind: str, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "test_32x32.mat").write_bytes(content(MATS[kind]))
    message = reader.refusal("svhn", tmp_path)
    assert message.startswith(f"{tmp_path / 'test_32x32.mat'}: not an SVHN file (")
    assert ("MATLAB 7.3" in message) == (kind in ("version 7.3", "HDF5"))


def test_the_same_elements_without_harm_are_read(tmp_path: Path) -> None:
    """MATLAB's own y is `double` and stored in bytes."""
    double = matrix("y", [4, 1], element(2, bytes([1, 2, 3, 10])), 6)
    for body in (GOOD_X + double, packed(GOOD_X, double), packed(double) + GOOD_X):
        (tmp_path / "test_32x32.mat").write_bytes(MATLAB + body)
        split = data.read("svhn", "test", tmp_path)
        assert split.labels.tolist() == [1, 2, 3, 0]
        assert torch.equal(split.images, torch.from_numpy(X_TEST))


IMG = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def repeated(cell: bytes, rows: int) -> pa.Table:
    """One cell many times, which the file holds once."""
    indices = pa.array(np.zeros(rows, np.int32))
    img = pa.DictionaryArray.from_arrays(indices, pa.array([cell], pa.binary()))
    return pa.table({"img": img, "label": pa.array(np.zeros(rows, np.int64))})


def nested(depth: int) -> Any:
    kind, value = pa.binary(), b"a"
    for _ in range(depth):
        kind, value = pa.struct([("bytes", kind)]), {"bytes": value}  # type: ignore[assignment]
    return pa.table({"img": pa.array([value], kind), "label": [0]})


TABLES: dict[str, Callable[[], Any]] = {
    "a large cell many times": lambda: repeated(bytes(8 << 20), 200_000),
    "a million rows": lambda: repeated(encode(X_TEST[0]), 10**6),
    "a large picture many times": lambda: repeated(
        encode(np.zeros((3, 4000, 4000), np.uint8)), 2000
    ),
    "deep": lambda: nested(50),
    "ten thousand columns": lambda: pa.table({f"c{i}": [0] for i in range(10_000)}),
    "a program in a cell": lambda: pa.table(
        {"img": [b"%!PS-Adobe-3.0\n(made) (w) file closefile showpage\n"], "label": [0]}
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_hostile_table_is_refused(kind: str, reader: Reader, tmp_path: Path) -> None:
    file = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(TABLES[kind](), file, compression="zstd")
    assert reader.refusal("cifar10", tmp_path).startswith(f"{file}: ")


@pytest.mark.parametrize("seed", range(2))
def test_parquet_with_flipped_bytes_is_refused_or_read(
    seed: int, reader: Reader, tmp_path: Path
) -> None:
    """Most break the pictures or the tables, and none the process."""
    cells = pa.array([{"bytes": encode(x), "path": "a"} for x in X_TEST], IMG)
    stream = io.BytesIO()
    pq.write_table(pa.table({"img": cells, "label": Y_TEST}), stream, compression="none")
    whole, rng = stream.getvalue(), np.random.default_rng(seed)
    file, refused = tmp_path / "test-00000-of-00001.parquet", 0
    for _ in range(20):
        spoilt = bytearray(whole)
        for place in rng.integers(0, 1200 if seed else len(whole), 3):
            spoilt[-1 - place] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoilt)
        code, _, said = reader.answer("cifar10", tmp_path)
        assert code in (0, 3), (code, said)
        assert len(said.splitlines()) == (1 if code else 0)
        refused += code == 3
    assert refused > 3


def safetensors(header: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SIZE = 4 * 3072
TENSORS: dict[str, Made] = {
    "a long header": struct.pack("<Q", 2**62) + b"{}",
    "a header of 200 MB": lambda: struct.pack("<Q", 200 << 20) + b" " * (200 << 20),
    "deep": safetensors(b"[" * 10**6),
    "a huge shape": safetensors({"x_test": entry("U8", [2**40, 3, 32, 32], 0, SIZE)}, bytes(SIZE)),
    "an overflow": safetensors({"x_test": entry("U8", [2**62, 4, 1, 1], 0, 0)}),
    "offsets beyond": safetensors({"x_test": entry("U8", [4, 3, 32, 32], 0, SIZE)}),
    "floats": safetensors(
        {
            "x_test": entry("F32", [1, 3, 32, 32], 0, SIZE),
            "y_test": entry("I64", [1], SIZE, SIZE + 8),
        },
        bytes(SIZE + 8),
    ),
    "bfloat": safetensors(
        {
            "x_test": entry("BF16", [2, 3, 32, 32], 0, SIZE),
            "y_test": entry("I64", [2], SIZE, SIZE + 16),
        },
        bytes(SIZE + 16),
    ),
    "labels of 32 bits": safetensors(
        {
            "x_test": entry("U8", [4, 3, 32, 32], 0, SIZE),
            "y_test": entry("I32", [4], SIZE, SIZE + 16),
        },
        bytes(SIZE + 16),
    ),
    "labels of bytes": safetensors(
        {
            "x_test": entry("U8", [4, 3, 32, 32], 0, SIZE),
            "y_test": entry("BOOL", [4], SIZE, SIZE + 4),
        },
        bytes(SIZE + 4),
    ),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_hostile_prepared_file_is_refused(kind: str) -> None:
    file = data.prepared_path("cifar10")
    file.parent.mkdir(parents=True)
    file.write_bytes(content(TENSORS[kind]))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cifar10\.safetensors: damaged .*data prepare` again"):
        data.read("cifar10", "test")
    assert time.monotonic() - started < 30
