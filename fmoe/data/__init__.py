"""Data sets as uint8 tensors: which there are, how their files are read, splits and batches."""

from fmoe.data.kinds import Info
from fmoe.data.preparing import Before, Prepared, prepare
from fmoe.data.reading import check, load, load_training, origin, prepared_path, read
from fmoe.data.sets import Name, facts, info, known
from fmoe.data.splits import Data, Split, TrainingData, cut, digest, split

__all__ = [
    "Before",
    "Data",
    "Info",
    "Name",
    "Prepared",
    "Split",
    "TrainingData",
    "check",
    "cut",
    "digest",
    "facts",
    "info",
    "known",
    "load",
    "load_training",
    "origin",
    "prepare",
    "prepared_path",
    "read",
    "split",
]
