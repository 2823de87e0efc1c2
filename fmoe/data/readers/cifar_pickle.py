"""CIFAR's pickles, protocols 0 to 5, read without unpickling.

`pickletools` tells a pickle's opcodes, and those that plain data need are carried out here:
numbers, text, bytes, lists, tuples, dicts with keys of text. numpy's few constructors are recorded
by name and never called; what they were given is checked and only then looked at as an array, so
that no dtype, shape or buffer of the file's choice reaches numpy. Everything else is refused: no
opcode here calls, imports or builds anything. Bytes and Python 2's text are one (latin-1).
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

MOST_OPCODES = 2_000_000
"""60 times those of a published batch; a container takes some 100 bytes of memory an opcode."""
GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
CONSTANTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
        *("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
LITERALS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
INTEGERS = frozenset(f"{sign}{width}" for sign in "iu" for width in (1, 2, 4, 8))


@dataclass(frozen=True)
class Function:
    """A constructor that a file names."""

    name: str


@dataclass
class Dtype:
    """What numpy.dtype was given: `u1`, and the order of bytes as `|`, `<` or `>`."""

    name: str
    order: str = "|"


@dataclass
class Array:
    """What an array was to be made of, unchecked."""

    dtype: Any = None
    shape: Any = ()
    order: Any = "C"
    content: Any = b""

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """Read-only, of integers. Raises `ValueError` for any other kind of array."""
        if not isinstance(self.dtype, Dtype) or self.dtype.name not in INTEGERS:
            name = getattr(self.dtype, "name", None)
            raise ValueError(f"an array of {str(name)[:20]!r}, not of integers")
        shape, content = self.shape, _bytes(self.content)
        if not isinstance(shape, tuple) or not 1 <= len(shape) <= 2 or not all(map(_count, shape)):
            raise ValueError("an array that is no list and no table")
        if prod(shape) * int(self.dtype.name[1:]) != len(content):
            raise ValueError(f"an array of shape {shape} out of {len(content)} bytes")
        kind = np.dtype(self.dtype.order + self.dtype.name)
        flat = np.frombuffer(content, kind)
        return flat.reshape(shape, order="F" if self.order == "F" else "C")


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _bytes(value: Any) -> bytes | bytearray:
    if isinstance(value, str):
        return value.encode("latin-1")
    if not isinstance(value, bytes | bytearray):
        raise ValueError(f"an array out of {type(value).__name__}")
    return value


def plain(content: bytes) -> dict[str, Any]:
    """The dict that a pickle holds. Raises `ValueError` for whatever else it is or would do."""
    machine = _Machine()
    stream = io.BytesIO(content)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes")
        machine.step(opcode.name, argument)
    if stream.tell() != len(content):
        raise ValueError("more bytes after its end")
    if len(machine.stack) != 1 or not isinstance(machine.stack[0], dict):
        raise ValueError("holds no dict")
    return machine.stack[0]


class _Machine:
    """The stack of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(argument)
        elif name in PUTS:
            self.memo[argument] = self._top()
        elif name in GETS:
            if argument not in self.memo:
                raise ValueError("damaged: nothing was put where it looks")
            self.stack.append(self.memo[argument])
        elif name in LITERALS:
            self.stack.append(LITERALS[name])
        elif name in TUPLES:
            self.stack.append(tuple(self._take(TUPLES[name])))
        else:
            self._other(name, argument)

    def _other(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_LIST" | "EMPTY_DICT":
                self.stack.append([] if name == "EMPTY_LIST" else {})
            case "LIST":
                self.stack.append(self._marked())
            case "TUPLE":
                self.stack.append(tuple(self._marked()))
            case "DICT":
                self.stack.append(_filled({}, self._marked()))
            case "APPEND" | "APPENDS":
                items = self._take(1) if name == "APPEND" else self._marked()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._take(2) if name == "SETITEM" else self._marked()
                _filled(self._top(dict), items)
            case "GLOBAL":
                self.stack.append(_function(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_function(*self._take(2)))
            case "REDUCE":
                self.stack.append(_recorded(*self._take(2)))
            case "BUILD":
                (state,) = self._take(1)
                _set(self._top(), state)
            case _:
                raise ValueError(f"holds the opcode {name}, which is no image data")

    def _floor(self) -> int:
        return self.marks[-1] if self.marks else 0

    def _top(self, kind: type = object) -> Any:
        if len(self.stack) <= self._floor() or not isinstance(self.stack[-1], kind):
            raise ValueError("damaged: its stack is not as it should be")
        return self.stack[-1]

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) - count < self._floor():
            raise ValueError("damaged: its stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        if not self.marks:
            raise ValueError("damaged: a mark is missing")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _filled(target: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    """Keys are text or bytes: hashing nothing else, which a file could nest without end."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes):
            raise ValueError(f"a key of {type(key).__name__}, not of text")
        name = key if isinstance(key, str) else key.decode("latin-1")
        if name in target:
            raise ValueError(f"the key {name[:40]!r} twice")
        target[name] = value
    return target


def _function(module: Any, name: Any) -> Function:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("damaged: a name that is no text")
    known = GLOBALS.get((module, name))
    if known is None:
        raise ValueError(f"holds {f'{module}.{name}'[:80]!r}, which is no image data")
    return Function(known)


def _recorded(function: Any, arguments: Any) -> Any:
    """What a call would have given, as one of ours."""
    name = function.name if isinstance(function, Function) else None
    match name, arguments:
        case "encode", (str() as text, "latin1"):
            return text  # bytes, as protocols 0 to 2 write them
        case "reconstruct", (Function("ndarray"), (0,), _):
            return Array()
        case "dtype", (str() as kind, _, _):
            return Dtype(kind)
        case "frombuffer", (buffer, Dtype() as dtype, shape, ("C" | "F") as order):
            return Array(dtype, shape, order, buffer)
    raise ValueError("holds a call that makes no array")


def _set(target: Any, state: Any) -> None:
    match target, state:
        case Dtype(), (3, ("|" | "<" | ">") as order, None, None, None, -1, -1, 0):
            target.order = order
        case Array(), (1, shape, dtype, fortran, content) if type(fortran) in (bool, int):
            target.dtype, target.shape, target.content = dtype, shape, content
            target.order = "F" if fortran else "C"
        case _:
            raise ValueError("holds a state that no array has")
