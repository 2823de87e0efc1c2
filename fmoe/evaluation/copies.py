"""Copies of a model that share nothing with it: what one is asked the other has not seen."""

from __future__ import annotations

import copy
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn


class NotCopied(Exception):
    """The model cannot be copied; the message says why."""


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, with what functions among its attributes enclose. What it keeps in its class or
    in a global stays shared. Raises `NotCopied`."""
    memo: dict[int, Any] = {}
    try:
        with torch.no_grad():  # a scripted module's copy would be a step of a gradient's graph
            other = copy.deepcopy(model, memo)
        for module in other.modules():
            for name, value in vars(module).items():
                if isinstance(value, FunctionType) and value.__closure__:
                    vars(module)[name] = _with_own_cells(value, memo)
    except Exception as error:
        raise NotCopied(type(error).__name__) from error
    if other is model:
        raise NotCopied("its copy is itself")
    return other


def _with_own_cells(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The function with copies of what it encloses."""
    assert function.__closure__ is not None
    cells = tuple(
        CellType(copy.deepcopy(cell.cell_contents, memo)) for cell in function.__closure__
    )
    other = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    other.__kwdefaults__ = function.__kwdefaults__
    return other
