"""Studies as they stand in the storage."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from fmoe.config import Config
from fmoe.errors import UserError
from fmoe.paths import home
from fmoe.schema import faults
from fmoe.storage.folder import Damaged, Folder
from fmoe.tuning.domains import Domain
from fmoe.tuning.search_space import Space
from fmoe.tuning.settings import Study
from fmoe.tuning.trials import Ledger, Trial, ranked
from pipelines.kept_files import StudyFile, StudyResult, read


def studies(storage: str | None) -> list[Folder]:
    root = (Folder.at(storage or home()) / "studies").reach()
    folders = [root / name for name in root.names()]
    return [folder for folder in folders if folder.exists("study.json")]


def find(name: str, storage: str | None) -> Folder:
    """Raises `UserError` where there is no such study."""
    known = studies(storage)
    for folder in known:
        if folder.name == name:
            return folder
    raise UserError(f"{name}: no such study ({len(known)} there; see `fmoe studies list`)")


@dataclass(frozen=True)
class StudyFiles:
    """One study, read only. Raises `UserError` where a file is damaged."""

    folder: Folder

    @cached_property
    def _study(self) -> dict[str, Any]:
        return read(self.folder, "study.json", StudyFile)

    @property
    def name(self) -> str:
        return str(self._study["name"])

    @cached_property
    def space(self) -> Space:
        """As it was when the study began. Raises `UserError` where the file does not hold one."""
        kept, source = self._study, f"{self.folder.uri}/study.json"
        try:
            study = Study.model_validate(kept["space"])
            domains = tuple(Domain.parse(key, value) for key, value in study.space.items())
            return Space(study, Config.model_validate(kept.get("base")), domains, source, "")
        except ValidationError as error:
            raise UserError(f"{source}: {faults(error, kept)}") from None

    @cached_property
    def kept_trials(self) -> list[Trial]:
        """In their order, each with its metrics."""
        try:
            trials = Ledger(self.folder).trials()
        except Damaged as error:
            raise UserError(str(error)) from None
        for trial in trials:
            lacking = [m for m in self._metrics for epoch in trial.history if m not in epoch]
            if lacking:
                raise UserError(f"{self.folder.uri}: trial {trial.number} lacks {lacking[0][:100]}")
        return trials

    @property
    def _metrics(self) -> Any:
        return self._study["space"]["metrics"]

    def summary(self) -> dict[str, Any]:
        best = ranked(self.kept_trials, self._metrics)
        scores = (best[0].figures(self._metrics) or {}) if best else {}
        line = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        return {
            "study": self._study["name"],
            "study_dir": self.folder.uri,
            "file": self._study["file"],
            "counts": dict(Counter(trial.status for trial in self.kept_trials)),
            "finished": self.folder.exists("result.json"),
            "best_line": f"best: trial {best[0].number}, {line}" if best else "",
        }

    def trials(self) -> list[dict[str, Any]]:
        """Best first, then those without a figure."""
        order = ranked(self.kept_trials, self._metrics)
        rest = [trial for trial in self.kept_trials if trial not in order]
        return [
            {
                **asdict(trial),
                "trial": trial.number,
                "epochs": len(trial.history),
                "metrics": trial.figures(self._metrics),
            }
            for trial in order + rest
        ]

    def result(self) -> dict[str, Any]:
        try:
            return read(self.folder, "result.json", StudyResult)
        except FileNotFoundError:
            raise UserError(
                f"{self._study['name']}: not finished; `fmoe tune … --resume` goes on with it"
            ) from None
