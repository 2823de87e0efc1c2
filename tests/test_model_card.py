"""`README.md` beside the weights: what it says, that names in it are text, that it is not read."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import fmoe
from fmoe import assembly, model_card, model_folder
from fmoe.config import Config
from fmoe.evaluation import wilson
from fmoe.locate import checked_target
from fmoe.markdown import block, code
from fmoe.model_card import Figures, attack, ratio
from fmoe.storage.folder import Folder
from tests.test_names import NAMES, Elements

REPORT: dict[str, Any] = {
    "clean": 0.9,
    "robust": {"fgsm": 0.6, "pgd": 0.5},
    "worst_case": 0.45,
    "images": 200,
    "eps": 8 / 255,
    "norm": "linf",
    "flags": [],
    "stages": ["fgsm", "pgd"],
    "protocol": 4,
}


def card(**changes: Any) -> dict[str, Any]:
    made = {
        "classes": ["cat", "dog"],
        "input_shape": [3, 8, 8],
        "versions": {"fmoe": "0.1.0"},
        "data": {"name": "cifar10", "digest": "d" * 64, "images": {"train": 1300, "val": 137}},
        "metrics": REPORT,
        "sha256": "a" * 64,
        "config_sha256": "b" * 64,
        "selected_on": "validation",
    }
    return made | changes


def html(text: str) -> str:
    _, _, body = text.split("---\n", 2)
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


def test_it_says_what_the_figures_are(small: Config) -> None:
    text = model_card.render(card(), small)
    low, high = wilson(90, 200)
    interval = f"{100 * low:.1f} to {100 * high:.1f}%"
    assert f"| worst case | 45.0% | {interval} | 200 |" in text
    assert "| `pgd` | 50.0% |" in text
    assert "ℓ∞ ε = 8/255" in text
    assert "No flag" in text
    assert "| `fgsm` | 1 | `resnet18 of width 4` | `fgsm` (eps 0.02, " in text
    assert "| `train` | 1,300 |" in text
    assert "without AutoAttack" in text
    told = html(text)
    assert told.count("<table>") == 4  # figures, data, experts, files
    assert "fmoe.load('FOLDER')" in Elements(told).text


def test_flags_are_told(small: Config) -> None:
    report = REPORT | {"flags": ["random: two passes differ"], "stages": ["pgd", "autoattack.fab"]}
    text = model_card.render(card(metrics=report), small)
    assert "**1 flag**" in text
    assert "- `random: two passes differ`" in text
    assert "without AutoAttack" not in text


@pytest.mark.parametrize(
    "metrics",
    [{}, {"clean": "x"}, REPORT | {"worst_case": float("nan")}, REPORT | {"images": 0},
     REPORT | {"robust": 3}, REPORT | {"flags": {}}],
)  # fmt: skip
def test_figures_that_make_no_sense_are_left_out(metrics: dict[str, Any], small: Config) -> None:
    text = model_card.render(card(metrics=metrics), small)
    assert "No figures are kept with it" in text
    assert "model-index" not in text
    assert "## Figures" not in text


def read(text: str) -> Any:
    """By Hugging Face's own library."""
    return ModelCard(text).data


def test_hugging_face_reads_the_front_matter(small: Config) -> None:
    data = read(model_card.render(card(), small))
    assert (data.library_name, data.pipeline_tag) == ("fmoe", "image-classification")
    assert (data.datasets, data.license) == (["uoft-cs/cifar10"], None)
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {
        "worst-case accuracy, linf eps 8/255": 0.45,
        "clean accuracy": 0.9,
        "accuracy under fgsm, linf eps 8/255": 0.6,
        "accuracy under pgd, linf eps 8/255": 0.5,
    }


def test_a_set_of_ones_own_is_no_set_of_the_hub(small: Config) -> None:
    told = card(data={"name": "mine", "digest": "d" * 64})
    data = read(model_card.render(told, small))
    assert data.datasets is None
    assert data.eval_results[0].dataset_type == "mine"


MARKDOWN = {
    "heading": "# owned\n\n## owned",
    "rule": "\n---\n",
    "row": "a | b |\n| --- | --- |",
    "span": "`x` ``y`` ```z```",
    "fence": "```\n<b>x</b>\n```",
    "links": "[x](http://evil.example) <http://evil.example> ![x](http://evil.example/x.png)",
    "bare": "http://evil.example www.evil.example me@evil.example",
    "reference": "[a]: http://evil.example 'x'",
    "formula": "$`x`$ $$x$$ \\(x\\)",
    "entity": "&lt;b&gt; &#60;",
    "backslash": "a\\",
    "spaces": "   ",
    "comment": "<!-- --> <![CDATA[ x ]]>",
    "long": "x" * 900,
}


@pytest.mark.parametrize("kind", [*NAMES, *MARKDOWN])
def test_names_make_no_markdown(kind: str, small: Config) -> None:
    """The same elements as with a harmless name, and the name in full where it is short."""

    def made(name: str) -> dict[str, Any]:
        report = REPORT | {"flags": [name], "robust": {name: 0.5}, "norm": name, "stages": [name]}
        data = {"name": name, "digest": name, "images": {name: 3}}
        versions = {"fmoe": name}
        return card(
            classes=[name, "dog"], data=data, metrics=report, versions=versions, selected_on=name
        )

    name = {**NAMES, **MARKDOWN}[kind]
    text = model_card.render(made(name), small)
    other = model_card.render(made("qqq"), small)
    page, harmless = Elements(html(text)), Elements(html(other))
    assert page.elements == harmless.elements
    assert len(text.splitlines()) == len(other.splitlines())
    assert page.text.split() == harmless.text.replace("qqq", code(name)[1:-1]).split()
    front = yaml.safe_load(text.split("---\n", 2)[1])
    assert set(front) >= {"library_name", "model-index"}
    assert text.encode()


def test_code_in_a_block_does_not_end_it() -> None:
    text = block("a ``` b\n```` c\x1b[2J", "sh")
    shown = Elements(str(MarkdownIt("commonmark").render(text)))
    assert [name for name, _ in shown.elements] == ["pre", "code"]
    assert shown.text.strip() == "a ``` b\n```` c\\x1b[2J"


def test_attacks_and_radii_in_words() -> None:
    pgd = {"kind": "pgd", "eps": 0.1, "steps": [3, 5, 7], "loss": "ce"}
    assert attack(pgd) == "`pgd` (eps 0.1, steps 3, 5 or 7)"
    assert attack({"kind": "mix", "of": [{"kind": "clean"}, pgd]}).startswith(
        "a mix of `clean`, `pgd` ("
    )
    assert [ratio(8 / 255, "linf"), ratio(0.1, "linf"), ratio(0.5, "l2")] == ["8/255", "0.1", "0.5"]


def saved(folder: Path, settings: Config) -> torch.nn.Module:
    model = assembly.seeded_mixture(settings)
    weights = model.state_dict()
    model_folder.save_model(
        Folder.at(folder), weights, settings, data_digest="abc", metrics=copy.deepcopy(REPORT)
    )
    return model


def test_a_folder_has_one_and_is_read_without(tmp_path: Path, small: Config) -> None:
    saved(tmp_path, small)
    page = tmp_path / model_card.README
    _, config, kept = model_folder.load_model(Folder.at(tmp_path))
    assert page.read_text() == model_card.render(kept, config)
    page.unlink()
    fmoe.load(str(tmp_path))
    assert not page.exists()


@pytest.mark.parametrize("kind", ["pipe", "link", "huge", "folder"])
def test_a_hostile_one_is_never_read(kind: str, tmp_path: Path, small: Config) -> None:
    """A pipe would be waited for, a link would lead elsewhere."""
    saved(tmp_path, small)
    page = tmp_path / model_card.README
    page.unlink()
    if kind == "pipe":
        os.mkfifo(page)
    elif kind == "link":
        page.symlink_to("/dev/zero")
    elif kind == "huge":
        with page.open("wb") as file:
            file.truncate(1 << 40)
    else:
        page.mkdir()
    fmoe.load(str(tmp_path))
    if kind != "folder":
        assert checked_target(tmp_path) == tmp_path


def test_a_readme_alone_is_replaced_and_notes_beside_it_are_not(tmp_path: Path) -> None:
    (tmp_path / model_card.README).write_text("x")
    assert checked_target(tmp_path) == tmp_path
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is there already and is no model folder"):
        checked_target(tmp_path)


def test_figures_in_one_line() -> None:
    figures = Figures.of(REPORT)
    assert figures is not None
    assert figures.headline() == (
        "**45.0% worst case** (38.3 to 51.9%) under ℓ∞ ε = 8/255, 90.0% clean, 200 test images, "
        "no flag."
    )
