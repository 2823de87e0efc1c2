"""`fmoe push` by the real library, against a server that speaks the hub's few endpoints.

The hub itself was not asked: it takes weights by LFS or Xet, this server takes every file within
the commit.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from fmoe import assembly, config, model_card, model_folder
from fmoe.storage.folder import Folder
from pipelines.cli import main
from tests.conftest import SMALL

TOKEN = "hf_" + "secret" * 6
FILES = {"README.md", "model.safetensors", "config.yaml", "model.json"}


@dataclass
class Hub:
    """private: of the repository; refusing: the status with which commits are answered."""

    uri: str = ""
    private: bool = False
    refusing: int = 0
    asked: list[str] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(path)
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.uri}/team/robust"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return 200, {"files": modes}
        if "/commit/" in path:
            return self.commit([json.loads(line) for line in body.splitlines()])
        if re.fullmatch("/api/models/team/robust(/revision/main)?", path):
            return 200, {"id": "team/robust", "private": self.private, "sha": "0" * 40}
        return 404, {"error": path}

    def commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        if self.refusing:
            return self.refusing, {"error": f"you may not, {TOKEN}"}
        sent = [line["value"] for line in lines if line["key"] == "file"]
        self.files |= {one["path"]: base64.b64decode(one["content"]) for one in sent}
        url = f"{self.uri}/team/robust/commit/{'0' * 40}"
        return 200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = hub.answer(self.path.partition("?")[0], body)
            told = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.uri = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "model"
    settings = config.load("digits-whole", SMALL)
    state = assembly.seeded_mixture(settings).state_dict()
    model_folder.save_model(Folder.at(folder), state, settings, data_digest="abc", metrics={})
    return folder


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        assert (self.code, self.out) == (2, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("fmoe: ")
        for part in parts:
            assert part in line


Push = Callable[..., Ended]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Push:
    """The command in this process, to a hub at `endpoint`."""

    def push(*arguments: str | Path, endpoint: str = NOWHERE, token: str = TOKEN) -> Ended:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{os.environ['FMOE_HOME']}/token")
        with pytest.raises(SystemExit) as ended:
            main(["push", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert TOKEN not in out + err
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)

    return push


def test_as_a_program(hub: Hub, model: Path) -> None:
    """Nothing else on stdout than the answer, whatever the library prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.push", str(model), "hf:team/robust", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_ENDPOINT": hub.uri, "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["url"] == f"{hub.uri}/team/robust"
    assert TOKEN not in done.stdout + done.stderr


def test_the_verified_folder_arrives(push: Push, hub: Hub, model: Path, tmp_path: Path) -> None:
    ended = push(model, "hf:team/robust", "--json", endpoint=hub.uri)
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert answer.keys() == {"url", "files", "bytes"}
    assert answer["url"] == f"{hub.uri}/team/robust"
    assert answer["files"] == {name: len(data) for name, data in hub.files.items()}
    assert answer["bytes"] == sum(map(len, hub.files.values()))
    assert set(hub.files) == FILES
    assert f"Bearer {TOKEN}" in hub.tokens
    assert [(one["organization"], one["name"]) for one in hub.made] == [("team", "robust")]
    for name, data in hub.files.items():
        (tmp_path / name).write_bytes(data)
    _, settings, card = model_folder.load_model(Folder.at(tmp_path))
    assert hub.files["README.md"].decode() == model_card.render(card, settings)


def test_a_readme_of_others_is_not_sent(push: Push, hub: Hub, model: Path, tmp_path: Path) -> None:
    for name in FILES - {"README.md"}:
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "README.md").write_text("# owned")
    (tmp_path / "secret.txt").write_text("mine")
    assert push(tmp_path, "hf:team/robust", endpoint=hub.uri).code == 0
    assert set(hub.files) == FILES
    assert b"owned" not in hub.files["README.md"]


def test_a_dry_run_asks_nobody(push: Push, hub: Hub, model: Path) -> None:
    ended = push(model, "hf:team/robust", "--dry-run", endpoint=hub.uri, token="")
    assert ended.code == 0, ended.err
    assert hub.asked == []
    for name in FILES:
        assert f"  {name}" in ended.out
    assert f"{(model / 'model.safetensors').stat().st_size:,} bytes" in ended.out
    assert f"{hub.uri}/team/robust: would get" in ended.out


def test_private_is_asked_for_and_looked_at(push: Push, hub: Hub, model: Path) -> None:
    """A public repository that is there already does not become private by asking."""
    ended = push(model, "hf:team/robust", "--private", endpoint=hub.uri)
    ended.refused("--private: hf:team/robust is there already, and public")
    assert hub.files == {}
    hub.private = True
    assert push(model, "hf:team/robust", "--private", endpoint=hub.uri).code == 0
    assert set(hub.files) == FILES
    assert all("private" in json.dumps(one) for one in hub.made)


def test_what_the_hub_refuses_is_one_line_without_the_token(
    push: Push, hub: Hub, model: Path
) -> None:
    hub.refusing = 403
    push(model, "hf:team/robust", endpoint=hub.uri).refused("hf:team/robust: not sent", "403")


def test_no_network(push: Push, model: Path) -> None:
    push(model, "hf:team/robust").refused("hf:team/robust: not sent", "onnect")


def test_no_token(push: Push, hub: Hub, model: Path) -> None:
    ended = push(model, "hf:team/robust", endpoint=hub.uri, token="")
    ended.refused("no token of the hub", "HF_TOKEN")
    assert hub.asked == []


@pytest.mark.parametrize(
    "target",
    ["team/robust", "hf:robust", "hf:a/b/c", "hf:../x", "hf:a/b--c", "hf:a/b.git", "hf:/b", "hf:a/",
     "s3://bucket/x", "hf:a/b\x1b[2J", "hf:a/" + "b" * 96],
)  # fmt: skip
def test_other_targets(push: Push, target: str) -> None:
    push("nowhere", target).refused("expected hf:ORG/NAME")


def test_without_the_library(push: Push, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    push(model, "hf:team/robust").refused("needs huggingface-hub", "fmoe[hub]")


def test_a_damaged_model_is_not_sent(push: Push, hub: Hub, model: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((model / name).read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + b"x")
    push(tmp_path, "hf:team/robust", endpoint=hub.uri).refused("model.safetensors", "sha256")
    assert hub.asked == []
