"""Registered versions: found, downloaded, their evaluation, the champion.

MLflow moves an alias for whoever asks last. A promotion therefore claims the model first (a tag
with a token), waits for others' claims to arrive, and reads back what it wrote.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmoe.errors import UserError, first_line
from fmoe.evaluation.promotion import REPORT, VERDICTS
from fmoe.model_folder import FILES
from fmoe.tracking import notes, tags
from fmoe.tracking.store import client, gist, selected, shown, store_errors, writing

CANDIDATE = "candidate"
STALE_SECONDS = 120.0  # seconds after which a claim is that of a promotion that was killed
SETTLE_SECONDS = 1.0  # seconds in which another's claim becomes visible
TAG_LENGTH = 5000
"""MLflow's limit on a tag."""


@dataclass(frozen=True)
class Version:
    """A registered version; digest, card: sha256 of its weights and of its `model.json` (which
    names its configuration's), as tagged when it was registered."""

    name: str
    number: int
    digest: str | None
    card: str | None


def find_version(uri: str) -> Version:
    """`models:/NAME/3` or `models:/NAME@alias`. Raises `UserError` where there is none."""
    rest = uri.removeprefix("models:/").strip("/")
    store = client()
    try:
        if "@" in rest:
            name, alias = rest.split("@", 1)
            version = store.get_model_version_by_alias(name, alias)
        else:
            name, slash, number = rest.rpartition("/")
            if not slash or not number.isdigit():
                raise UserError(f"{uri}: expected models:/NAME/VERSION or models:/NAME@ALIAS")
            version = store.get_model_version(name, number)
    except MlflowException as error:
        raise UserError(f"{uri}: not in the registry of {shown()} ({gist(error)})") from None
    digests = map(version.tags.get, (tags.DIGEST, tags.CARD_DIGEST))
    return Version(version.name, int(version.version), *digests)


def holds(uri: str, digest: str) -> bool:
    """Whether `models:/NAME/3` is there with these weights. Raises `UserError` for a store that is
    away."""
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    store = client()
    with store_errors():
        try:
            version = store.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    return bool(version.tags.get(tags.DIGEST) == digest)


def download(version: Version, folder: Path) -> None:
    """The version's model folder, and nothing else of it, into an existing empty folder."""
    why = "its file is gone" if version.digest else "it was not registered by fmoe"
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside, store_errors(), selected():
        for file in FILES:
            uri = f"models:/{version.name}/{version.number}/extra_files/{file}"
            try:
                path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=aside)
            except (MlflowException, OSError) as error:
                raise UserError(
                    f"models:/{version.name}/{version.number}: has no {file}: {why} "
                    f"({first_line(error)})"
                ) from None
            shutil.move(path, folder / file)


def check_new_name(name: str | None) -> None:
    """Raises `UserError` for a name that MLflow would refuse when everything is trained."""
    if name is not None and not re.fullmatch(r"[^/:.%\"'\s][^/:%\"'\x00-\x1f]{0,199}", name):
        raise UserError(f"--register-as {name}: expected a name without '/', ':', '%' or quotes")


def checked_name(name: str) -> str:
    """A registered model's name. Raises `UserError` where there is none of it."""
    try:
        return str(client().get_registered_model(name.removeprefix("models:/")).name)
    except MlflowException as error:
        raise UserError(
            f"{name}: no such model in the registry of {shown()} ({gist(error)})"
        ) from None


def names() -> list[str]:
    """All registered models that fmoe made."""
    with store_errors():
        names = [model.name for model in client().search_registered_models(max_results=1000)]
    return sorted(name for name in names if versions(name))


@dataclass(frozen=True)
class Entry:
    """A version as the registry has it."""

    name: str
    number: int
    run_id: str
    created: datetime
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.number,
            "run_id": self.run_id,
            "created": self.created.isoformat(timespec="seconds"),
            "aliases": list(self.aliases),
            "tags": {key: self.tags[key] for key in sorted(self.tags)},
        }


def versions(name: str) -> list[Entry]:
    """Those that fmoe registered, newest first."""
    with store_errors():
        model = client().get_registered_model(name)
        entries = client().search_model_versions(_named(name), max_results=10_000)
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    ours = [v for v in entries if v.name == name and tags.DIGEST in v.tags]
    entries = [_entry(version, aliases) for version in ours]
    return sorted(entries, key=lambda entry: -entry.number)


def _named(name: str) -> str | None:
    """MLflow's filter for a name, which may have quotes of one kind; None (all) for both."""
    quote = next((quote for quote in "'\"" if quote not in name), None)
    return None if quote is None else f"name = {quote}{name}{quote}"


def _entry(version: ModelVersion, aliases: Mapping[str, int]) -> Entry:
    number = int(version.version)
    return Entry(
        version.name,
        number,
        version.run_id,
        datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        tuple(sorted(alias for alias, at in aliases.items() if at == number)),
        dict(version.tags),
    )


def aliased(name: str, alias: str) -> int | None:
    """The version that an alias names, None where it names none."""
    with store_errors():
        number = client().get_registered_model(name).aliases.get(alias)
    return None if number is None else int(number)


def tag(name: str, number: int, tags: Mapping[str, str]) -> None:
    store = writing()
    with store_errors():
        for key, value in tags.items():
            store.set_model_version_tag(name, str(number), key, value[:TAG_LENGTH])


def record_evaluation(
    version: Version, run_id: str, report: Mapping[str, Any], folder: Path
) -> None:
    """Keeps an evaluation with the version: its files with the run, its figures as tags and in its
    description."""
    at = f"evaluation/v{version.number}"
    store = writing()
    with store_errors():
        store.log_artifacts(run_id, str(folder), at)
    figures = {"clean": report["clean"], **report["robust"], "worst_case": report["worst_case"]}
    recorded = {name: f"{value:.4f}" for name, value in figures.items()} | {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": str(report["protocol"]),
        "full": str(report["full"]).lower(),
        "images": str(report["images"]),
        "norm": str(report.get("norm", "linf")),
        "eps": repr(report["eps"]),
        "flags": tags.flags(report["flags"]),
        "revision": str(report["revision"]),
        "report": f"runs:/{run_id}/{at}/index.html",
    }
    labels = {f"{tags.EVALUATION}{name}": value for name, value in recorded.items()}
    tag(version.name, version.number, labels)
    describe(store, version.name, version.number)


def describe(store: MlflowClient, name: str, number: int) -> None:
    """The version's description, by what its tags say now, and the model's where it has none. What
    somebody else wrote there stays, and a registry that takes no description goes without."""
    with contextlib.suppress(MlflowException, OSError):
        version = store.get_model_version(name, str(number))
        if notes.replaceable(version.description):
            text = notes.of_version(name, number, version.tags)
            store.update_model_version(name, str(number), text)
        if not store.get_registered_model(name).description:
            store.update_registered_model(name, notes.of_model(name))


def evaluation(entry: Entry, folder: Path) -> Path | None:
    """Downloads the version's recorded evaluation into an existing folder; None without one."""
    report = entry.tags.get(tags.REPORT, "")
    if not report:
        return None
    at = f"runs:/{entry.run_id}/evaluation/v{entry.number}"
    for file in (REPORT, VERDICTS):
        try:
            with selected():
                uri = f"{at}/{file}"
                mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"{entry.name} version {entry.number}: its recorded {file} cannot be read "
                f"({first_line(error)}): evaluate it again"
            ) from None
    return folder


class Busy(UserError):
    """Another promotion of the same model is under way."""


@contextlib.contextmanager
def claimed(name: str) -> Iterator[None]:
    """While the block runs no other promotion of the model does. Raises `Busy`."""
    token = f"{secrets.token_hex(8)} {time.time():.3f}"

    def held() -> str | None:
        with store_errors():
            value = client().get_registered_model(name).tags.get(tags.PROMOTING) or None
        if value is None:
            return None
        try:
            age = time.time() - float(value.split()[1])
        except (IndexError, ValueError):
            return None
        return value if age < STALE_SECONDS else None

    if held() is not None:
        raise Busy(f"{name}: another promotion is under way; ask again in a moment")
    with store_errors():
        writing().set_registered_model_tag(name, tags.PROMOTING, token)
    time.sleep(SETTLE_SECONDS)
    if held() != token:
        raise Busy(f"{name}: another promotion came at the same time and goes first")
    try:
        yield
    finally:
        with store_errors():
            if held() == token:
                client().delete_registered_model_tag(name, tags.PROMOTING)


def crown(name: str, number: int, alias: str, tags: Mapping[str, str]) -> int:
    """Moves the alias; gives the version that has it afterwards, which is another's where somebody
    moved it meanwhile."""
    store = writing()
    with store_errors():
        store.set_registered_model_alias(name, alias, str(number))
    holder = aliased(name, alias)
    if holder == number:
        tag(name, number, tags)
        describe(store, name, number)
    return holder or 0
