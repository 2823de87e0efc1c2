"""A run's name, folder, data and MLflow run: new, or found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fmoe import provenance
from fmoe.config import HOW, Config
from fmoe.data import Data, Images
from fmoe.errors import UserError, first_line
from fmoe.on_ray.session import driven_by
from fmoe.storage.folder import Folder
from fmoe.storage.lease import Held, exclusive
from fmoe.tracking import Tracker, tags
from pipelines import origin
from pipelines.data_claim import check_images, claim_data, load, reading
from pipelines.display import Display
from pipelines.kept_files import RunFile, RunResult, read, read_settings
from pipelines.republish import kept
from pipelines.training import story


def checked(name: str) -> str:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name[0] in ".-":
        raise UserError(f"--name {name}: letters, digits, '-', '_' and '.' only")
    return name


@contextmanager
def only_one(folder: Folder) -> Iterator[None]:
    """Two drivers on one run would overwrite each other's epochs."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder, "driver", wait=False))
        except Held:
            raise UserError(f"{folder.uri}: another process is training this run") from None
        except OSError as error:
            raise UserError(
                f"--storage {folder.uri}: cannot be written ({first_line(error)})"
            ) from None
        yield


def claim_with_data(
    folder: Folder, settings: Config, data_dir: str | Path | None, copies: Folder
) -> tuple[Data[Images], dict[str, Any] | None]:
    """Makes the run folder this configuration's and these data's; gives the data, and the result
    of a run that is finished. copies: of data that are streamed and not in files yet."""
    new = not folder.exists("config.yaml")
    finished = None if new else claim(folder, settings)
    with reading(folder, finished is not None):
        check_images(settings, data_dir)
        loaded = load(settings, data_dir, copies, test=True)
        assert isinstance(loaded, Data)
    if new:  # nothing is written for data that are not there
        claim(folder, settings)
    claim_data(folder, loaded, data_dir)
    return loaded, finished


def claim(folder: Folder, settings: Config) -> dict[str, Any] | None:
    """Makes the run folder this configuration's; gives the result of a run that is finished."""
    if not folder.exists("config.yaml"):
        folder.write("config.yaml", settings.to_yaml().encode())
    elif {k: v for k, v in read_settings(folder).items() if k not in HOW} != settings.deciding():
        raise UserError(f"{folder.uri}: is a run of other settings; give another --name")
    if not folder.exists("result.json"):
        return None
    return {
        **read(folder, "result.json", RunResult),
        "run_dir": folder.uri,
    }  # it may have been moved


def still_registered(
    folder: Folder, name: str, finished: dict[str, Any], display: Display
) -> dict[str, Any]:
    """A result, with the model registered again where MLflow has lost it."""
    known = finished["model_uri"], finished["run_id"]
    uri, run_id = kept(folder, name, known[0], finished["digest"], known[1], display.line)
    answer = {**finished, "model_uri": uri, "run_id": run_id}
    if (uri, run_id) != known:
        folder.write_json("result.json", answer)
    return answer


def start_tracking(
    folder: Folder, settings: Config, recipe: str, name: str, loaded: Data[Images], command: str
) -> tuple[Tracker, dict[str, str]]:
    """The run, new or found again, and the texts to log where it is new. command: what began it."""
    known = read(folder, "run.json", RunFile) if folder.exists("run.json") else {}
    revision = provenance.git_revision()
    labels = {
        tags.RECIPE: recipe,
        tags.DATA: loaded.name,
        tags.DATA_DIGEST: loaded.digest,
        tags.REVISION: revision,
        **origin.labels(f"fmoe train {recipe}", revision),
        **tags.ours(provenance.hardware()),
        **tags.ours(driven_by()),
    }
    tracker = Tracker.start(name, settings.flat(), labels, known.get("run_id"))
    tracker.describe(story.begun(settings, recipe, loaded, command))
    tracker.log_data(loaded)
    if known.get("run_id") == tracker.run_id:
        return tracker, {}
    folder.write_json("run.json", {"name": name, "recipe": recipe, "run_id": tracker.run_id})
    texts = {"environment.txt": provenance.packages(), "config.yaml": settings.to_yaml()}
    return tracker, texts
