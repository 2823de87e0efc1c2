"""`fmoe predict`: files and folders, the forms of its rows, what is no picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fmoe import assembly, model_folder
from fmoe.config import Config
from fmoe.data import Data
from fmoe.locate import load_model
from fmoe.storage.folder import Folder
from pipelines.cli import main


@pytest.fixture
def model(small: Config, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    state = assembly.seeded_mixture(small).state_dict()
    model_folder.save_model(Folder.at(folder), state, small, data_digest="abc", metrics={})
    return folder


@pytest.fixture
def photos(digits: Data, tmp_path: Path) -> Path:
    """Twelve of the test images, the last three in a folder of their own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(12):
        place = folder / "more" if i > 8 else folder
        Image.fromarray(digits.test.images[i][0].numpy()).save(place / f"{i}.png")
    return folder


def predict(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, arguments)])
    return int(ended.value.code or 0)


NAMES = [*(f"{i}.png" for i in range(9)), "more/9.png", "more/10.png", "more/11.png"]


def test_a_folders_rows_are_the_models_answers(
    model: Path, photos: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    """As CSV and as JSON lines, in batches of five: what the model says of all images at once."""
    x = digits.test.images[:12].float() / 255
    with torch.no_grad():
        network = load_model(str(model))
        probabilities, weights = network(x).exp(), network.gate_weights(x)
    assert predict(model, photos, "--format", "csv", "--batch", "5") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert predict(model, photos, "--format", "jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(photos / name) for name in NAMES]
    assert [line["image"] for line in lines] == [row["image"] for row in rows]
    for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
        best = int(probabilities[i].argmax())
        assert row["label"] == line["label"] == digits.facts.classes[best]
        assert float(row["probability"]) == pytest.approx(float(probabilities[i, best]), abs=1e-6)
        by_name = {name.removeprefix("weight_"): float(row[name]) for name in list(row)[3:]}
        assert by_name == pytest.approx(line["gate_weights"], abs=1e-6)
        assert list(by_name.values()) == pytest.approx(weights[i].tolist(), abs=1e-6)


def test_what_is_no_picture_ends_it_or_is_named(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.png").write_text("no picture")
    (photos / "labels.txt").write_text("0 1 2")
    assert predict(model, photos, "--batch", "4") == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 8  # what came before is not lost
    assert f"{photos / 'bad.png'}: not a readable image" in err.splitlines()[-1]
    assert predict(model, photos, "--skip-unreadable", "--json") == 2
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert [one["image"] for one in answer["predictions"]] == [str(photos / name) for name in NAMES]
    (told,) = answer["unreadable"]
    assert told.startswith(f"{photos / 'bad.png'}: ")
    assert "1 files without an image's suffix" in err
    assert err.splitlines()[-1] == "fmoe: 1 of 13 images could not be read"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty"], "empty: holds no image (.bmp, "),
        (["photos", "--format", "xml"], "--format xml: expected one of text, csv, jsonl"),
        (["photos", "--format", "csv", "--json"], "--format csv: --json writes one object"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    said: str,
    model: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    assert predict(model, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line
