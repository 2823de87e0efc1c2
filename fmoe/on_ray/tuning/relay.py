"""What Ray Tune says of its trials, as changes of ours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from ray import tune

from fmoe.on_ray.tuning.suggest import Suggestions, Unpickled
from fmoe.tuning.trials import Trial


class Listener(Protocol):
    """Hears of a study's trials, in this process."""

    def begun(self, trial: Trial) -> None: ...
    def reported(self, trial: Trial) -> None: ...
    def ended(self, trial: Trial) -> None: ...


class Relay(Unpickled, tune.Callback):  # type: ignore[misc]
    """Tune's events as changes of our trials."""

    def __init__(
        self,
        suggestions: Suggestions,
        listener: Listener,
        seconds: float | None,
        over: Callable[[Trial], bool],
    ):
        self.suggestions, self.listener, self.over = suggestions, listener, over
        self.everyone: dict[int, Trial] = {}
        self.known: set[int] = set()
        self.change: dict[int, int] = {}
        self.deadline = time.monotonic() + seconds if seconds else None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._ours(trial)
        if ours.number not in self.known:  # PBT starts a trial again and again
            self.known.add(ours.number)
            ours.started = time.time()
            self.listener.begun(ours)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        ours = self._ours(trial)
        ours.process = result["process"]
        if "error" in result:
            ours.error, ours.experts = str(result["error"]), dict(result["experts"])
            return
        if result["adopted"] is not None:
            self._inherit(ours, result["adopted"], result["epoch"])
        if result["epoch"] != len(ours.history):
            return  # a resumed trial goes through its history again
        ours.experts = dict(result["experts"])
        ours.history.append(dict(result["history"]))
        self.listener.reported(ours)

    def _inherit(self, ours: Trial, adopted: dict[str, Any], epoch: int) -> None:
        """PBT: at the first report after the trial took over another's weights."""
        if adopted["change"] == self.change.get(ours.number):
            return
        self.change[ours.number] = adopted["change"]
        ours.values = json.loads(adopted["values"])
        ours.history = [dict(metrics) for metrics in adopted["history"]]
        ours.changes.append({"epoch": epoch, "parent": adopted["parent"], "values": ours.values})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._ours(trial)
        late = self.deadline is not None and time.monotonic() >= self.deadline
        if ours.error:
            ours.status = "failed"
        else:
            ours.status = "finished" if self.over(ours) else "stopped" if late else "pruned"
        self._end(ours)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._ours(trial)
        ours.status, ours.error = "failed", reason(trial)
        self._end(ours)

    def settle(self) -> None:
        """Tune's clock ends a trial that was just starting without a word."""
        for ours in self.everyone.values():
            if ours.status == "running":
                ours.status = "stopped"
                self._end(ours)

    def _ours(self, trial: Any) -> Trial:
        number = trial.config["asked"]["number"]
        self.everyone.setdefault(number, self.suggestions.under_way[number])
        return self.everyone[number]

    def _end(self, ours: Trial) -> None:
        ours.ended = time.time()
        self.suggestions.tell(ours)
        self.listener.ended(ours)


def reason(trial: Any) -> str:
    """The last line of what went wrong."""
    try:
        with open(trial.error_file) as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, TypeError):
        return "unknown: Ray kept no error"
    return lines[-1][:500] if lines else "unknown"
