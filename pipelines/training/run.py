"""One training run from a request to a registered model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

from fmoe import assembly, config, tracking
from fmoe.config import Config
from fmoe.data import Data, Images
from fmoe.errors import UserError
from fmoe.evaluation import Evaluation, Settings
from fmoe.on_ray import evaluate, pool, shared_storage
from fmoe.on_ray import train as on_ray_train
from fmoe.on_ray.session import Resources, grows, session, this_node
from fmoe.on_ray.shared_data import SharedData
from fmoe.on_ray.tasks import Event
from fmoe.on_ray.workers import Workers
from fmoe.paths import home
from fmoe.storage.checkpoint import Checkpoint
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker, finishing
from fmoe.tracking.monitoring import Monitor
from fmoe.training import check_phases, joint, selection
from fmoe.training.calibration import deployed
from fmoe.training.expert_store import ExpertStore
from fmoe.training.loop import check
from pipelines import origin
from pipelines.display import Display
from pipelines.output import percent
from pipelines.publish import publish
from pipelines.training import story
from pipelines.training.claim import (
    checked,
    claim_with_data,
    only_one,
    start_tracking,
    still_registered,
)


@dataclass(frozen=True)
class Request:
    """What the command line asked for: its options by their names, as `pipelines.options.asked`
    gives them. None where the recipe or the cluster decides."""

    recipe: str
    _: KW_ONLY
    overrides: Sequence[str] = ()
    workers: Workers | None = None
    name: str | None = None
    storage: str | None = None
    expert_store: str | None = None
    register_as: str | None = None
    data_dir: str | None = None
    gpu: bool | None = None

    def place(self, settings: Config) -> tuple[str, Folder]:
        """The run's name, and its folder. Raises `UserError`."""
        recipe = config.recipe_name(self.recipe)
        name = self.name or f"{recipe}-{config.fingerprint(settings.deciding())[:8]}"
        return name, Folder.at(self.storage or home()) / "runs" / checked(name)

    @property
    def command(self) -> str:
        """That does the same."""
        options = {
            "set": list(self.overrides),
            "workers": self.workers,
            "name": self.name,
            "storage": self.storage,
            "expert-store": self.expert_store,
            "register-as": self.register_as,
            "data-dir": self.data_dir,
            "gpu": self.gpu is True,
            "cpu": self.gpu is False,
        }
        return origin.command(["fmoe", "train", self.recipe], options)


def run(request: Request) -> dict[str, Any]:
    """Trains, evaluates and registers; gives what `fmoe train --json` prints.

    Raises `UserError` for bad input, `NonFiniteLoss` where training diverged.
    """
    settings = config.load(request.recipe, request.overrides)
    recipe = config.recipe_name(request.recipe)
    name, folder = request.place(settings)
    workers = Workers.of(request.workers, settings.parallel)
    tracking.registry.check_new_name(request.register_as)
    storage = Folder.at(request.storage or home())
    store = ExpertStore(
        Folder.at(request.expert_store) if request.expert_store else storage / "experts"
    )
    with Display() as display, only_one(folder):
        copies = storage / "streamed"
        loaded, finished = claim_with_data(folder, settings, request.data_dir, copies)
        if finished is not None:
            display.line(f"{name} is finished: this is its result; --name NEW trains anew")
            return still_registered(folder, name, finished, display)
        check_phases(settings, loaded.train, workers.most // settings.shared_by)
        # from here on an outage of the storage is waited out
        folder, store = folder.patient(), ExpertStore(store.folder.patient())
        tracking.readiness.check()  # a server that is away fails the run now
        shared = SharedData.of(loaded)
        # inside of the session: its end takes seconds that a stopped job may not have
        with session(workers.most, shared.nbytes):
            shared_storage.check(storage, store.folder)
            tracker, texts = start_tracking(folder, settings, recipe, name, loaded, request.command)
            monitor = Monitor(tracker.run_id, tracker.store.tracking_uri)
            with finishing(tracker), monitor.on(this_node()):
                if tracker.note:
                    display.line(tracker.note)
                display.line(f"to watch it: {tracker.page}")
                tracker.log_texts(texts)
                given = settings, loaded, folder, store, tracker, display, request, workers, monitor
                training = TrainingRun(*given)
                return training.complete(shared.put())


@dataclass
class TrainingRun:
    """The four steps of a run; each finds what an earlier try has finished."""

    config: Config
    data: Data[Images]
    folder: Folder
    store: ExpertStore
    tracker: Tracker
    display: Display
    request: Request
    workers: Workers
    monitor: Monitor

    def complete(self, shared: Any) -> dict[str, Any]:
        """shared: the reference of the data in the object store."""
        seconds: dict[str, float] = {}
        resources = Resources.per_worker(self.workers.most, self.request.gpu)
        shortage = resources.shortage(self.workers.least)
        if shortage and not grows():
            raise UserError(f"--workers: {shortage}")
        if shortage:
            self.display.line(f"waiting for nodes: {shortage} now")
        with timed(seconds, "pool"):
            self.pool(shared, resources)
        with timed(seconds, "joint"):
            history = self.joint(shared, resources)
        best = joint.best(self.config, history)
        last = len(history) - 1
        with timed(seconds, "evaluate"):
            at_best = self.evaluate(history, best, resources, "best")
            at_last = at_best
            if best != last:
                at_last = self.evaluate(history, last, resources, "last")
        self.display.line("registering the model")
        uri, digest = publish(
            self.folder,
            self.tracker,
            self.config,
            self.data,
            history,
            best,
            at_best,
            self.request.register_as,
        )
        answer = {
            "run_dir": self.folder.uri,
            "run_id": self.tracker.run_id,
            "model_uri": uri,
            "digest": digest,
            "test": {"clean": at_best.clean, **at_best.robust},
            "test_last_epoch": {"clean": at_last.clean, **at_last.robust},
            "worst_case": at_best.worst_case,
            "validation": {k: history[best][k] for k in ("val_clean", "val_robust")},
            "best_epoch": best,
            "epochs": len(history),
            "images": at_best.images,
            "eps": self.config.evaluate.eps,
            "norm": self.config.evaluate.norm,
            "seconds": seconds,
        }
        self.folder.write_json("result.json", answer)
        told = at_best.to_json(), answer
        self.tracker.describe(story.ended(self.config, self.data, self.request.command, *told))
        return answer

    def pool(self, shared: Any, resources: Resources) -> None:
        members = self.config.experts.pretrained
        if not members:
            self.display.line("experts: they begin with the joint phase (experts.start: fresh)")
            return
        bar = self.display.task("experts", len(members) * self.config.experts.train.epochs)
        at = dict.fromkeys(members, 0.0)

        def listen(event: Event) -> None:
            if self.noticed(event):
                return
            role, index = event["member"]
            if event["kind"] == "step":
                at[role, index] = event["at"]
                self.display.update(bar, sum(at.values()))
            else:
                metrics = event["metrics"]
                self.display.line(f"expert {role}-{index}  {epoch_line(event)}")
                self.tracker.log_expert(f"{role}-{index}", metrics, event["epoch"])

        manifests = pool.fill(
            self.config, shared, self.data.identity, self.store, resources.gpus, listen
        )
        about = {}
        for (role, index), manifest in zip(members, manifests, strict=True):
            for epoch, metrics in enumerate(manifest["history"]):
                self.tracker.log_expert(f"{role}-{index}", metrics, epoch)
            known = {key: manifest.get(key) for key in ("best_epoch", "seconds")}
            origins = {True: "training", False: "the expert store"}
            about[f"{role}-{index}"] = {"from": origins[manifest["trained"]], **known}
        self.tracker.told_experts(about)
        trained = sum(manifest["trained"] for manifest in manifests)
        saved = sum(m["seconds"] for m in manifests if not m["trained"])
        self.display.update(bar, len(members) * self.config.experts.train.epochs)
        self.display.line(
            f"experts: {trained} trained, {len(members) - trained} from the store"
            + (f" (saved {saved:.0f} s of training)" if saved else "")
        )

    def joint(self, shared: Any, resources: Resources) -> list[dict[str, float]]:
        epochs = self.config.joint.epochs
        bar = self.display.task("joint", epochs)
        seen: set[int] = set()

        def listen(event: Event) -> None:
            if self.noticed(event):
                return
            if event["kind"] == "start":
                of = event["workers"], event["peers"]
                self.display.line(worker_line(*of, self.config.joint.batch_size))
                return
            if event["kind"] == "step":
                self.display.update(bar, event["at"])
                return
            metrics, epoch = event["metrics"], event["epoch"]
            if epoch not in seen:
                seen.add(epoch)
                note = f"{metrics['images_per_second']:.0f} images/s"
                self.display.update(
                    bar, epoch + 1, f"{note}, robust {percent(metrics['val_robust'])}"
                )
                self.display.line(f"joint  {epoch_line(event)}  {note}")
                self.tracker.log(metrics, epoch)

        kept = joint.checkpoints(self.folder, self.config, self.data.identity)
        if not over(self.config, kept.latest()):
            on_ray_train.fit(
                self.config,
                shared,
                self.store,
                self.folder,
                workers=self.workers,
                resources=resources,
                listener=listen,
                monitor=self.monitor.on,
            )
        self.display.update(bar, epochs)
        latest = kept.latest()
        assert latest is not None
        for epoch, metrics in enumerate(latest.history):
            self.tracker.log(metrics, epoch)
        lines = [json.dumps({"epoch": i, **metrics}) for i, metrics in enumerate(latest.history)]
        self.folder.write("metrics.jsonl", ("\n".join(lines) + "\n").encode())
        return latest.history

    def noticed(self, event: Event) -> bool:
        if event["kind"] == "notice":
            self.display.line(f"warning: {event['text']}")
        return bool(event["kind"] == "notice")

    def evaluate(
        self, history: list[dict[str, float]], epoch: int, resources: Resources, which: str
    ) -> Evaluation:
        wanted, chosen = self.config.evaluate, deployed(self.config, history[epoch])
        test = self.data.test[: wanted.images].held()
        bar = self.display.task(f"evaluate {which}", len(test))
        return evaluate.evaluate(
            joint.trained(self.config, self.folder, self.data.identity, epoch),
            assembly.MixtureSubject(chosen, self.data.facts),
            test,
            Settings(tuple(wanted.attacks), wanted.threat, wanted.batch_size, self.config.seed),
            resources=resources,
            progress=lambda done, _: self.display.update(bar, done),
        )


def over(config: Config, latest: Checkpoint | None) -> bool:
    """Whether an earlier try has finished the joint phase."""
    if latest is None:
        return False
    check(latest)
    return selection.over(config.joint, latest.history, config.joint.attack)


def worker_line(workers: int, peers: int, batch_size: int) -> str:
    """Said whenever the joint phase starts or goes on. peers: how many share the experts."""
    share = -(-batch_size // (workers // peers))
    among = f"the experts shared out among {peers}, " if peers > 1 else ""
    return (
        f"joint  {workers} worker{'s' if workers > 1 else ''}, {among}{share} images of a batch "
        f"each (the global batch of {batch_size} and the learning rate are kept)"
    )


def epoch_line(event: Event) -> str:
    metrics = event["metrics"]
    return (
        f"epoch {event['epoch'] + 1}  loss {metrics['train_loss']:.3f}  "
        f"val clean {percent(metrics['val_clean'])}  robust {percent(metrics['val_robust'])}  "
        f"{metrics['seconds']:.0f} s"
        + ("  catastrophic overfitting: back to the last good epoch" * ("overfitted" in metrics))
    )


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)
