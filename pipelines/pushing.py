"""A verified model folder on the Hugging Face hub. Not run here against the hub itself."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmoe import model_folder
from fmoe.errors import UserError, first_line
from fmoe.locate import located
from fmoe.model_card import README
from fmoe.storage.folder import Folder

PREFIX = "hf:"
EXPECTED = "expected hf:ORG/NAME, such as hf:my-team/robust-digits"
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
LONGEST_NAME = 96
"""Of a repository, by the hub's own rules."""
INSTALL = "pip install 'fmoe[hub]', or huggingface-hub"


def repository(target: str) -> str:
    """ORG/NAME of `hf:ORG/NAME`. Raises `UserError`."""
    name = target.removeprefix(PREFIX)
    parts = re.fullmatch(f"{NAME}/{NAME}", name)
    forbidden = "--" in name or ".." in name or name.endswith(".git")
    if not target.startswith(PREFIX) or not parts or forbidden or len(name) > LONGEST_NAME:
        raise UserError(f"{target}: {EXPECTED}")
    return name


def library() -> Any:
    """Raises `UserError` where it is not installed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # as MLflow's is
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"push: needs huggingface-hub, which is not installed: {INSTALL}") from None
    return huggingface_hub


@contextmanager
def verified(model: str) -> Iterator[dict[str, Path]]:
    """The files that are sent, by name: copies that were loaded once, and a page written from them.

    Raises `UserError` for a model that is not whole.
    """
    with located(model) as folder, tempfile.TemporaryDirectory() as aside:
        copy = Folder.at(aside)
        for name in model_folder.FILES:
            try:
                copy.write(name, folder.read(name))
            except FileNotFoundError:
                raise UserError(f"{folder.uri}/{name}: missing") from None
        _, config, card = model_folder.load_model(copy)
        model_folder.write_readme(copy, card, config)
        yield {name: Path(aside) / name for name in (README, *model_folder.FILES)}


@dataclass(frozen=True)
class Hub:
    """The hub, with what this user may do there. The token is never shown."""

    huggingface: Any
    token: str

    @classmethod
    def reached(cls) -> Hub:
        """Raises `UserError` without the library or a token."""
        huggingface = library()
        token = huggingface.get_token()
        if not token:
            raise UserError("push: no token of the hub: `hf auth login`, or set HF_TOKEN")
        return cls(huggingface, token)

    def send(self, name: str, files: dict[str, Path], private: bool) -> None:
        """One commit; the repository is made where it is not there. Raises `UserError`."""
        api = self.huggingface.HfApi(token=self.token)
        try:
            api.create_repo(name, private=private or None, exist_ok=True)
            if private and not api.model_info(name).private:
                raise UserError(f"--private: {PREFIX}{name} is there already, and public")
            added = [
                self.huggingface.CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(path))
                for file, path in files.items()
            ]
            api.create_commit(name, operations=added, commit_message="fmoe push")
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - those of its HTTP library, which differs by version
            told = first_line(error).replace(self.token, "…")
            raise UserError(f"{PREFIX}{name}: not sent ({told})") from None


def address(name: str) -> str:
    return f"{library().HfApi().endpoint}/{name}"
