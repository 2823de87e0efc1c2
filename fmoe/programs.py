"""A trained model as a program that needs no fmoe: PyTorch's pt2, or ONNX for other runtimes.

A program takes float images [B,C,H,W] in [0,1], any number of them, and gives log-probabilities
[B,K]; with gate weights [B,E] beside them where that is asked for. What an application must know
to use it (classes, shape, which model it was) is in the file itself.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from fmoe.errors import UserError
from fmoe.models.mixture import Mixture

INPUT, OUTPUTS = "images", ("log_probabilities", "gate_weights")
ABOUT = "fmoe.json"
"""The file of a pt2 archive, and the prefix of ONNX's properties, that say what it is."""
TOLERANCE = 1e-4
"""Between a program's log-probabilities and the model's."""
COUNTS = (1, 2, 5)
"""Of images on which they are compared: a program that was made of one batch must take others."""


class Format(StrEnum):
    PT2 = "pt2"
    ONNX = "onnx"


class Answer(nn.Module):
    """Log-probabilities, and the gate's weights beside them."""

    def __init__(self, network: Mixture):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images), self.network.gate_weights(images)


def write(
    network: Mixture,
    shape: tuple[int, ...],
    about: Mapping[str, Any],
    kind: Format,
    path: Path,
    *,
    gate_weights: bool = False,
) -> float:
    """Writes the program of a model in eval mode on the CPU; gives how far its answers are from
    the model's at most.

    shape: of an image [C,H,W]; about: what the file says of it, JSON-like values.
    Raises `UserError` where a library is missing, or where the program answers otherwise.
    """
    asked: nn.Module = Answer(network) if gate_weights else network
    with quiet():
        match kind:
            case Format.PT2:
                made = exported(asked, shape)
                torch.export.save(made, path, extra_files={ABOUT: json.dumps(about)})
            case Format.ONNX:
                _write_onnx(asked, shape, about, path, OUTPUTS[: 1 + gate_weights])
            case _:
                assert_never(kind)
        difference = furthest(asked, kind, path, shape)
    if difference > TOLERANCE:
        raise UserError(f"{path}: its answers differ from the model's by {difference:.1e}")
    return difference


def exported(network: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """For any number of images."""
    example, batch = torch.zeros(2, *shape), torch.export.Dim("batch", min=1)
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},))


def _write_onnx(
    network: nn.Module,
    shape: tuple[int, ...],
    about: Mapping[str, Any],
    path: Path,
    outputs: tuple[str, ...],
) -> None:
    check_onnx()
    made = torch.onnx.export(
        network,
        (torch.zeros(2, *shape),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=[INPUT],
        output_names=list(outputs),
        verbose=False,
    )
    assert made is not None
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value)
        made.model.metadata_props[f"fmoe.{key}"] = text
    made.save(path)


def check_onnx() -> None:
    """Raises `UserError` where a package that ONNX asks for is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx: {error.name} is not installed: pip install 'fmoe[onnx]'"
        ) from None


def furthest(network: nn.Module, kind: Format, path: Path, shape: tuple[int, ...]) -> float:
    """The largest difference of any answer on images of noise, some at a time."""
    run = _loaded(kind, path)
    generator = torch.Generator().manual_seed(0)
    differences = [0.0]
    for count in COUNTS:
        images = torch.rand(count, *shape, generator=generator)
        with torch.no_grad():
            wanted = network(images)
            given = run(images)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        differences += [float((a - b).abs().max()) for a, b in zip(given, wanted, strict=True)]
    return max(differences)


def _loaded(kind: Format, path: Path) -> Any:
    """The program that was just written, as who uses it would run it."""
    if kind is Format.PT2:
        program = torch.export.load(path).module()

        def by_torch(images: Tensor) -> tuple[Tensor, ...]:
            given = program(images)
            return given if isinstance(given, tuple) else (given,)

        return by_torch
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def by_onnxruntime(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {INPUT: images.numpy()})))

    return by_onnxruntime


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say to those who develop them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
