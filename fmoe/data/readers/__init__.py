"""Published files of a data set, each to the arrays (images, labels) of train or of test.

images: uint8 [N,C,H,W]; labels: integers [N]. Every reader finds its layout in a folder, checks
types, shapes and ranges, and raises `UserError` with the file's name. Who reads train does not
open test, and the other way round. No reader knows a data set by its name: what differs between
two is what `fmoe.data.sets` gives it.
"""

from __future__ import annotations

from fmoe.data.readers import cifar, idx, parquet, svhn_mat
from fmoe.data.readers.arrays import PARTS, Arrays, Kind, Part, checked
from fmoe.data.readers.aside import remove_left
from fmoe.data.readers.download import Download, downloaded
from fmoe.data.readers.layout import Layout
from fmoe.data.readers.prepared import read_prepared, write_prepared
from fmoe.data.readers.shards import Hub

__all__ = [
    "PARTS",
    "Arrays",
    "Download",
    "Hub",
    "Kind",
    "Layout",
    "Part",
    "checked",
    "cifar",
    "downloaded",
    "idx",
    "parquet",
    "read_prepared",
    "remove_left",
    "svhn_mat",
    "write_prepared",
]
