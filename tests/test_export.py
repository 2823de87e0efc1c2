"""`fmoe export`: programs of whole and branched mixtures answer as the model does, without fmoe."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

import fmoe
from fmoe import assembly, config, model_folder, programs
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.storage.folder import Folder
from pipelines.cli import main
from tests.conftest import SMALL

BRANCHED = [value for value in SMALL if not value.startswith("joint.epochs")]


@pytest.fixture(scope="module", params=["whole", "branched"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("export") / request.param
    recipe = {"whole": "digits-whole", "branched": "digits"}[request.param]
    settings = config.load(recipe, BRANCHED)
    network = assembly.seeded_mixture(settings)
    network.train()(torch.rand(64, 1, 8, 8))  # running statistics that are not those of the start
    model_folder.save_model(
        Folder.at(folder), network.state_dict(), settings, data_digest="abc", metrics={}
    )
    return folder


def export(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("count", [1, 2, 37])
def test_pt2_answers_as_the_model_does(
    count: int, model: Path, digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (file := model.parent / "program.pt2").exists():
        assert export(model, "--format", "pt2", "--to", file, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert answer["outputs"] == ["log_probabilities"]
    extra = {programs.ABOUT: ""}
    program = torch.export.load(file, extra_files=extra).module()
    x = digits.test.pixels()[:count]
    with torch.no_grad():
        assert torch.allclose(program(x), fmoe.load(str(model))(x), atol=1e-5)
    about: dict[str, Any] = json.loads(extra[programs.ABOUT])
    assert about["classes"] == list(digits.facts.classes)
    assert about["input_shape"] == [1, 8, 8]


def test_onnx_answers_as_the_model_does(
    model: Path, digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "program.onnx"
    assert export(model, "--to", file, "--gate-weights") == 0
    assert "log_probabilities, gate_weights" in capsys.readouterr().out
    onnx.checker.check_model(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    network: Any = fmoe.load(str(model))
    for count in (1, 2, 37):
        x = digits.test.pixels()[:count]
        log_probabilities, weights = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(log_probabilities), network(x), atol=1e-4)
            wanted = network.gate_weights(x)
        assert torch.allclose(torch.from_numpy(weights), wanted, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["fmoe.classes"]) == list(digits.facts.classes)
    card = json.loads((model / "model.json").read_text())
    assert about["fmoe.model_sha256"] == card["sha256"]


def test_a_program_that_answers_otherwise_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there under the name stays."""
    target = tmp_path / "kept.pt2"
    target.write_bytes(b"of before")
    exported = programs.exported

    def other(network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
        changed = assembly.seeded_mixture(config.load("digits-whole", SMALL)).eval()
        return exported(changed, shape)

    monkeypatch.setattr(programs, "exported", other)
    assert export(model, "--to", target) == 2
    assert target.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "x.tflite"], "--to x.tflite: no suffix that says the format; give --format"),
        (["--to", "x.pt2", "--format", "tflite"], "--format tflite: expected one of pt2, onnx"),
        (["--to", "folder.pt2"], "--to folder.pt2: is there already and is no .pt2 file"),
        (["--to", "notes.txt", "--format", "pt2"], "--to notes.txt: is there already"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    Path("notes.txt").write_text("mine")
    assert export("model", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line
    assert Path("notes.txt").read_text() == "mine"


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UserError, match=r"onnxruntime is not installed: pip install 'fmoe\[onnx\]'"
    ):
        programs.check_onnx()
