"""What `fmoe data prepare` keeps: one safetensors file with x, y, x_test and y_test."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fmoe.data.readers.arrays import Arrays, Kind, Part, checked
from fmoe.data.readers.aside import aside
from fmoe.data.readers.files import ensure_whole
from fmoe.errors import UserError, first_line


def write_prepared(file: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    """Beside first, then in the place of what is there, whole or not at all."""
    from safetensors.torch import save_file

    (x, y), (x_test, y_test) = train, test
    with aside(file) as folder:
        save_file({"x": x, "y": y, "x_test": x_test, "y_test": y_test}, folder / file.name)
        (folder / file.name).replace(file)


def read_prepared(file: Path, kind: Kind, part: Part) -> Arrays:
    from safetensors import SafetensorError, safe_open

    end = "" if part == "train" else "_test"
    try:
        ensure_whole(file)
        with safe_open(file, "np") as kept:
            for name, dtype in ((f"x{end}", "U8"), (f"y{end}", "I64")):
                if kept.get_slice(name).get_dtype() != dtype:
                    raise UserError(f"{name} is {kept.get_slice(name).get_dtype()}, not {dtype}")
            return checked(part, kept.get_tensor(f"x{end}"), kept.get_tensor(f"y{end}"), kind)
    except (SafetensorError, OSError, MemoryError, UserError) as error:
        raise UserError(
            f"{file}: damaged ({first_line(error)}); run `fmoe data prepare` again"
        ) from None
