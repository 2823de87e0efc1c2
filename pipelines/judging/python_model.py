"""`python:package.module:callable`: somebody's own classifier, made by their own code.

The callable (a function, or a class) gives a `torch.nn.Module` from float images [B,C,H,W] in [0,1]
to logits [B,K], with normalisation inside. It is called in this process and again in each worker,
which gets this one's tensors. Code comes from the working directory and from what is installed:
never from a registry.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fmoe.errors import UserError, first_line

PREFIX = "python:"
OURS = ("fmoe", "pipelines", "tune_spaces")
EXPECTED = "expected python:package.module:callable"


@dataclass(frozen=True)
class PythonModel:
    """A `fmoe.evaluation.Subject`. folder: where the command was started, of which code is read."""

    module: str
    name: str
    folder: str

    @classmethod
    def named(cls, model: str) -> PythonModel:
        """Raises `UserError` for what is no such name."""
        module, colon, name = model.removeprefix(PREFIX).partition(":")
        parts = [*module.split("."), *name.split(".")]
        if not colon or not all(part.isidentifier() for part in parts):
            raise UserError(f"{model}: {EXPECTED}")
        if parts[0] in OURS:
            raise UserError(f"{model}: {parts[0]} is a package of fmoe's: rename yours")
        return cls(module, name, str(Path.cwd()))

    def __str__(self) -> str:
        return f"{PREFIX}{self.module}:{self.name}"

    def build(self) -> nn.Module:
        """In eval mode. Raises `UserError` where the code is missing, fails, or gives no module."""
        if self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        try:
            found = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
            model = found() if callable(found) and not isinstance(found, nn.Module) else found
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self}: {first_line(error)} (looked for in {self.folder} and what is installed)"
            ) from None
        except AttributeError as error:
            raise UserError(f"{self}: {first_line(error)}") from None
        except (Exception, SystemExit) as error:
            raise UserError(f"{self}: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"{self}: gives a {type(model).__name__}; expected a torch.nn.Module")
        model.eval()
        return model


def weights_digest(model: nn.Module) -> str:
    """sha256 of the module's tensors, by name. Raises `UserError` for what has no values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            try:
                whole = tensor.detach().cpu().to_dense().contiguous()
            except (RuntimeError, ValueError, NotImplementedError) as error:
                raise UserError(f"model: {name} has no values ({first_line(error)})") from None
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def code_digest(model: nn.Module) -> str:
    """sha256 of the files in which the module and its parts are defined."""
    files = set()
    for part in model.modules():
        try:
            files.add(inspect.getfile(type(part)))
        except (TypeError, OSError):
            continue
    digest = hashlib.sha256()
    for file in sorted(files):
        path = Path(file)
        digest.update(path.read_bytes() if path.is_file() else file.encode())
    return digest.hexdigest()
