"""Data sets as uint8 tensors: which there are, how their files are read, splits and batches."""

from fmoe.data.kinds import Info
from fmoe.data.preparing import Before, Prepared, prepare
from fmoe.data.reading import (
    check,
    check_there,
    find,
    load,
    load_training,
    origin,
    prepared_path,
    read,
)
from fmoe.data.sets import info
from fmoe.data.splits import Data, Images, Split, TrainingData, digest

__all__ = [
    "Before",
    "Data",
    "Images",
    "Info",
    "Prepared",
    "Split",
    "TrainingData",
    "check",
    "check_there",
    "digest",
    "find",
    "info",
    "load",
    "load_training",
    "origin",
    "prepare",
    "prepared_path",
    "read",
]
