"""MODEL as users write it: a model folder, a run folder, or a registry URI."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmoe import model_card, model_folder
from fmoe.errors import UserError
from fmoe.models.mixture import Mixture
from fmoe.storage.folder import Folder, sha256


def fixed(model: str) -> str:
    """MODEL with the version's number in place of an alias, which may move."""
    if not model.startswith("models:/"):
        return model
    from fmoe import tracking

    version = tracking.find_version(model)
    return f"models:/{version.name}/{version.number}"


@contextmanager
def located(model: str) -> Iterator[Folder]:
    """The model folder, for as long as the block runs. Raises `UserError` where there is none."""
    if model.startswith("models:"):
        with tempfile.TemporaryDirectory() as aside:
            target = Path(aside) / "model"
            pull(model, target)
            yield Folder.at(target)
        return
    folder = Folder.at(model).reach()
    if folder.local is not None and not folder.local.exists():
        raise UserError(f"{model}: no such folder")
    if folder.local is not None and not folder.local.is_dir():
        raise UserError(f"{model}: is a file; expected a model folder or a run folder")
    yield folder if folder.exists("model.json") else _inside_run(folder, model)


def _inside_run(folder: Folder, model: str) -> Folder:
    inside = folder / "model"
    if inside.exists("model.json"):
        return inside
    unfinished = folder.exists("config.yaml")
    why = "its run has not finished" if unfinished else "expected a model folder or a run folder"
    raise UserError(f"{model}: holds no model: {why}")


def load_model(model: str, *, device: str = "cpu") -> Mixture:
    """See `fmoe.load`."""
    with located(model) as folder:
        return model_folder.load_model(folder)[0].to(device)


@dataclass(frozen=True)
class Pulled:
    path: Path
    version: int
    digest: str


def pull(uri: str, target: Path) -> Pulled:
    """A registered version's model folder, verified, at `target`: whole or not at all.

    Its `README.md` is written here, from what was verified: what stands in the registry may be
    anybody's. A model folder that is there already is replaced. Raises `UserError` for a digest
    that is not the registry's, and for a target that holds something else.
    """
    from fmoe import tracking

    if not uri.startswith("models:/"):
        raise UserError(f"{uri}: pull takes a registry URI such as models:/fmoe-digits@candidate")
    target = checked_target(target)
    version = tracking.find_version(uri)
    with replacing(target) as fresh:
        tracking.download(version, fresh)
        _, config, card = model_folder.load_model(Folder.at(fresh))
        if card["sha256"] != version.digest:
            raise UserError(
                f"{uri}: the weights are not those that were registered (sha256 differs)"
            )
        if version.card not in (None, sha256((fresh / "model.json").read_bytes())):
            raise UserError(f"{uri}: its model.json is not what was registered (sha256 differs)")
        model_folder.write_readme(Folder.at(fresh), card, config)
    return Pulled(target, version.number, card["sha256"])


def checked_target(target: Path) -> Path:
    """The whole path. Raises `UserError` where something else than a model folder would be lost."""
    target = target.resolve()
    if target == Path.cwd():
        raise UserError(f"{target}: is the working directory; give a folder in it as --to")
    if target.exists() and not _replaceable(target):
        raise UserError(f"{target}: is there already and is no model folder; give another --to")
    return target


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder that becomes the model folder `target` at the end of the block; a block that
    fails leaves what was there.

    Raises `UserError` as `checked_target` does, and where nothing can be written.
    """
    target = checked_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    try:
        fresh, old = aside / "model", aside / "old"
        fresh.mkdir()
        yield fresh
        try:
            if target.exists():
                target.rename(old)
            fresh.rename(target)
        except BaseException:  # Ctrl-C, too, must not cost the model that was there
            if old.exists() and not target.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """An empty folder, or one that holds a model and nothing else."""
    ours = {*model_folder.FILES, model_card.README}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= ours
