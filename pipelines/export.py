"""`fmoe export`: a trained model as a program that needs no fmoe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmoe.errors import UserError
from pipelines.options import Json
from pipelines.output import result, say


def export(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or registry URI.")],
    to: Annotated[Path, typer.Option(help="The file; it is replaced where it is one already.")],
    form: Annotated[
        str, typer.Option("--format", metavar="pt2|onnx", help="By default from --to's suffix.")
    ] = "",
    gate_weights: Annotated[
        bool, typer.Option("--gate-weights", help="The gate's weights [B,E] as a second output.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a model as one file that PyTorch (pt2) or any ONNX runtime runs without fmoe.

    It takes float images [B,C,H,W] in [0,1], as many as there are, and gives log-probabilities
    [B,K]. Classes, shape and the model's digest are in the file. It is run once and compared with
    the model. ONNX needs `pip install 'fmoe[onnx]'`.

    \b
    fmoe export models:/fmoe-cifar10@champion --format onnx --to cifar10.onnx
    fmoe export model --format pt2 --to model.pt2 --gate-weights
    """
    from fmoe.programs import Format

    chosen = form or to.suffix.removeprefix(".")
    if chosen not in list(Format):
        raise UserError(
            f"--format {chosen}: expected one of {', '.join(Format)}"
            if form
            else f"--to {to}: no suffix that says the format; give --format {' or '.join(Format)}"
        )
    if to.exists() and (not to.is_file() or to.suffix != f".{chosen}"):
        raise UserError(f"--to {to}: is there already and is no .{chosen} file; give another name")
    from pipelines.exporting import exported

    with result(json) as answer:
        answer |= exported(model, Format(chosen), to, gate_weights)
    say(
        json,
        f"file   {answer['path']}  ({answer['bytes']:,} bytes)",
        f"sha256 {answer['digest']}",
        f"takes  images {list(answer['input_shape'])} a batch, float in [0,1]",
        f"gives  {', '.join(answer['outputs'])}; at most {answer['largest_difference']:.1e} from "
        "the model's",
    )


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("export", export)
