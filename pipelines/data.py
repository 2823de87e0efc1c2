"""`fmoe data`: data sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmoe.errors import UserError
from pipelines.display import Display
from pipelines.options import DataDir, Json
from pipelines.output import result, say

if TYPE_CHECKING:
    from fmoe.data import Before
    from fmoe.data.making import Made

app: typer.Typer = typer.Typer(help="Data sets.", no_args_is_help=True)
OWN = "Only with --name."


@app.callback()
def _group() -> None:
    """Data sets, by their names; one that is not known is answered with those there are."""


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="A data set, such as cifar10; or a path, with --name.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Make of SOURCE a data set that is called so.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help=f"Resize to N x N pixels, or HxW. {OWN}", metavar="N | HxW")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, max=3, help=f"1 (grey) or 3 (colour). {OWN}")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help=f"Of Parquet. {OWN}")] = None,
    label_column: Annotated[str | None, typer.Option(help=f"Of Parquet. {OWN}")] = None,
    mean: Annotated[
        str | None,
        typer.Option(help=f"A value a channel, in [0,1]; measured by default. {OWN}"),
    ] = None,
    std: Annotated[str | None, typer.Option(help=f"The same. {OWN}")] = None,
    to: Annotated[
        str | None, typer.Option(help="Folder or URI to keep it in, for --data-dir there.")
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Read or download a data set, check all of it, and keep it converted.

    With --name any labelled images become a data set of that name: a folder CLASS/* (cut by class
    into train, val and test) or {train,val,test}/CLASS/*, Parquet as Hugging Face lays it out,
    .npz, or the files that MNIST and CIFAR are published in. Pictures are read by the same rules as
    in `fmoe predict`; with --size they are resized (bilinear, antialiased), else all must have one
    size. A run that was interrupted goes on where it was.

    What was kept before is replaced only once the new files are read and checked, and the
    output says what it was.

    \b
    fmoe data prepare digits
    fmoe data prepare svhn                          # downloads it
    fmoe data prepare ~/flowers --name flowers --size 64 && fmoe data show flowers
    fmoe data prepare ~/flowers --name flowers --to s3://bucket/data
    fmoe data prepare cifar10 --data-dir ~/data     # from ~/data/cifar10, or ~/data itself:
      Hugging Face   {train,test}-00000-of-00001.parquet, {train,test}/0000.parquet,
                     cifar10-{train,test}.parquet; in the folder itself, plain_text/
                     (cropped_digits/ of SVHN), data/ or default/
      CIFAR-10       cifar-10-python.tar.gz, cifar-10-batches-py/, or the latter itself
      SVHN           {train,test}_32x32.mat
      MNIST          {train,t10k}-{images-idx3,labels-idx1}-ubyte, or .gz
    """
    options = {
        "size": size, "channels": channels, "image-column": image_column,
        "label-column": label_column, "mean": mean, "std": std,
    }  # fmt: skip
    with result(json) as answer:
        if name is None:
            _known(source, options, data_dir, to, answer, json)
            return
        from fmoe.data.making import make
        from fmoe.data.sources import Columns, Wanted

        if channels == 2:
            raise UserError("--channels 2: expected 1 (grey) or 3 (colour)")
        with Display() as display:
            bar = display.task(f"prepare {name}", 1)

            def progress(done: int, total: int) -> None:
                display.progress.update(bar, completed=done, total=total)

            made = make(
                source,
                name,
                data_dir,
                wanted=Wanted(_size(size), channels),
                columns=Columns(image_column, label_column),
                mean=_values("mean", mean),
                std=_values("std", std),
                to=to,
                progress=progress,
            )
        _tell(made, answer, json)


def _known(
    name: str,
    options: dict[str, Any],
    data_dir: str | None,
    to: str | None,
    answer: dict[str, Any],
    json: bool,
) -> None:
    """A data set of fmoe's, as it is published."""
    from fmoe import data
    from fmoe.data.sets import names

    if given := [option for option, value in options.items() if value is not None]:
        raise UserError(f"--{given[0]}: makes another data set of it; give it a --name")
    if name not in names() and Path(name).expanduser().exists():
        raise UserError(f"{name}: what shall the data set be called? Give --name")
    prepared = data.prepare(name, data_dir, to)
    train, before = len(prepared.train), prepared.before
    answer |= {
        "name": prepared.name,
        "train": train,
        "val": prepared.info.val_images if prepared.info.val_images < train else None,
        "test": len(prepared.test),
        "classes": list(prepared.info.classes),
        "shape": list(prepared.info.shape),
        "mean": list(prepared.info.mean),
        "std": list(prepared.info.std),
        "digest": prepared.digest,
        "replaced": None if before is None else asdict(before),
    }
    say(
        json,
        f"{prepared.name}: {train} training images, {len(prepared.test)} test images, "
        f"digest {prepared.digest[:16]}",
    )
    if answer["val"] is None:
        say(
            json,
            f"too few to cut the default {prepared.info.val_images} validation images: "
            "train with --set data.val_images=N",
        )
    if before is not None:
        say(json, f"replaced {_described(before)}")


def _tell(made: Made, answer: dict[str, Any], json: bool) -> None:
    from fmoe.data import own

    answer |= own.summary(made.own)
    facts, before = made.own.facts, made.before
    answer["val"] = answer["val"] or made.own.about.val_images
    answer["place"] = made.own.folder.uri
    answer["notes"] = list(made.notes)
    answer["replaced"] = None if before is None else own.summary(before)
    cut = "" if made.own.has("val") else " (cut out of train)"
    say(
        json,
        f"{made.own.name}: {answer['train']} training, {answer['val']} validation{cut} and "
        f"{answer['test']} test images of {'x'.join(map(str, facts.shape))}, {len(facts.classes)} "
        f"classes, digest {answer['digest'][:16]}",
        *(f"note: {note}" for note in made.notes),
    )
    if before is not None:
        counts = own.summary(before)
        say(
            json,
            f"replaced {counts['train']} training images, {counts['test']} test images, digest "
            f"{counts['digest'][:16]}",
        )


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 1 <= int(side) <= 1024 for side in sides):
        raise UserError(f"--size {text}: expected pixels, such as 64 or 48x64 (at most 1024)")
    return int(sides[0]), int(sides[-1])


def _values(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise UserError(
            f"--{option} {text}: expected a number a channel, such as 0.5,0.5,0.5"
        ) from None


def _described(before: Before) -> str:
    if before.digest is None:
        return "a file that could not be read"
    return f"{before.train} training images, {before.test} test images, digest {before.digest[:16]}"


@app.command("list")
def list_(data_dir: DataDir = None, json: Json = False) -> None:
    """Data sets that there are: fmoe's, and those made by `fmoe data prepare SOURCE --name NAME`.

    \b
    fmoe data list
    fmoe data list --data-dir s3://bucket/data
    """
    from fmoe.data import own
    from fmoe.data.listing import built_in

    with result(json) as answer:
        sets = [
            *built_in(data_dir),
            *({**own.summary(one), "place": one.folder.uri} for one in own.listed(data_dir)),
        ]
        answer |= {"data": sets}
        for one in sets:
            counts = "/".join(str(one[part] or "-") for part in own.PART_NAMES)
            sides, classes = "x".join(map(str, one["shape"])), len(one["classes"])
            say(
                json,
                f"{one['name']:16} {sides:>11}  {classes:4} classes  {counts:>18}  "
                f"{one['place'] or 'not here'}",
            )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Of a data set.")],
    to: Annotated[
        Path | None, typer.Option(help="Where to write the sheet of images (PNG).")
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Images of each class, counted and shown: a sheet of the first ones as PNG.

    \b
    fmoe data show flowers
    fmoe data show cifar10 --data-dir ~/data --to cifar10.png
    """
    from fmoe.data.listing import shown
    from fmoe.plots.data import sheet
    from fmoe.storage.folder import Folder

    with result(json) as answer:
        about, train = shown(name, data_dir)
        target = (to or Path(f"{name}.png")).resolve()
        if to is None and target.exists():
            raise UserError(f"{target}: is there already; name it by --to to replace it")
        try:
            Folder.at(target.parent).write(target.name, sheet(train, about["classes"]))
        except OSError as error:
            raise UserError(f"--to {target}: cannot be written ({error.strerror})") from None
        answer |= {**about, "sheet": str(target)}
        say(json, f"{'class':24} " + " ".join(f"{part:>8}" for part in about["per_class"]))
        for label, class_name in enumerate(about["classes"]):
            counts = " ".join(f"{counts[label]:8}" for counts in about["per_class"].values())
            say(json, f"{class_name[:24]:24} {counts}")
        say(json, f"{target}: the first images of each class")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("data", app)
