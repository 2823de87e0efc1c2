"""`python:package.module:callable`, `robustbench:…`, and RobustBench's form of a result."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmoe.data import Data
from fmoe.errors import UserError
from pipelines.judging import model_info, opened
from pipelines.judging.python_model import PythonModel, weights_digest
from pipelines.judging.robustbench_model import RobustBenchModel

CODE = """
from torch import nn

SCALE = 1.0

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return SCALE * self.head(x.flatten(1))

class Space:
    @staticmethod
    def made():
        return Net()

instance = Net()

def number():
    return 3

def leaves():
    raise SystemExit(0)

class Silent(Net):
    def eval(self):
        self.train(False)

def lazy():
    return nn.LazyLinear(3)

def fails():
    raise RuntimeError("no weights\\nhere")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in the working directory."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path / "theirs" / "nets.py"
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["Net", "Space.made", "instance", "Silent"])
def test_what_it_may_name(name: str, code: Path) -> None:
    """A class, a function, a module; a worker makes it again by a small pickle."""
    subject = pickle.loads(pickle.dumps(PythonModel.named(f"python:theirs.nets:{name}")))
    model = subject.build()
    assert isinstance(model, nn.Module)
    assert not model.training
    assert len(pickle.dumps(subject)) < 500


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("theirs.nets", "expected python:package.module:callable"),
        ("theirs.nets:a b", "expected python:package.module:callable"),
        ("theirs/nets.py:Net", "expected python:package.module:callable"),
        ("theirs.none:Net", r"No module named 'theirs.none' \(looked for in .* and what is inst"),
        ("theirs.nets:none", "module 'theirs.nets' has no attribute 'none'"),
        ("theirs.nets:number", "gives a int; expected a torch.nn.Module"),
        ("theirs.nets:leaves", "SystemExit: 0"),
        ("theirs.nets:lazy", "weight has no values"),
        ("pipelines.nets:Net", "pipelines is a package of fmoe's: rename yours"),
        ("theirs.nets:fails", "RuntimeError: no weights$"),
    ],
)
def test_what_it_may_not(name: str, message: str, code: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened.opened(f"python:{name}")
    assert "\n" not in str(caught.value)


def test_a_key_for_each_behaviour(code: Path, digits: Data) -> None:
    """Weights, files and answers: what was kept of another is not taken for it."""
    opened.opened("python:theirs.nets:Net")  # whose import draws, too
    torch.manual_seed(0)
    one = opened.opened("python:theirs.nets:Net")
    torch.manual_seed(0)
    same = opened.opened("python:theirs.nets:Net")
    assert (one.key, one.answers(digits.test)) == (same.key, same.answers(digits.test))
    other = opened.opened("python:theirs.nets:Net")
    assert other.key != one.key
    assert other.sha256 != one.sha256 == weights_digest(one.network)
    sys.modules["theirs.nets"].SCALE = 2.0  # type: ignore[attr-defined]
    scaled = one.answers(digits.test)
    sys.modules["theirs.nets"].SCALE = 1.0  # type: ignore[attr-defined]
    assert one.answers(digits.test) != scaled
    code.write_text(CODE + "# changed")
    torch.manual_seed(0)
    assert opened.opened("python:theirs.nets:Net").key != one.key


def test_digests_are_of_any_tensors() -> None:
    model = nn.BatchNorm1d(3)
    before = weights_digest(model)
    model.running_mean = torch.ones(3)
    assert len({before, weights_digest(model), weights_digest(model.to(torch.bfloat16))}) == 3
    assert weights_digest(nn.Identity()) != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "robustbench:cifar10/Linf",
            "expected robustbench:DATA/THREAT/NAME, with one of cifar10/L",
        ),
        ("robustbench:cifar10/L1/X", "expected robustbench:DATA/THREAT/NAME"),
        ("robustbench:cifar10/Linf/Standard", "needs RobustBench: pip install git"),
    ],
)
def test_robustbench(name: str, message: str) -> None:
    """The library is not installed for tests; its weights need a network."""
    with pytest.raises(UserError, match=message):
        opened.opened(name)


def test_boards_have_their_threat_models() -> None:
    wanted = RobustBenchModel.named("robustbench:cifar10/L2/Name").wanted
    assert (wanted.norm, wanted.eps) == ("l2", 0.5)
    assert RobustBenchModel.named("robustbench:imagenet/Linf/Name").wanted.eps == 4 / 255


ANSWER: dict[str, Any] = {
    "model": "runs/mine", "clean": 0.8412, "robust": {"pgd": 0.52, "autoattack": 0.49015},
    "worst_case": 0.48, "data": "cifar10", "eps": 8 / 255, "norm": "linf", "images": 10_000,
    "test_images": 10_000, "protocol": 3, "seed": 0, "flags": [],
}  # fmt: skip


def test_the_form_of_robustbench(tmp_path: Path) -> None:
    model_info.write(tmp_path / "new" / "mine.json", ANSWER)
    found = json.loads((tmp_path / "new" / "mine.json").read_text())
    assert found["clean_acc"] == "84.12"
    assert found["autoattack_acc"] == found["reported"] == "49.02"
    assert found["external"] == "48.00", "an attack of ours that is stronger"
    assert (found["eps"], found["dataset"], found["unreliable"]) == ("8/255", "cifar10", False)
    flagged = model_info.model_info({**ANSWER, "flags": ["masked-gradient: seen"]})
    assert flagged["unreliable"] is True
    assert "flag: masked-gradient: seen" in flagged["footnote"]


@pytest.mark.parametrize(
    ("eps", "norm", "said"), [(8 / 255, "linf", "8/255"), (0.5, "l2", "0.5"), (0.1, "linf", "0.1")]
)
def test_eps_as_boards_write_it(eps: float, norm: str, said: str) -> None:
    assert model_info.ratio(eps, norm) == said


def test_the_form_needs_autoattack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--robustbench-json .*: the board's figure is autoattack"):
        model_info.check(["fgsm", "pgd"], tmp_path / "x.json")
    model_info.check(["fgsm", " autoattack"], tmp_path / "x.json")
