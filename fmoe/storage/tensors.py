"""Tensors as safetensors: what a file says that it holds is checked before it is read.

A header is a few kilobytes that anybody could have written: it may name a million tensors, or
shapes that fit no memory. So names, types and shapes must be those of the module that asks, and the
file as long as these need, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fmoe.documents import LARGEST_JSON, NotRead, parse_json
from fmoe.errors import UserError, first_line
from fmoe.storage.folder import Damaged, Folder

Tensors = dict[str, Tensor]
LENGTH = 8  # bytes of the header's length
AT_ONCE = 2**16
COPIES = 3  # of a file's bytes while it is read: as bytes, as tensors, in the module
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Raises `UserError` for a type that would not be read again."""
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES.values():
            raise UserError(f"{name}: tensors of type {tensor.dtype} are not kept")
    data: bytes = save_tensors({n: tensor.detach().contiguous() for n, tensor in tensors.items()})
    return data


def unpack(data: bytes, source: str) -> Tensors:
    """Raises `Damaged`, for weights that are NaN or infinite as well."""
    try:
        tensors: Tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise Damaged(f"{source}: damaged: not a safetensors file ({first_line(error)})") from None
    except MemoryError:
        raise Damaged(f"{source}: {len(data)} bytes, more than there is memory for") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Damaged(f"{source}: {name[:100]} holds values that are not finite")
    return tensors


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors: name to type and shape. size: of the file, which has as many
    bytes as they need."""

    source: str
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    size: int

    def require(self, expected: Mapping[str, Tensor], prefix: str = "") -> None:
        """Those whose names start with `prefix` are these, no more and no fewer. Raises
        `Damaged`."""
        names = {n.removeprefix(prefix): n for n in self.tensors if n.startswith(prefix)}
        for name in expected.keys() ^ names.keys():
            what = "is missing" if name in expected else "is none of the model's"
            raise Damaged(f"{self.source}: does not fit: {prefix}{name[:100]} {what}")
        for name, tensor in expected.items():
            dtype, shape = self.tensors[names[name]]
            if (dtype, shape) != (tensor.dtype, tuple(tensor.shape)):
                raise Damaged(
                    f"{self.source}: does not fit: {prefix}{name} is {dtype} {list(shape)}, "
                    f"the model's is {tensor.dtype} {list(tensor.shape)}"
                )


def read_header(folder: Folder, name: str) -> Header:
    """Reads no more than the header. Raises FileNotFoundError and `Damaged`."""
    source, size = f"{folder.uri}/{name}", folder.size(name)
    data = folder.read(name, first=AT_ONCE)
    length = int.from_bytes(data[:LENGTH], "little")
    if len(data) < LENGTH or length > min(size - LENGTH, LARGEST_JSON):
        raise Damaged(f"{source}: damaged: not a safetensors file (its header has no end)")
    if LENGTH + length > len(data):
        data = folder.read(name, first=LENGTH + length)
    try:
        tree = parse_json(data[LENGTH : LENGTH + length])
        tree.pop("__metadata__", None)
        tensors = {name: _described(name, about) for name, about in tree.items()}
    except NotRead as error:
        raise Damaged(
            f"{source}: damaged: not a safetensors file (its header is {error})"
        ) from None
    needed = LENGTH + length + sum(_bytes(*described) for described in tensors.values())
    if needed != size:
        raise Damaged(f"{source}: damaged: has {size} bytes, the tensors of its header {needed}")
    if COPIES * size > psutil.virtual_memory().available:
        raise Damaged(f"{source}: {size / 1e9:.1f} GB, more than there is memory for")
    return Header(source, tensors, size)


def _described(name: str, about: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype, shape = (about.get("dtype"), about.get("shape")) if isinstance(about, dict) else ("", [])
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise NotRead(f"no good: the type of {name[:100]}")
    sizes = shape if isinstance(shape, list) and len(shape) <= 8 else [None]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes):
        raise NotRead(f"no good: the shape of {name[:100]}")
    return TYPES[dtype], tuple(sizes)


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    count = dtype.itemsize
    for side in shape:
        count *= side
    return count
