"""Doctored studies, recorded evaluations, checkpoints and stores: one line, or damage."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fmoe import assembly, config
from fmoe.errors import UserError
from fmoe.evaluation import recorded
from fmoe.evaluation.chunk import StageResult
from fmoe.evaluation.kept import Kept
from fmoe.storage.checkpoint import STATE, Checkpoint, Checkpoints
from fmoe.storage.folder import MANIFEST, Damaged, Folder
from fmoe.training import metrics
from fmoe.training.expert_store import ExpertStore
from fmoe.tuning.trials import Trial
from pipelines import kept_files
from pipelines.cli import main
from tests.conftest import MEMBER, SMALL

Tree = dict[str, Any]
DEEP: Any = "DEEP"
"""Stands for lists in lists, which `json.dumps` cannot write."""


def write(file: Path, tree: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree).replace('"DEEP"', "[" * 90_000 + "]" * 90_000))


# Studies

STUDY = {"name": "s", "file": "f.yaml", "space": {"metrics": {"val_robust": "max"}}}
EPOCH = {"at": 1.0, "val_robust": 0.5}
TRIAL = asdict(Trial(0, {"gate.temperature": 1.0}, status="finished", history=[EPOCH]))
SHARES = {"clean": 0.9, "pgd": 0.4}
RESULT = {
    "study": "s",
    "counts": {"finished": 1},
    "best": {
        "trial": 0,
        "values": {},
        "metrics": {"validation": SHARES, "test": SHARES},
        "model_uri": "models:/x/1",
        "digest": "0" * 64,
        "run_id": "0" * 32,
    },
}
FILES: dict[str, Tree] = {
    "study.json": STUDY,
    "trials/0000/trial.json": TRIAL,
    "result.json": RESULT,
}
DOCTORED_STUDIES: dict[str, tuple[str, Any]] = {
    "study deep": ("study.json", {**STUDY, "space": DEEP}),
    "study list": ("study.json", [1]),
    "no space": ("study.json", {"name": "s", "file": "f"}),
    "space a list": ("study.json", {**STUDY, "space": [1]}),
    "no metrics": ("study.json", {**STUDY, "space": {"metrics": {}}}),
    "metrics a list": ("study.json", {**STUDY, "space": {"metrics": ["val_robust"]}}),
    "a direction": ("study.json", {**STUDY, "space": {"metrics": {"val_robust": "up"}}}),
    "another metric": ("study.json", {**STUDY, "space": {"metrics": {"x": "max"}}}),
    "name a list": ("study.json", {**STUDY, "name": [1]}),
    "trial deep": ("trials/0000/trial.json", {**TRIAL, "values": DEEP}),
    "trial without a number": ("trials/0000/trial.json", {"values": {}}),
    "trial's number": ("trials/0000/trial.json", {**TRIAL, "number": 10**300}),
    "trial of another": ("trials/0000/trial.json", {**TRIAL, "number": 7}),
    "more in a trial": ("trials/0000/trial.json", {**TRIAL, "more": 1}),
    "status": ("trials/0000/trial.json", {**TRIAL, "status": "\x1b[2Jdone"}),
    "values a list": ("trials/0000/trial.json", {**TRIAL, "values": [1]}),
    "history a number": ("trials/0000/trial.json", {**TRIAL, "history": 3}),
    "history of lists": ("trials/0000/trial.json", {**TRIAL, "history": [[1]]}),
    "history of texts": ("trials/0000/trial.json", {**TRIAL, "history": [{"val_robust": "x"}]}),
    "no time": ("trials/0000/trial.json", {**TRIAL, "history": [{"val_robust": 0.5}]}),
    "no metric": ("trials/0000/trial.json", {**TRIAL, "history": [{"at": 1.0}]}),
    "huge": ("trials/0000/trial.json", {**TRIAL, "history": [{**EPOCH, "val_robust": 10**350}]}),
    "long": ("trials/0000/trial.json", {**TRIAL, "error": "x" * 17_000_000}),
    "result deep": ("result.json", {**RESULT, "best": DEEP}),
    "result list": ("result.json", []),
    "no best": ("result.json", {"study": "s"}),
    "best a list": ("result.json", {"study": "s", "best": [1]}),
    "figures": (
        "result.json",
        {"study": "s", "best": {**RESULT["best"], "metrics": {"validation": 1}}},  # type: ignore[dict-item]
    ),
}


def study(home: Path) -> Path:
    folder = home / "studies" / "s"
    for name, tree in FILES.items():
        write(folder / name, tree)
    return folder


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    code = end.value.code
    assert isinstance(code, int)
    return code


def commands(home: Path) -> dict[str, list[str]]:
    at = ["--storage", str(home)]
    return {
        "list": ["studies", "list", *at],
        "show": ["studies", "show", "s", *at],
        "best": ["studies", "best", "s", *at],
    }


@pytest.mark.parametrize("kind", DOCTORED_STUDIES)
def test_doctored_study_is_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, tree = DOCTORED_STUDIES[kind]
    write(study(tmp_path) / name, tree)
    looked = {"study.json": "list", "result.json": "best"}.get(name, "show")
    assert ended(commands(tmp_path)[looked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fmoe: {tmp_path}/studies/s")
    assert line.isprintable()
    assert len(line) < 1000


@pytest.mark.parametrize("command", ["list", "show", "best"])
def test_honest_study_is_shown_and_a_pipe_in_it_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path)
    assert ended(commands(tmp_path)[command]) == 0
    assert capsys.readouterr().out
    for name in FILES:
        (folder / name).unlink()
        os.mkfifo(folder / name)
    assert ended(commands(tmp_path)[command]) == 2
    assert "cannot be read: no regular file" in capsys.readouterr().err


# Runs

RUN_RESULT: Tree = {
    "run_dir": "x",
    "run_id": "0" * 32,
    "digest": "0" * 64,
    "model_uri": "models:/x/1",
    "test": SHARES,
    "images": 4,
    "eps": 0.1,
}
DOCTORED_RUNS: dict[str, tuple[str, str]] = {
    "result deep": ("result.json", "[" * 90_000),
    "result list": ("result.json", "[]"),
    "no figures": ("result.json", json.dumps({**RUN_RESULT, "test": None})),
    "figures": ("result.json", json.dumps({**RUN_RESULT, "test": {"clean": "x"}})),
    "eps": ("result.json", json.dumps({**RUN_RESULT, "eps": [1]})),
    "settings deep": ("config.yaml", "[" * 90_000),
    "settings' aliases": ("config.yaml", "a: &a [*a]"),
    "settings long": ("config.yaml", "#" * 300_000),
}


@pytest.mark.parametrize("kind", DOCTORED_RUNS)
def test_doctored_run_folder_is_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = config.load("digits-whole", SMALL), tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings.to_yaml())
    name, text = DOCTORED_RUNS[kind]
    (folder / name).write_text(text)
    sets = [part for override in SMALL for part in ("--set", override)]
    assert ended(["train", "digits-whole", *sets, "--name", "r", "--storage", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder}/{name}: " in line
    assert len(line) < 1000


@pytest.mark.parametrize("value", ["[1]", "null", "3", '{"a": 1}'])
def test_doctored_id_of_a_run_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"name": "x", "run_id": {value}}}')
    with pytest.raises(UserError, match=r"run\.json: run_id: "):
        kept_files.read(Folder.at(tmp_path), "run.json", kept_files.RunFile)


# Recorded evaluations

REPORT: Tree = {"flags": [], "worst_case": 0.5, "images": 4, "attacks": ["pgd"], "versions": {}}
DOCTORED_REPORTS: dict[str, Tree] = {
    "deep": {**REPORT, "versions": DEEP},
    "no flags": {key: value for key, value in REPORT.items() if key != "flags"},
    "flags a text": {**REPORT, "flags": "none"},
    "flags of lists": {**REPORT, "flags": [[]]},
    "worst case a text": {**REPORT, "worst_case": "1"},
    "worst case huge": {**REPORT, "worst_case": 10**350},
    "images negative": {**REPORT, "images": -1},
    "images huge": {**REPORT, "images": 10**18},
    "images a text": {**REPORT, "images": "4"},
    "attacks of lists": {**REPORT, "attacks": [[1]]},
    "attacks a number": {**REPORT, "attacks": 3},
    "versions a list": {**REPORT, "versions": [1]},
    "test images": {**REPORT, "test_images": None},
}


@pytest.mark.parametrize("kind", DOCTORED_REPORTS)
def test_doctored_report_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    write(file, REPORT)
    assert recorded.report(file) == REPORT
    write(file, DOCTORED_REPORTS[kind])
    with pytest.raises(ValueError):  # noqa: PT011
        recorded.report(file)


ROWS: Tree = {
    "label": [0, 1, 2, 3],
    "prediction": [0, 1, 2, 0],
    "success_pgd": [False, True, None, False],
}
DOCTORED_VERDICTS: dict[str, Callable[[], pa.Table]] = {
    "texts": lambda: pa.table({**ROWS, "label": ["0"] * 4}),
    "floats": lambda: pa.table({**ROWS, "prediction": [0.5, torch.nan, 2, 3]}),
    "lists": lambda: pa.table({**ROWS, "label": [[0]] * 4}),
    "success as text": lambda: pa.table({**ROWS, "success_pgd": ["no"] * 4}),
    "without labels": lambda: pa.table({"prediction": [0] * 4}),
    "fewer rows": lambda: pa.table(ROWS)[:2],
    "many rows": lambda: pa.table({name: [0] * 5_000_000 for name in ("label", "prediction")}),
    "many columns": lambda: pa.table({**ROWS, **{f"success_{i}": [True] * 4 for i in range(200)}}),
    "a column twice": lambda: pa.table([pa.array([0] * 4)] * 3, ["label", "label", "prediction"]),
}


@pytest.mark.parametrize("kind", DOCTORED_VERDICTS)
def test_doctored_verdicts_are_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.parquet"
    pq.write_table(pa.table({**ROWS, "smallest_eps": [0.1] * 4}), file)
    assert recorded.verdicts(file, 4).to_pydict() == ROWS
    pq.write_table(DOCTORED_VERDICTS[kind](), file)
    with pytest.raises(ValueError, match=r"verdicts\.parquet"):
        recorded.verdicts(file, 4)


# Stages of an evaluation that are kept


def test_doctored_stage_is_done_again(tmp_path: Path) -> None:
    kept = Kept(Folder.at(tmp_path))
    found = StageResult({"broken.pgd": torch.tensor([True, False])}, ["a flag"], 1.5)
    kept.put(0, "pgd", found)
    again = kept.get(0, "pgd", 2)
    assert again is not None
    assert (again.flags, again.seconds) == (["a flag"], 1.5)
    assert kept.get(0, "pgd", 3) is None, "of another number of images"
    (file,) = tmp_path.iterdir()
    honest = file.read_bytes()
    for old, new in (
        (b'1.5"', b'nan"'),
        (b'[\\"a flag\\"]', b"[" * 12),
        (b'[\\"a flag\\"]', b"3" * 12),
    ):
        assert honest.count(old) == 1
        file.write_bytes(honest.replace(old, new))
        assert kept.get(0, "pgd", 2) is None
    os.truncate(file, 2**40)
    assert kept.get(0, "pgd", 2) is None
    file.unlink()
    os.mkfifo(file)
    assert kept.get(0, "pgd", 2) is None


# Checkpoints and the expert store


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Two epochs of a width-4 expert, each as it must be."""
    settings = config.load("digits-whole", SMALL)
    like = assembly.expert_state(settings, MEMBER)
    made = Checkpoints(Folder.at(tmp_path), "key", like)
    model = assembly.seeded_expert(settings, MEMBER, 0).state_dict()
    momentum = {"head.bias/momentum_buffer": torch.zeros(10)}
    for epoch in (0, 1):
        history = [dict.fromkeys(metrics.names(), 0.5)] * (epoch + 1)
        made.save(Checkpoint(epoch, {"model": model, "optimizer:sgd": momentum}, history), epoch)
    return made


def state(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Folder], None]:
    def doctor(folder: Folder) -> None:
        from fmoe.storage.tensors import pack, unpack

        tensors = unpack(folder.read(STATE), "")
        change(tensors)
        folder.commit({STATE: pack(tensors)}, folder.read_json(MANIFEST))

    return doctor


def raw(data: bytes) -> Callable[[Folder], None]:
    return lambda folder: folder.commit({STATE: data}, folder.read_json(MANIFEST))


def manifest(**changes: Any) -> Callable[[Folder], None]:
    def doctor(folder: Folder) -> None:
        assert folder.local is not None
        write(folder.local / MANIFEST, {**folder.read_json(MANIFEST), **changes})

    return doctor


def long(folder: Folder) -> None:
    assert folder.local is not None
    os.truncate(folder.local / STATE, 2**40)


def pipe(folder: Folder) -> None:
    assert folder.local is not None
    (folder.local / STATE).unlink()
    os.mkfifo(folder.local / STATE)


BIAS = "model.head.bias"
DOCTORED_CHECKPOINTS: dict[str, Callable[[Folder], None]] = {
    "a terabyte": long,
    "a pipe": pipe,
    "length of 2^63": raw(struct.pack("<Q", 2**63)),
    "deep header": raw(struct.pack("<Q", 90_000) + b"[" * 90_000),
    "one less": state(lambda t: t.pop(BIAS)),
    "one more": state(lambda t: t.update({"model.x": torch.zeros(1)})),
    "shape": state(lambda t: t.update({BIAS: torch.zeros(11)})),
    "type": state(lambda t: t.update({BIAS: torch.zeros(10).double()})),
    "nan": state(lambda t: t[BIAS].fill_(torch.nan)),
    "state of nothing": state(lambda t: t.update({"optimizer:sgd.x/step": torch.zeros(1)})),
    "state of no name": state(lambda t: t.update({"optimizer:sgd.head.bias": torch.zeros(1)})),
    "family unnamed": state(lambda t: t.update({"warm.kept": torch.zeros(1)})),
    "family unknown": state(lambda t: t.update({"x.y": torch.zeros(1)})),
    "no family": state(lambda t: t.update({"x": torch.zeros(1)})),
    "families unknown": manifest(families=["model", "optimizer:sgd", "x"]),
    "families less": manifest(families=["optimizer:sgd"]),
    "families a text": manifest(families="model"),
    "families numbers": manifest(families=[1]),
    "families long": manifest(families=["model", "optimizer:" + "x" * 90]),
    "deployed none": manifest(families=["deployed", "model", "optimizer:sgd"]),
    "history a text": manifest(history="x"),
    "history of texts": manifest(history=[{"loss": "x"}]),
    "history huge": manifest(history=[{"loss": 10**350}]),
    "history deep": manifest(history=DEEP),
    "manifest deep": manifest(more=DEEP),
    "digests": manifest(sha256=[1]),
    "manifest long": manifest(more="x" * 17_000_000),
}


@pytest.mark.parametrize("kind", DOCTORED_CHECKPOINTS)
def test_doctored_checkpoint_is_damage_and_the_one_before_serves(
    kind: str, kept: Checkpoints
) -> None:
    DOCTORED_CHECKPOINTS[kind](kept.folder / "epoch-0001")
    with pytest.raises(Damaged, match="epoch-0001"):
        kept.load(1)
    latest = kept.latest()
    assert latest is not None
    assert latest.epoch == 0


@pytest.mark.parametrize("name", ["epoch-" + "9" * 40, "epoch-²", "epoch-", "epoch--1", "epoch-x"])
def test_folder_that_is_no_epoch_is_none(name: str, kept: Checkpoints) -> None:
    (kept.folder / name).write("x", b"")
    assert kept.epochs() == [0, 1]
    latest = kept.latest()
    assert latest is not None
    assert latest.epoch == 1


def test_doctored_expert_is_not_found(tmp_path: Path) -> None:
    from fmoe.model_folder import WEIGHTS
    from fmoe.storage.tensors import pack

    settings = config.load("digits-whole", SMALL)
    like = assembly.expert_state(settings, MEMBER)
    store, folder = ExpertStore(Folder.at(tmp_path)), Folder.at(tmp_path / "key")
    whole = assembly.seeded_expert(settings, MEMBER, 0).state_dict()
    about: Tree = {"key": "key", "seconds": 1.0}
    folder.commit({WEIGHTS: pack(whole)}, about)
    assert store.find("key", like) is not None
    wide = {**whole, "head.bias": torch.zeros(11)}
    for tensors in (wide, {**whole, "x": torch.zeros(1)}, {"head.bias": torch.zeros(10)}):
        folder.commit({WEIGHTS: pack(tensors)}, about)
        assert store.find("key", like) is None
        with pytest.raises(Damaged, match="does not fit"):
            store.weights("key", like)
    data = struct.pack("<Q", 2**62) + b"{}"
    folder.commit({WEIGHTS: data}, about)
    assert store.find("key", like) is None
    folder.commit({WEIGHTS: pack(whole)}, {"key": "key", "seconds": "x"})
    assert store.find("key", like) is None


# Recipes and spaces


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("kind", ["pipe", "long", "aliases", "deep"])
def test_doctored_recipe_or_space_is_refused_in_one_line(
    command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        aliases = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
        texts = {"long": "#" * 300_000, "aliases": f"a0: &a0 x\n{aliases}", "deep": "[" * 9000}
        file.write_text(texts[kind])
    assert ended([command, str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own.yaml" in line
    assert len(line) < 500


def test_aliases_of_a_recipe_that_are_few_are_read(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "experts:\n  roles:\n    a: &role {count: 1, attack: {kind: clean}}\n"
        "    b: *role\n    c: {<<: *role, count: 2}\n"
    )
    assert config.load(str(file)).experts.members == [("a", 0), ("b", 0), ("c", 0), ("c", 1)]


@pytest.mark.parametrize("text", ["[" * 9000, "9" * 5000, "!!int ''", "&a [*a]", "{a: 1, a: 2}"])
def test_doctored_override_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"--set seed=.*: the value is ") as caught:
        config.load("digits-whole", [f"seed={text}"])
    assert len(str(caught.value)) < 800
