"""MLflow stores that are away, cannot be opened or have lost something: one line, soon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from fmoe import paths, tracking
from fmoe.errors import UserError
from fmoe.storage import folder as storage
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker, experiments, own, readiness
from fmoe.tracking import named as named_store

SOON = 30.0


@contextlib.contextmanager
def soon() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SOON


def refused(check: Callable[[], object], *parts: str) -> str:
    with soon(), pytest.raises(UserError) as caught:
        check()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is waited for a moment: see the next test."""
    monkeypatch.setattr(named_store, "ANSWER_SECONDS", 1.5)
    monkeypatch.setattr(readiness, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(own, "PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr(storage, "FIRST_ANSWER_SECONDS", 3.0)


def test_what_is_waited_for_is_given_up_soon() -> None:
    longest = (
        2 * named_store.ANSWER_SECONDS,
        readiness.ANSWER_SECONDS,
        own.PATIENCE_SECONDS,
        storage.FIRST_ANSWER_SECONDS,
    )
    assert max(longest) <= SOON - 5


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def answering(
    code: int, body: bytes = b"no", context: ssl.SSLContext | None = None
) -> Iterator[int]:
    """An HTTP server that is healthy and answers everything else with the code, or 0: with
    nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not code and self.path != "/health":
                time.sleep(40)
            self.send_response(code if code and self.path != "/health" else 200)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("postgresql://me:hunter2@db.example/mlflow", ["psycopg", "pip install"]),
        ("postgresql+psycopg2://me:hunter2@db.example/mlflow", ["pip install 'psycopg2-binary'"]),
        ("mysql+pymysql://me:hunt/er2@db.example/mlflow", ["pip install 'pymysql'"]),
        ("mysql://me:hunter2@db.example/mlflow", ["pip install 'mysqlclient'"]),
        ("mssql+pyodbc://me:hunter2@db.example/mlflow", ["pip install 'pyodbc'"]),
        ("mysql+nonesuch://me:hunter2@db.example/x", ["expected http(s)://"]),
        ("nonesuch://me:hunter2@db.example/x", ["unknown kind of store", "sqlite:///"]),
        ("file:///tmp/mlruns", ["plain folders", "unset it"]),
        ("/tmp/mlruns", ["plain folders", "unset it"]),
        ("mlruns", ["plain folders", "unset it"]),
        ("databricks", ["databricks"]),
        ("databricks-uc", ["databricks-uc"]),
        ("sqlite:////proc/nonesuch/mlflow.db", ["cannot be made"]),
        ("sqlite:////tmp", ["is a folder"]),
        ("http://127.0.0.1:9", ["away", "unset MLFLOW_TRACKING_URI"]),
        ("http://nonesuch.invalid", ["away"]),
        ("http://", ["away"]),
    ],
)
def test_a_store_that_cannot_be(
    uri: str, parts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    text = refused(readiness.check, *parts)
    assert not {"hunter2", "er2", "hunt"} & set(text.replace("@", " ").replace(":", " ").split())
    assert "hunter2" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_hasty")
def test_servers_that_hang_refuse_or_want_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        refused(readiness.check, "away (ReadTimeout)")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{port}")
        refused(readiness.check, f"https://127.0.0.1:{port}", "away")
    with answering(0) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        refused(readiness.check, f"http://127.0.0.1:{port}", "no answer")
    for code, part in ((401, "MLFLOW_TRACKING_USERNAME"), (403, "MLFLOW_TRACKING_USERNAME"),
                       (404, "404")):  # fmt: skip
        with answering(code) as port:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            refused(readiness.check, f"http://127.0.0.1:{port}", part)
            refused(lambda: tracking.find_version("models:/x/1"), "models:/x/1")


def test_a_certificate_that_nobody_signed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with answering(200, context=context) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://localhost:{port}")
        refused(readiness.check, "certificate", "MLFLOW_TRACKING_SERVER_CERT_PATH")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store as MLflow makes it, which takes it seconds."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMOE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.client()
    return home / "mlflow"


@pytest.fixture
def _store(made: Path) -> None:
    """The test's home has a store already."""
    shutil.copytree(made, paths.home() / "mlflow")


def database() -> Path:
    return paths.home() / "mlflow" / "mlflow.db"


def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store by its URI instead of by default, through another path."""
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"sqlite:///{paths.home()}/mlflow/../mlflow/mlflow.db"
    )


@pytest.fixture(params=["own", "named"])
def either(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_damaged_database(either: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database().parent.mkdir()
    database().write_bytes(b"no database" * 1000)
    if either == "named":
        named(monkeypatch)
    refused(readiness.check, "mlflow.db", "damaged", "backup")


@pytest.mark.usefixtures("_store")
def test_a_locked_database(either: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "PATIENCE_SECONDS", 3.0)
    tracking.client()
    if either == "named":
        named(monkeypatch)
    with contextlib.closing(sqlite3.connect(database(), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        refused(tracking.client, "mlflow.db", "locked by another program")


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize(
    ("revision", "remedy"),
    [
        ("0123456789ab", "pip install --upgrade mlflow"),
        ("451aebb31d03", "mlflow db upgrade sqlite"),
    ],
)
def test_a_database_of_another_mlflow(revision: str, remedy: str, either: str, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    tracking.client()
    elsewhere = tmp_path / "home"  # mlflow keeps in mind what it has opened
    paths.home().rename(elsewhere)
    monkeypatch.setenv("FMOE_HOME", str(elsewhere))
    if either == "named":
        named(monkeypatch)
    with contextlib.closing(sqlite3.connect(database())) as store, store:
        store.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    refused(tracking.client, "mlflow.db", remedy)


@pytest.mark.usefixtures("_hasty", "_store")
def test_another_process_that_hangs_while_it_opens_the_store() -> None:
    tracking.client()
    code = (
        "import sys, time, filelock\n"
        "with filelock.FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    lock = database().parent / ".lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            refused(tracking.client, "another process")
        finally:
            holder.kill()


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize(
    ("location", "module", "package"),
    [
        ("s3://bucket/x", "boto3", "pip install boto3"),
        ("gs://bucket/x", "google.cloud.storage", "pip install google-cloud-storage"),
        ("wasbs://c@a.blob.core.windows.net/x", "azure", "pip install azure-storage-blob"),
        ("abfss://c@a.dfs.core.windows.net/x", "azure", "azure-storage-file-datalake"),
        ("sftp://me:hunter2@host/x", "pysftp", "pip install pysftp"),
    ],
)
def test_a_library_that_artifacts_need(
    location: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    tracking.client().create_experiment("far", location)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "far")
    assert "hunter2" not in refused(readiness.check, "experiment far", package)


def test_the_library_is_missed_before_anything_is_trained(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from fmoe import tracking\n"
        "tracking.client().create_experiment('far', 's3://bucket/x')\n"
        "from pipelines.cli import main; main(['train', 'digits', '--name', 'a'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "FMOE_HOME": str(tmp_path), "MLFLOW_EXPERIMENT_NAME": "far"},
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "pip install boto3" in done.stderr
    assert not (tmp_path / "experts").exists()


@pytest.mark.usefixtures("_store")
def test_artifacts_that_cannot_be_written_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, location in (("unknown", "nonesuch://x"), ("away", "file:///proc/nonesuch/x")):
        tracking.client().create_experiment(name, location)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        refused(readiness.check, f"experiment {name}", location)


@pytest.mark.usefixtures("_store")
def test_the_experiment_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tëam/[red] 'x' %20")
    tracker = Tracker.start("a", {}, {}, None)
    store = tracking.client()
    ours = store.get_experiment(store.get_run(tracker.run_id).info.experiment_id)
    assert ours.name == "tëam/[red] 'x' %20"
    assert ours.artifact_location == (paths.home() / "mlflow" / "artifacts").as_uri()
    assert [run.id for run in tracking.running()] == [tracker.run_id]
    assert store.get_experiment_by_name("fmoe") is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "fmoe")
    assert tracking.running() == []
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", ours.experiment_id)
    assert [run.id for run in tracking.running()] == [tracker.run_id]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "fmoe")
    refused(readiness.check, "MLFLOW_EXPERIMENT_ID", "unset one of them")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
    refused(readiness.check, "MLFLOW_EXPERIMENT_ID 4711")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "x" * 1000)
    refused(readiness.check, "MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv(
        "MLFLOW_EXPERIMENT_NAME", "Default"
    )  # MLflow keeps it in a working directory
    readiness.check()
    found = experiments.current(tracking.client())
    assert found.artifact_location == (paths.home() / "mlflow" / "artifacts").as_uri()


@pytest.mark.usefixtures("_store")
def test_a_run_goes_on_in_its_experiment_though_another_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Tracker.start("a", {}, {}, None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    again = Tracker.start("a", {}, {}, first.run_id)
    assert (again.run_id, again.note) == (first.run_id, None)
    child = Tracker.start("b", {}, {"mlflow.parentRunId": first.run_id}, None)
    child.finish("FINISHED")
    assert again.ended_children() == {child.run_id}


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize("fate", ["deleted", "elsewhere", "experiment"])
def test_a_run_that_is_gone(fate: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = Tracker.start("a", {"p": "1"}, {}, None)
    first.log({"x": 1.0}, 0)
    store = tracking.client()
    if fate == "deleted":
        store.delete_run(first.run_id)
    elif fate == "experiment":
        store.delete_experiment(store.get_run(first.run_id).info.experiment_id)
        text = refused(
            lambda: Tracker.start("a", {}, {}, first.run_id), "experiment fmoe is deleted"
        )
        command = text.split("`")[1]
        subprocess.run(
            command, shell=True, check=True, capture_output=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert Tracker.start("a", {}, {}, first.run_id).run_id == first.run_id
        return
    else:
        monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    second = Tracker.start("a", {"p": "1"}, {}, first.run_id)
    assert second.run_id != first.run_id
    assert second.note is not None
    assert first.run_id in second.note
    second.log({"x": 1.0}, 0)  # nothing is taken for logged that only the other run has
    history = tracking.client().get_metric_history(second.run_id, "x")
    assert [metric.step for metric in history] == [0]


@pytest.mark.usefixtures("_store")
def test_the_store_is_not_chosen_for_the_rest_of_the_process(tmp_path: Path) -> None:
    tracker = Tracker.start("a", {}, {}, None)
    with tracking.store.selected():
        assert os.environ["MLFLOW_TRACKING_URI"]
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert tracking.store_uri() == f"sqlite:///{database()}"
    tracker.finish("FINISHED")


def test_what_a_moved_home_wrote_to_its_old_place_is_brought(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As fmoe 0.1.0 left it: trained, moved, trained again, which made the old path anew."""
    old, new = tmp_path / "old", tmp_path / "new"
    monkeypatch.setenv("FMOE_HOME", str(old))
    before = Tracker.start("a", {}, {}, None)
    before.log_texts({"a.txt": "a"})
    old.rename(new)
    late = MlflowClient(f"sqlite:///{new}/mlflow/mlflow.db")
    experiment = late.get_experiment_by_name("fmoe")
    assert experiment is not None
    run = late.create_run(experiment.experiment_id)
    late.log_text(run.info.run_id, "b", "b.txt")
    assert old.exists()
    monkeypatch.setenv("FMOE_HOME", str(new))
    store = tracking.client()
    locations = {store.get_run(r).info.artifact_uri for r in (before.run_id, run.info.run_id)}
    assert all(uri.startswith((new / "mlflow" / "artifacts").as_uri()) for uri in locations)
    for run_id, name in ((before.run_id, "a"), (run.info.run_id, "b")):
        assert Path(store.download_artifacts(run_id, f"{name}.txt")).read_text() == name
        assert (new / "mlflow" / "artifacts" / run_id / "artifacts" / f"{name}.txt").exists()


@pytest.mark.usefixtures("_store")
def test_a_location_of_the_users_own_is_left(tmp_path: Path) -> None:
    own_place = (tmp_path / "mine").as_uri()
    tracking.client().create_experiment("mine", own_place)
    found = tracking.client().get_experiment_by_name("mine")
    assert found is not None
    assert found.artifact_location == own_place


def test_a_home_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, part in (("file", "is a file"), ("file/under", "cannot be"), ("loop", "FMOE_HOME")):
        monkeypatch.setenv("FMOE_HOME", str(tmp_path / path))
        refused(readiness.check, str(tmp_path), part)
    monkeypatch.setenv("FMOE_HOME", "/proc/nonesuch")
    refused(readiness.check, "/proc/nonesuch", "cannot be written", "FMOE_HOME")
    monkeypatch.setenv("FMOE_HOME", "~/x")
    assert paths.home() == Path.home().resolve() / "x"


def test_a_user_without_a_home_folder() -> None:
    """A number without an entry in passwd, and no HOME, as in many containers."""
    variables = {k: v for k, v in os.environ.items() if k not in ("HOME", "FMOE_HOME")}
    code = (
        "import os\nfrom fmoe import paths\nfrom fmoe.errors import UserError\nos.setuid(54321)\n"
        "try: paths.home()\nexcept UserError as error: print(error)"
    )
    if os.getuid():
        pytest.skip("needs root")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=True
    )
    assert "set FMOE_HOME" in done.stdout


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("kind", ["silent", "refusing", "unknown"])
def test_an_object_store_that_cannot_be_reached(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole commands, with the end of the process, which waits for pyarrow's own threads."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(silent()) if kind == "silent" else 9
        host = "nonesuch.invalid" if kind == "unknown" else f"127.0.0.1:{port}"
        uri = f"s3://bucket/x?endpoint_override={host}&scheme=http&region=us-east-1"
        with (
            soon(),
            subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "train", "digits", "--storage", uri],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as command,
        ):
            refused(lambda: Folder.at(uri).reach(), "s3://bucket/x", "cannot be reached")
            _, said = command.communicate()
    assert (command.returncode, len(said.splitlines())) == (2, 1), said
    assert "s3://bucket/x" in said


def test_a_question_mark_in_a_folders_name(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "a?b %20") / "c"
    folder.write_json("x.json", {"a": 1})
    assert json.loads((tmp_path / "a?b %20" / "c" / "x.json").read_text()) == {"a": 1}
    assert folder.name == "c"
