"""What a data set is: its name, its facts, and where its images come from.

One is a class (in `fmoe.data.sets`), of either of two kinds: `Embedded`, which a library brings
along, or `Published`, whose files are in a folder or can be downloaded.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fmoe.data.facts import Facts
from fmoe.data.readers import Arrays, Download, Hub, Kind, Layout, Part, parquet
from fmoe.errors import UserError
from fmoe.schema import Spec, faults


@dataclass(frozen=True)
class Info:
    """What is fixed about a data set.

    shape: [C,H,W]; classes: their names, label 0 first; mean, std: per channel, of pixels in [0,1];
    val_images: how many training images are kept for validation unless `data.val_images` says.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val_images: int


class _Known(Spec):
    name: str
    info: Info
    images: tuple[int, int] | None = None
    """How many there are published to train on, and to test."""

    @property
    def kind(self) -> Kind:
        """What the readers must know of it."""
        return Kind(self.name, self.info.shape, self.info.classes)

    @property
    def facts(self) -> Facts:
        """What its networks must know. Raises `UserError` for what no images have."""
        given = self.info
        try:
            return Facts(shape=given.shape, classes=given.classes, mean=given.mean, std=given.std)
        except ValidationError as error:
            raise UserError(f"data set {self.name}: {faults(error, vars(given))}") from None


class Embedded(_Known):
    """A data set that a library brings along: no folder is looked at, and nothing is kept."""

    origin: str
    """Where the images come from, for messages: `of scikit-learn`."""

    def read(self, part: Part) -> Arrays:
        """images uint8 [N,C,H,W] and labels, integers [N]."""
        raise NotImplementedError

    @property
    def folders(self) -> frozenset[str]:
        """Names of folders that are this data set's, whatever is in them."""
        return frozenset({self.name})


class Published(_Known):
    """A data set that is read from its published files."""

    hub: Hub | None = None
    """How the Hugging Face hub has it, if it does: read without any code of the data set's own."""
    original: str | None = None
    """The files that `originals` reads, as messages name them."""
    downloads: tuple[Download, ...] = ()
    """What `fmoe data prepare` fetches where no folder is given; none: it asks for a folder."""

    def originals(self, place: Path) -> list[Layout]:
        """The layouts of the published files that are in this folder, not counting the hub's.

        Raises `UserError` for what looks like them and cannot be read.
        """
        return []

    def layouts(self, place: Path) -> list[Layout]:
        hub = [] if self.hub is None else parquet.found(self.kind, self.hub, place)
        return [*hub, *self.originals(place)]

    @property
    def folders(self) -> frozenset[str]:
        """Names of folders that are this data set's, whatever is in them."""
        hub = () if self.hub is None else (self.hub.config, *self.hub.others)
        return frozenset({self.name, *hub})

    def layout(self, folder: Path, foreign: Collection[str] = ()) -> Layout:
        """Of the folder NAME in `folder`, or of `folder` itself unless it is another set's own.

        foreign: the names of other sets' folders; pictures of two sets may well have one size.
        Raises `UserError`.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such data folder")
        places = [folder / self.name]
        if not self._of_another(folder.resolve(), foreign):
            places.append(folder)
        for place in places:
            layouts = self.layouts(place)
            if len(layouts) > 1:
                both = " and ".join(layout.example for layout in layouts[:2])
                raise UserError(f"{place}: holds {self.name} twice, {both}; keep one of the two")
            if layouts:
                return layouts[0]
        raise UserError(f"{folder}: holds no {self.name}: expected {self._expected}")

    @property
    def _expected(self) -> str:
        hub = f"{self.name}/{{train,test}}-*.parquet as the Hugging Face hub has it"
        files = [hub] if self.hub else []
        return ", or ".join([*files, f"the published {self.original}"] if self.original else files)

    def _of_another(self, folder: Path, foreign: Collection[str]) -> bool:
        not_read = frozenset(self.hub.others if self.hub else ())
        others = (frozenset(foreign) - self.folders) | not_read
        inner = folder.name in ("data", "default", "raw") and folder.parent.name in others
        return inner or folder.name in others
