"""Runs: params, metrics, what they tell, artifacts, the status they end with.

A server that goes away in the middle of a run costs nothing: what could not be logged is kept and
logged when it is back.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunData, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from torch import nn

from fmoe.data import Images, TrainingData
from fmoe.errors import UserError, first_line
from fmoe.model_card import README
from fmoe.model_folder import FILES
from fmoe.storage.folder import sha256
from fmoe.tracking import curves, datasets, experiments, flavor, notes, registry
from fmoe.tracking.boards import Board
from fmoe.tracking.curves import Curves
from fmoe.tracking.monitoring import SYSTEM
from fmoe.tracking.registry import CANDIDATE
from fmoe.tracking.store import client, selected, shown, store_errors, writing
from fmoe.tracking.tags import CARD_DIGEST, DRIVER, NOTE

PARAMS_AT_ONCE = 100
WAIT_AT_THE_END = 600.0  # seconds, for a server that went away
FIRST = ("val_robust", "val_clean", "train_loss", "train_accuracy", "lr")
"""Of a step's metrics: MLflow's pages list them in the order in which they came."""
CURVES_EVERY = 60.0  # seconds between two versions of the experts' curves
REFUSALS = ("INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "BAD_REQUEST")
"""What a server says of that which it will never take, an older one of what it does not know."""


@dataclass
class Tracker:
    """One MLflow run. What could not be logged waits: metrics in `pending`, all else in `owed`, by
    what it is, the newest alone.

    note: why it is a new one though another was asked for; board: where metrics go, too; curves: of
    single experts, None until they are asked for.
    """

    store: MlflowClient
    run_id: str
    note: str | None = None
    board: Board | None = None
    logged: set[tuple[str, int]] = field(default_factory=set)
    pending: list[Metric] = field(default_factory=list)
    owed: dict[str, Callable[[], object]] = field(default_factory=dict)
    found_again: bool = False
    curves: Curves | None = None
    curves_sent: float = 0.0

    @classmethod
    def start(
        cls, name: str, params: Mapping[str, str], tags: Mapping[str, str], run_id: str | None
    ) -> Tracker:
        """A new run, or the given one again if it is there. Raises `UserError` where the store is
        away."""
        store = writing()
        note = gone(store, run_id) if run_id else None
        with store_errors():
            if run_id is None or note:
                experiment = experiments.current(store).experiment_id
                # tags in the same call: killed before them, nobody would find the run again
                run = store.create_run(experiment, tags=dict(tags), run_name=name)
            else:
                store.update_run(run_id, "RUNNING")
                store.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
                run = store.get_run(run_id)
            told = note and f"{note}: this is a new one"
            again = run_id == run.info.run_id
            tracker = cls(store, run.info.run_id, told, Board.of(name), found_again=again)
            try:
                tracker._complete(params, run.data)
            except BaseException:
                tracker.finish("FAILED")
                raise
        return tracker

    def _complete(self, params: Mapping[str, str], known: RunData) -> None:
        """Logs the params that the run lacks, remembers the metrics that it has."""
        lacking = [Param(key, params[key][:6000]) for key in params if key not in known.params]
        for start in range(0, len(lacking), PARAMS_AT_ONCE):
            self.store.log_batch(self.run_id, params=lacking[start : start + PARAMS_AT_ONCE])
        for key in known.metrics:
            if key.startswith(SYSTEM):  # many, and not ours to log
                continue
            history = self.store.get_metric_history(self.run_id, key)
            self.logged |= {(key, metric.step) for metric in history}

    def child(self, tags: Mapping[str, str]) -> str | None:
        """The id of this run's child that has these tags. Raises `UserError`."""
        children = self._children(*(f"tags.`{key}` = '{value}'" for key, value in tags.items()))
        return children[0] if children else None

    def ended_children(self) -> set[str]:
        """Ids of this run's children that are there and not running. Raises `UserError`."""
        return set(self._children("attributes.status != 'RUNNING'"))

    def _children(self, *conditions: str) -> list[str]:
        condition = " and ".join([f"tags.`mlflow.parentRunId` = '{self.run_id}'", *conditions])
        with store_errors():
            own = self.store.get_run(self.run_id).info.experiment_id
            # children of an earlier try, and those of this one where another experiment is named
            both = sorted({own, experiments.current(self.store).experiment_id})
            runs = self.store.search_runs(both, condition, max_results=50_000)
        return [run.info.run_id for run in runs]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of an epoch; each (name, step) is logged once, however often it is reported."""
        told = self._new(metrics, step)
        self.pending += told
        if self.board:
            self.board.log(told)
        self.flush()

    def _new(self, metrics: Mapping[str, float], step: int) -> list[Metric]:
        now = int(time.time() * 1000)
        ranked = [*FIRST, *(name for name in metrics if name not in FIRST)]
        new = [name for name in ranked if name in metrics and (name, step) not in self.logged]
        self.logged |= {(name, step) for name in new}
        return [Metric(name, float(metrics[name]), now, step) for name in new]

    def log_expert(self, expert: str, metrics: Mapping[str, float], epoch: int) -> None:
        """Of one that is trained apart: in the artifact of their curves, and on the board."""
        known = self._curves()
        if not known.add(expert, metrics, epoch):
            return
        if self.board:
            named = {f"expert/{expert}/{name}": value for name, value in metrics.items()}
            self.board.log(self._new(named, epoch))
        self.owed[curves.FILE] = self._send_curves
        if time.monotonic() - self.curves_sent > CURVES_EVERY:
            self.flush()

    def told_experts(self, about: Mapping[str, Mapping[str, Any]]) -> Curves:
        """All of them are trained; about: how each came to be."""
        known = self._curves()
        known.about = {expert: dict(told) for expert, told in about.items()}
        self.owed[curves.FILE] = self._send_curves
        self.flush()
        return known

    def _curves(self) -> Curves:
        if self.curves is None:
            self.curves = self._kept_curves() if self.found_again else Curves()
        return self.curves

    def _kept_curves(self) -> Curves:
        """Those that an earlier try has logged."""
        with tempfile.TemporaryDirectory() as aside:
            try:
                path = Path(self.store.download_artifacts(self.run_id, curves.FILE, aside))
                size = path.stat().st_size
                return Curves.read(path.read_bytes()) if size < curves.LARGEST else Curves()
            except Exception:  # noqa: BLE001 - none yet, or stores of files have errors of their own
                return Curves()

    def _send_curves(self) -> None:
        assert self.curves is not None
        self.curves_sent = time.monotonic()
        try:
            self.store.log_dict(self.run_id, self.curves.to_json(), curves.FILE)
        except Exception as error:
            raise OSError(first_line(error)) from error

    def flush(self) -> bool:
        """Sends what is pending and owed; False where the server is away."""
        while self.pending:
            part = self.pending[:500]
            try:
                self.store.log_batch(self.run_id, metrics=part)
            except (MlflowException, OSError):
                return False
            self.pending = self.pending[len(part) :]
        for what, send in list(self.owed.items()):
            try:
                send()
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    return False
            except OSError:
                return False
            if self.owed.get(what) is send:
                del self.owed[what]
        return True

    def settle(self) -> None:
        """Waits for a server that is away. Raises `UserError` when it does not come back."""
        deadline, pause = time.monotonic() + WAIT_AT_THE_END, 1.0
        while not self._reachable():
            if time.monotonic() > deadline:
                raise UserError(
                    f"MLflow store {shown()} did not come back: give the same command again "
                    "when it is there; nothing is trained twice"
                )
            time.sleep(pause)
            pause = min(pause * 2, 15.0)

    def _reachable(self) -> bool:
        try:
            self.store.get_run(self.run_id)
        except (MlflowException, OSError):
            return False
        return self.flush()

    def tag(self, key: str, value: str) -> None:
        self._owe(key, lambda: self.store.set_tag(self.run_id, key, value[:5000]))

    def describe(self, text: str) -> None:
        """The run's description, in Markdown. What somebody else wrote there stays."""

        def send() -> None:
            if notes.replaceable(self.store.get_run(self.run_id).data.tags.get(NOTE)):
                self.store.set_tag(self.run_id, NOTE, notes.ours(text))

        self._owe(NOTE, send)

    def log_data(self, data: TrainingData[Images]) -> None:
        """As the run's datasets; those that it has stay one each."""
        parts = datasets.inputs(data)
        self._owe("datasets", lambda: self.store.log_inputs(self.run_id, parts))

    def _owe(self, what: str, send: Callable[[], object]) -> None:
        self.owed[what] = send
        self.flush()

    @property
    def page(self) -> str:
        """Where it is looked at. Raises `UserError`."""
        with store_errors():
            return experiments.page(self.store, self.run_id)

    @store_errors()
    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Raises `UserError`, as the others that write files do."""
        for name, figure in figures.items():
            self.store.log_figure(self.run_id, figure, f"plots/{name}.png")

    @store_errors()
    def log_folder(self, folder: Path, name: str) -> None:
        self.store.log_artifacts(self.run_id, str(folder), name)

    @store_errors()
    def log_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.store.log_dict(self.run_id, dict(value), name)

    @store_errors()
    def log_texts(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self.store.log_text(self.run_id, text, name)

    @store_errors()
    def register(
        self,
        model: nn.Module,
        folder: Path,
        name: str,
        shape: tuple[int, ...],
        tags: Mapping[str, str],
    ) -> int:
        """Logs the model (see `fmoe.tracking.flavor`) and moves the alias `candidate`.

        folder: the model's; its `README.md` goes along to be looked at.
        """
        files = [folder / file for file in (*FILES, README)]
        with (
            selected(),
            mlflow.start_run(run_id=self.run_id),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),  # MLflow says that it has registered it
        ):
            # torch.export says so of buffers that share memory; the weights are on the CPU
            warnings.filterwarnings("ignore", message="No complete tensor found")
            info = Model.log(
                artifact_path=None,
                name="model",
                flavor=flavor,
                registered_model_name=name,
                network=model,
                files=[file for file in files if file.exists()],
                shape=shape,
            )
        version = int(info.registered_model_version)
        card = {CARD_DIGEST: sha256((folder / "model.json").read_bytes())}
        for key, value in {**tags, **card}.items():
            self.store.set_model_version_tag(name, str(version), key, value)
        self.store.set_registered_model_alias(name, CANDIDATE, str(version))
        registry.describe(self.store, name, version)
        return version

    def finish(self, status: str) -> bool:
        """FINISHED, FAILED or KILLED; False where the server is away, which is not waited for."""
        if self.board:
            self.board.close()
        with contextlib.suppress(MlflowException, OSError):
            whole = self.flush()
            self.store.set_terminated(self.run_id, status)
            return whole
        return False


def gone(store: MlflowClient, run_id: str) -> str | None:
    """Why a run is not to be had; None where it is. Raises `UserError`."""
    try:
        run = store.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return f"MLflow run {run_id} is not in {shown()}"
        with store_errors():
            raise
    if run.info.lifecycle_stage != "deleted":
        return None
    return (
        f"MLflow run {run_id} is deleted (`MLFLOW_TRACKING_URI={shown()} mlflow runs restore "
        f"--run-id {run_id}` brings it back)"
    )


@contextlib.contextmanager
def finishing(tracker: Tracker) -> Iterator[Tracker]:
    """Whatever ends the block also ends the run, with the status that says how."""
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or SIGTERM
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


@dataclass(frozen=True)
class RunningRun:
    """A run that MLflow believes to be running. job_id and head: of the Ray job that drives it."""

    id: str
    name: str
    driver: str | None
    job_id: str | None
    head: str | None


@store_errors()
def running() -> list[RunningRun]:
    """Raises `UserError`."""
    store = client()
    experiment = experiments.find(store)
    if experiment is None:
        return []
    still_running, token = [], None
    while True:
        page = store.search_runs(
            [experiment.experiment_id], "attributes.status = 'RUNNING'", page_token=token
        )
        for run in page:
            tags = run.data.tags
            still_running.append(
                RunningRun(run.info.run_id, run.info.run_name, *map(tags.get, DRIVER))
            )
        token = page.token
        if not token:
            return still_running


@store_errors()
def end(run: RunningRun, status: str) -> None:
    """Raises `UserError`."""
    writing().set_terminated(run.id, status)
