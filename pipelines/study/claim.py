"""A study's name, folder and MLflow run: new, or found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmoe import config, provenance
from fmoe.data import Images, TrainingData
from fmoe.errors import UserError
from fmoe.on_ray.session import driven_by
from fmoe.on_ray.tuning.share import Share
from fmoe.storage.folder import Damaged, Folder
from fmoe.tracking import Tracker, tags
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Ledger, Trial, elapsed
from pipelines import origin
from pipelines.display import Display
from pipelines.kept_files import StudyFile, StudyResult, read
from pipelines.republish import kept
from pipelines.study import story


def fingerprint(space: Space, workers: int) -> str:
    """Of everything but the budget: a study may be given more trials."""
    study = space.study.model_dump(mode="json", exclude={"budget", "recipe", "set"})
    return config.fingerprint({"study": study, "base": space.base.deciding(), "workers": workers})


def claim(folder: Folder, space: Space, identity: str, name: str, resume: bool) -> dict[str, Any]:
    """The study's file, new or found; with `result` where there is nothing left to do."""
    try:
        if not folder.exists("study.json"):
            if resume:
                raise UserError(f"--resume: there is no study {name} in {folder.uri}")
            known = {
                "name": name,
                "identity": identity,
                "file": space.source,
                "space": space.study.model_dump(mode="json"),
                "base": space.base.plain(),
            }
            folder.write_json("study.json", known)
            if folder.local is not None:
                folder.local.chmod(0o700)  # what a resume goes by
            return known
        known = read(folder, "study.json", StudyFile)
        trials = Ledger(folder).trials()
        ended = sum(trial.status != "running" for trial in trials)
        if known.get("identity") != identity:
            raise UserError(f"{folder.uri}: is a study of other settings; give another --name")
        if not resume:
            raise UserError(
                f"study {name} is there with {ended} of {space.study.budget.trials} trials: "
                "--resume goes on with it, --name starts another"
            )
        if folder.exists("result.json") and (ended >= space.most or timed_out(space, trials)):
            return {**known, "result": read(folder, "result.json", StudyResult)}
    except Damaged as error:
        raise UserError(str(error)) from None
    return known


def timed_out(space: Space, trials: Sequence[Trial]) -> bool:
    minutes = space.study.budget.minutes
    return minutes is not None and elapsed(trials) >= minutes * 60


def start_tracking(
    folder: Folder,
    space: Space,
    name: str,
    loaded: TrainingData[Images],
    share: Share,
    run_id: str | None,
    command: str,
) -> tuple[Tracker, dict[str, str]]:
    """The study's run, new or found again, and the texts to log where it is new. command: what
    began it."""
    study, revision = space.study, provenance.git_revision()
    params = {
        "recipe": study.recipe,
        "metrics": str(study.metrics),
        "budget.trials": str(study.budget.trials),
        "budget.minutes": str(study.budget.minutes),
        "scheduler": study.scheduler.model_dump_json(),
        "searcher": study.searcher.model_dump_json(),
        "workers_per_trial": str(share.workers),
        **{f"space.{path}": str(value) for path, value in study.space.items()},
    }
    labels = {
        tags.KIND: "study",
        tags.STUDY: name,
        tags.RECIPE: study.recipe,
        tags.DATA: loaded.name,
        tags.TRAIN_DIGEST: loaded.train_digest,
        tags.REVISION: revision,
        **origin.labels(f"fmoe tune {space.source}", revision),
        **tags.ours(provenance.hardware()),
        **tags.ours(driven_by()),
    }
    tracker = Tracker.start(name, params, labels, run_id)
    tracker.describe(story.begun(space, name, command))
    tracker.log_data(loaded)
    texts = {
        "space.yaml": space.text,
        "base.yaml": space.base.to_yaml(),
        "environment.txt": provenance.packages(),
    }
    return tracker, {} if run_id == tracker.run_id else texts


def winner(folder: Folder) -> Folder:
    """The folder of a finished study's best trial."""
    return Ledger(folder).trial_folder(read(folder, "result.json", StudyResult)["best"]["trial"])


def still_registered(folder: Folder, result: dict[str, Any]) -> dict[str, Any]:
    """A study's result where it is now, with the best model registered again where MLflow has lost
    it."""
    best, name = result["best"], f"{result['study']}-{result['best']['trial']:04d}"
    known = best["model_uri"], best["run_id"]
    trial = Ledger(folder).trial_folder(best["trial"])
    with Display() as display:
        uri, run_id = kept(trial, name, known[0], best["digest"], known[1], display.line)
    answer = {
        **result,
        "study_dir": folder.uri,
        "best": {**best, "model_uri": uri, "run_id": run_id},
    }
    if (uri, run_id) != known:
        folder.write_json("result.json", answer)
    return answer
