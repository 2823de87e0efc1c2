"""Names of files, models and classes are text: on the terminal, in pages and in plots."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch import nn

from fmoe import assembly, config, model_folder
from fmoe.attacks.threat import Linf
from fmoe.data import Data
from fmoe.errors import plain
from fmoe.evaluation import examples
from fmoe.plots import report as report_plots
from fmoe.plots import run as run_plots
from fmoe.storage.folder import Folder
from fmoe.tuning.search_space import load as load_space
from fmoe.tuning.trials import Trial
from pipelines.display import Display
from pipelines.judging.reporting import template
from pipelines.study.display import StudyDisplay
from tests.conftest import SMALL

NAMES = {
    "colour": "\x1b[31mred\x1b[0m",
    "screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "eight bits": "\x9b31mred\x9d0;x\x9c",
    "lines": "a\nfmoe: all is well\r\x0b\x0c\x1c\x85\u2028\u2029b",
    "delete": "abc\x7f\x08\x08",
    "direction": "gpj.\u202eexe\u2066\u2069\u200f\u061c",
    "unseen": "a\u200bb\u2060c\ufeff\xad\U000e0041",
    "markup": "[red]x[/red] [link=http://evil.example]y[/link] [/] :warning:",
    "element": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "quotes": "\"'`><svg onload=alert(1)>",
    "template": "{{7*7}}{% raw %}{#",
    "format": "%s%n %(x)s {0} {x!r}",
    "formula": r"$x^2$ \frac $\undefined{ $$ \$",
    "hidden in legends": "_leading",
    "tofu": "猫 🐈 नाम",
    "letters": "Ünïcödé ß",
}


@pytest.mark.parametrize("kind", NAMES)
def test_written_out_is_one_line_that_is_seen(kind: str) -> None:
    shown = plain(NAMES[kind])
    assert {unicodedata.category(c) for c in shown}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert len(shown.splitlines()) == 1
    if kind in ("letters", "tofu", "markup", "formula", "element"):
        assert shown == NAMES[kind]


def test_what_is_written_out_can_be_told() -> None:
    assert plain("a\x1b[1m\n\u202eb\udc80") == r"a\x1b[1m\n\u202eb\udc80"


# The terminal


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names") / "model"
    settings = config.load("digits-whole", SMALL)
    state = assembly.seeded_mixture(settings).state_dict()
    model_folder.save_model(Folder.at(folder), state, settings, data_digest="abc", metrics={})
    return folder


def fmoe(*arguments: str | Path | bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def assert_text(out: bytes) -> list[str]:
    """No byte but of characters that are seen, and of ends of lines."""
    lines = out.decode().split("\n")
    assert all(line == plain(line) for line in lines), lines
    return lines[:-1]


def file_name(name: str) -> bytes:
    return os.fsencode(name.replace("/", "|")) + b".png"


def test_pictures_names_are_text_in_predictions(model: Path, tmp_path: Path) -> None:
    """One call with all of them, one that is not UTF-8 among them."""
    files = [os.fsencode(tmp_path) + b"/" + file_name(name) for name in NAMES.values()]
    files.append(os.fsencode(tmp_path) + b"/\x1b\xff\xfe.png")
    for file in files:
        Image.new("L", (8, 8)).save(os.fsdecode(file), "png")
    ended = fmoe("predict", model, *files)
    assert ended.returncode == 0, ended.stderr
    lines = assert_text(ended.stdout)
    assert len(lines) == len(files)
    for line, name in zip(lines, NAMES.values(), strict=False):
        assert f"/{plain(name.replace('/', '|'))}.png: " in line
    assert r"\x1b\udcff\udcfe.png" in lines[-1]
    asked = fmoe("predict", model, "--json", *files)
    (line,) = assert_text(asked.stdout)
    found = [one["image"] for one in json.loads(line)["predictions"]]
    assert [os.fsencode(image) for image in found] == files


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "MODEL", "NAME"),
        ("predict", "NAME", "x.png"),
        ("evaluate", "NAME"),
        ("evaluate", "MODEL", "--eps", "NAME"),
        ("compare", "NAME", "MODEL"),
        ("train", "NAME"),
        ("train", "digits", "--set", "NAME"),
        ("train", "digits", "--set", "NAME=1"),
        ("train", "digits", "--name", "NAME"),
        ("tune", "NAME"),
        ("studies", "show", "NAME"),
        ("data", "prepare", "NAME"),
        ("NAME",),
    ],
    ids=" ".join,
)
def test_names_are_text_in_refusals(arguments: tuple[str, ...], model: Path) -> None:
    name = "".join(NAMES[kind] for kind in ("link", "lines", "direction", "eight bits", "markup"))
    places = {"NAME": name.replace("/", "|"), "MODEL": str(model)}
    ended = fmoe(*(re.sub("NAME|MODEL", lambda m: places[m[0]], a) for a in arguments))
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == b""
    (line,) = assert_text(ended.stderr)
    assert line.startswith("fmoe: ")
    assert "\\x1b]8;;http:||evil" in line


@pytest.mark.parametrize("kind", NAMES)
def test_progress_shows_names_as_text(kind: str) -> None:
    out, display = io.StringIO(), Display()
    display.progress.live.console = Console(
        file=out, force_terminal=True, color_system=None, width=400, highlight=False
    )
    display.line(f"evaluate {NAMES[kind]}")
    display.task(f"evaluate {NAMES[kind]}", 3)
    display.progress.live.console.print(display.progress.get_renderable())
    said, bar, *_ = out.getvalue().split("\n")
    assert said == f"evaluate {plain(NAMES[kind])}"
    assert bar.startswith(f"evaluate {plain(NAMES[kind])} ")


@pytest.mark.parametrize("kind", NAMES)
def test_study_shows_names_as_text(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "recipe: digits\nbudget: {trials: 1}\nspace:\n  gate.temperature: {choice: [1]}\n"
    )
    display = StudyDisplay(load_space(str(file)))
    out = io.StringIO()
    display.console = Console(
        file=out, force_terminal=True, color_system=None, width=600, highlight=False
    )
    display.console.print(display.table([Trial(0, {"gate.temperature": NAMES[kind]})]))
    display.line(NAMES[kind])
    assert plain(json.dumps(NAMES[kind]).strip('"')) in out.getvalue()
    assert plain(NAMES[kind]) in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_model_whose_name_is_not_utf8_is_refused(command: str, model: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J"))
    shutil.copytree(model, folder)
    ended = fmoe(command, folder, *["x.png"] * (command == "predict"))
    assert ended.returncode == 2
    (line,) = assert_text(ended.stderr)
    assert r"\udcff\x1b[2J: the name is not UTF-8" in line


# Pages


class Elements(HTMLParser):
    """Counts elements and collects text and attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report_page(name: str) -> str:
    """Everything that is a text in a report is the name."""
    answer: dict[str, Any] = {
        "flags": [name],
        "notes": [name],
        "worst_case": 0.5,
        "clean": 0.9,
        "robust": {name: 0.5},
        "interval95": {"worst_case": [0.4, 0.6], name: [0.4, 0.6]},
        "images": 4,
        "data": name,
        "eps": 0.1,
        "full": False,
        "by_class": {name: {"images": 4, "clean": 0.9, "robust": {name: 0.5}, "worst_case": 0.5}},
        "attack_seconds": {name: 1.0},
        "mixture": {
            "experts": [{"name": name, "clean": 0.5, "pgd": 0.1}],
            "weights": {"clean": [1.0]},
            "itself": 0.1,
        },
        "protocol": name,
        "seed": 0,
        "stages": [name],
    }
    figures = [{"png": "", "caption": name, "width": 1, "height": 1}]
    return template("report.html").render(
        norm="ℓ∞",
        title=f"{name}: robustness",
        answer=answer,
        accuracies=[(name, 0.5)],
        figures=figures,
        skipped={name: [name]},
        facts={name: name},
    )


def comparison_page(name: str) -> str:
    one: dict[str, Any] = {"model": name, "figures": {name: 0.5}, "flags": [name]}
    one |= {"notes": [name], "images": 4, "data": name}
    row = {"model": name, "attack": name, "difference": 0.1, "interval95": [0.0, 0.2]}
    row |= {"only_it": 1, "only_first": 0, "p_value": 0.5}
    return template("comparison.html").render(
        norm="ℓ∞",
        title=name,
        answer={"models": [one, one], "differences": [row]},
        first={**one, "eps": 0.1},
        names=[name],
        figures=[{"png": "", "caption": name, "width": 1, "height": 1}],
    )


@pytest.mark.parametrize("page", [report_page, comparison_page])
@pytest.mark.parametrize("kind", NAMES)
def test_names_in_pages_make_no_elements(kind: str, page: Any) -> None:
    name = NAMES[kind] + "\udc80"
    made, harmless = Elements(page(name)), Elements(page("name"))
    assert made.elements == harmless.elements
    assert made.text == harmless.text.replace("name", plain(name))
    page(name).encode()


# Plots


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_plots_are_drawn_as_they_are(kind: str, digits: Data) -> None:
    """Warnings are errors: a glyph that is missing, a formula that is none."""
    name = NAMES[kind]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # any label: all have this name
    attacked = examples.first(model, digits.test, Linf(eps=0.1), count=2)
    figures = [
        run_plots.adversarial_row(attacked, [name] * 10),
        run_plots.gate_weights([{"gate_weight_0": 0.4, "gate_weight_1": 0.6}] * 2, [name, "b"]),
        report_plots.curves({name: [(0, 1.0), (1, 0.5)], "b": [(0, 1.0), (1, 0.5)]}, "steps"),
        report_plots.matrix([[0.5, 0.5], [0.5, 0.5]], [name, "b"]),
        report_plots.weights({"clean": [0.5, 0.5]}, [name, "b"]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figures:
            assert run_plots.png(figure).startswith(b"\x89PNG")
    legends = [texts(figure) for figure in figures[1:3]]
    assert all(run_plots.label(name) in legend for legend in legends)


def texts(figure: Figure) -> list[str]:
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_dollar_is_a_dollar() -> None:
    """Drawn as `x` in italics and a square, the picture would be another than that of its text."""
    drawn = []
    for text in (run_plots.label("$x^2$ costs 5$"), r"\$x^2\$ costs 5\$"):
        figure = Figure(figsize=(3, 1))
        figure.text(0.1, 0.5, text)
        drawn.append(run_plots.png(figure))
    figure = Figure(figsize=(3, 1))
    figure.text(0.1, 0.5, "$x^2$ costs 5$", parse_math=False)
    assert drawn[0] == drawn[1] == run_plots.png(figure)
