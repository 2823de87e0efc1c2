"""What a job is made of; tests/cluster submits real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from fmoe import provenance
from fmoe.errors import UserError
from fmoe.on_ray import jobs
from pipelines.in_job import differing
from pipelines.submit import check, refuse_passwords, variable

ROOT = Path(__file__).parent.parent


def test_staged_folder_holds_the_packages_and_the_recipe_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 3\n")
    target = tmp_path / "staged"
    target.mkdir()
    given = jobs.stage(target, ["train", str(recipe), "--set", "seed=4"])
    assert given == ["train", "submitted/mine.yaml", "--set", "seed=4"]
    assert (target / given[1]).read_text() == "seed: 3\n"
    assert sorted(path.name for path in target.iterdir()) == [
        "fmoe", "pins.txt", "pipelines", "submitted", "tune_spaces",
    ]  # fmt: skip
    files = [path for path in target.rglob("*") if path.is_file()]
    assert sum(file.stat().st_size for file in files) < 2**21
    assert not [file for file in files if file.suffix == ".pyc" or file.name.startswith(".")]
    assert (target / "fmoe/recipes/digits.yaml").exists()
    assert (target / "tune_spaces/digits.yaml").exists()


def in_job(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """On a node: the checkout is not on its path."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.in_job", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )


def test_staged_command_runs_without_the_checkout(tmp_path: Path) -> None:
    jobs.stage(tmp_path, ["train", "digits"])
    done = in_job(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fmoe ")


def test_a_job_takes_a_space_by_name(tmp_path: Path) -> None:
    """The node's own copy is read: this one names a recipe that there is not."""
    given = jobs.stage(tmp_path, ["tune", "digits"])
    assert given == ["tune", "digits"]
    space = tmp_path / "tune_spaces/digits.yaml"
    space.write_text(space.read_text().replace("recipe: digits", "recipe: of-the-node"))
    done = in_job(tmp_path, *given)
    assert done.returncode == 2
    assert "unknown recipe 'of-the-node'" in done.stderr


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b", "target"):
        (tmp_path / folder).mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "x.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="two files of this name"):
        jobs.stage(tmp_path / "target", ["train", f"{tmp_path}/a/x.yaml", f"{tmp_path}/b/x.yaml"])


def test_pins_are_this_environment() -> None:
    pins = provenance.pins()
    assert pins["ray"] == version("ray")
    assert pins["torch"] == version("torch").partition("+")[0]
    assert "pytest" not in pins, "of an extra that nobody asked for"
    assert not [name for name in pins if name.startswith("nvidia-")]
    assert differing("".join(f"{name}=={pin}\n" for name, pin in pins.items())) == []


def test_in_job_names_what_differs(tmp_path: Path) -> None:
    assert differing("ray==0.1\nnonesuch==1.0\n") == [
        f"ray {version('ray')} (submitted with 0.1)",
        "nonesuch missing (submitted with 1.0)",
    ]
    jobs.stage(tmp_path, ["train", "digits"])
    (tmp_path / "pins.txt").write_text("ray==0.1\n")
    done = in_job(tmp_path, "train", "digits")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--pip" in done.stderr


def test_a_study_is_checked_before_it_is_submitted(tmp_path: Path) -> None:
    for given in ("digits", "tune_spaces/digits.yaml"):
        assert check(["tune", given, "--trials", "3"]) == {"recipe": "digits", "space": given}
    space = tmp_path / "own.yaml"
    (tmp_path / "mine.yaml").write_text("joint: {epochs: 2}\n")
    space.write_text("recipe: mine.yaml\nspace: {gate.temperature: {uniform: [1, 2]}}\n")
    with pytest.raises(UserError, match=r"mine\.yaml is a file, and a job takes along only"):
        check(["tune", str(space)])
    space.write_text("recipe: digits\nspace: {gate.temprature: {uniform: [1, 2]}}\n")
    with pytest.raises(UserError, match="there is no such path"):
        check(["tune", str(space)])


def test_checked_before_it_is_submitted() -> None:
    assert check(["train", "digits", "--workers", "1..4"]) == {"recipe": "digits"}
    assert check(["evaluate", "models:/m/1", "--workers", "2"]) == {}
    for arguments in ([], ["submit", "train"], ["jobs", "list"], ["nonesuch"]):
        with pytest.raises(UserError, match="expected one of"):
            check(arguments)
    with pytest.raises(UserError, match="nonesuch"):
        check(["train", "nonesuch"])
    with pytest.raises(UserError, match="experts"):
        check(["train", "digits", "--set", "experts.widht=3"])


def test_variables() -> None:
    assert variable("NCCL_DEBUG=INFO=x") == ("NCCL_DEBUG", "INFO=x")
    for text in ("NCCL_DEBUG", "=x", "a b=3"):
        with pytest.raises(UserError, match="expected NAME=VALUE"):
            variable(text)
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        with pytest.raises(UserError, match="secrets") as info:
            variable(f"{name}=hunter2")
        assert "hunter2" not in str(info.value)
    refuse_passwords({"MLFLOW_TRACKING_URI": "https://mlflow.example/x@y", "A": "b"})
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: holds a password") as refusal:
        refuse_passwords({"MLFLOW_TRACKING_URI": "https://me:hunter2@mlflow.example"})
    assert "hunter2" not in str(refusal.value)


def test_driver_is_gone_when_its_process_is() -> None:
    assert provenance.is_gone(provenance.driver()) is False
    host, pid, started = provenance.driver().rsplit(":", 2)
    assert provenance.is_gone(f"{host}:{pid}:{int(started) - 100}") is True  # the number came again
    assert provenance.is_gone(f"elsewhere:{pid}:{started}") is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert provenance.is_gone(f"{host}:{ended.pid}:{started}") is True


def test_token_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmoe.on_ray.token import auth_token

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    token = auth_token()
    file = tmp_path / ".ray/auth_token"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (token, 0o600)
    assert len(token) == 64
    file.chmod(0o644)
    assert auth_token() == token
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("HOME", "/proc")
    for name in ("first", "again"):
        assert auth_token() == os.environ["RAY_AUTH_TOKEN"], f"{name}: kept by the process alone"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nonesuch"))
    with pytest.raises(UserError, match="nonesuch"):
        auth_token()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9", "no Ray cluster answers at http://127.0.0.1:9"),
        ("127.0.0.1:6379", "expected the dashboard's URL"),
    ],
)
def test_no_cluster(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with pytest.raises(UserError, match=said):
        jobs.Jobs.at(address)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("refused"), "is it up"),
        (RuntimeError("Request failed with status code 404: no job"), "no such job"),
        (
            RuntimeError("500\n\nTraceback\nValueError: bad runtime_env"),
            "ValueError: bad runtime_env",
        ),
    ],
)
def test_faults_between_here_and_the_cluster(error: Exception, said: str) -> None:
    with pytest.raises(UserError, match=said), jobs.answering("http://head:8265", "fmoe-1"):
        raise error


def test_a_dry_run_tells_the_plan_and_what_would_be_sent(tmp_path: Path) -> None:
    """No cluster is asked: there is none at that address."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipelines.cli", "submit", "--dry-run", "--json"),
            *("--address", "http://127.0.0.1:9", "--gpu-type", "l4", "--env", "NCCL_DEBUG=INFO"),
            *("train", "digits", "--workers", "2"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FMOE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["plan"]["gpus"] == 2
    assert answer["plan"]["gpu_type"] == "l4"
    assert answer["sent"]["entrypoint"] == "python -m pipelines.in_job train digits --workers 2"
    assert answer["sent"]["env"]["NCCL_DEBUG"] == "INFO"
    assert answer["sent"]["files"] > 100
    assert list(tmp_path.iterdir()) == []
