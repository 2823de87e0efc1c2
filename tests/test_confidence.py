"""Combining by confidence: the map and the sum by hand, its fit, and attacks that go round it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmoe import assembly, config, data, model_folder
from fmoe.attacks.threat import Linf
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.evaluation.mixture_suite import mixings
from fmoe.models.confidence import Confidence, TwoParts
from fmoe.models.mixture import Mixture, mix_probabilities
from fmoe.numerics.precision import Numerics
from fmoe.storage.folder import Folder
from fmoe.training import calibration
from fmoe.training.calibration import Answers
from fmoe.training.crafting import crafting_view
from pipelines.cli import main
from tests.conftest import SMALL
from tests.test_mixture import Fixed
from tests.test_mixture_suite import Pixel, chunk

MAP = {"weight": 0.7, "shift": 0.3, "power": 2.0, "scale": 1.5}
GIVEN = {"accurate": ["benign"], **MAP}


def by_hand(logits: list[float]) -> list[float]:
    """The map in the paper's words, a number at a time."""
    mean = sum(logits) / len(logits)
    deviation = math.sqrt(sum((z - mean) ** 2 for z in logits) / len(logits) + 1e-5)
    raised = []
    for z in logits:
        standard = (z - mean) / deviation + MAP["shift"]
        g = standard * 0.5 * (1 + math.erf(standard / math.sqrt(2)))
        raised.append(math.exp(MAP["scale"] * math.copysign(abs(g) ** MAP["power"], g)))
    return [value / sum(raised) for value in raised]


def test_the_map_by_hand() -> None:
    logits = [[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 7.0, -3.0]]
    mapped = Confidence(**GIVEN).mapped(torch.tensor(logits)).exp()
    torch.testing.assert_close(mapped, torch.tensor([by_hand(row) for row in logits]))
    # what a network adds to all its logits, or takes them by, says nothing about how sure it is
    moved = Confidence(**GIVEN).mapped(torch.tensor(logits) * 10 + 3).exp()
    torch.testing.assert_close(mapped, moved, atol=1e-4, rtol=1e-4)


def test_the_sum_by_hand() -> None:
    """Three experts, the first accurate; the gate's weights 0.2, 0.6, 0.2 are 3 to 1 within."""
    z = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    log_w = torch.tensor([[0.2, 0.6, 0.2]]).log()
    two = TwoParts(Confidence(**GIVEN), accurate=(0,), robust=(1, 2))
    p = z[0].softmax(1)
    robust = 0.75 * p[1] + 0.25 * p[2]
    mapped = torch.tensor(by_hand(robust.log().tolist()))
    got = two.combine(mix_probabilities, log_w, z).exp()[0]
    torch.testing.assert_close(got, 0.3 * p[0] + 0.7 * mapped)
    torch.testing.assert_close(two.part(mix_probabilities, log_w, z, (1, 2)).exp()[0], robust)


def test_a_sure_robust_answer_stands_whatever_the_accurate_part_says() -> None:
    torch.manual_seed(0)
    confidence = Confidence(**GIVEN)
    mapped = confidence.mapped(torch.randn(4000, 10) * 3)
    top = mapped.exp().topk(2, 1).values
    sure = top[:, 0] - top[:, 1] > (1 - confidence.weight) / confidence.weight
    assert 0.05 < sure.float().mean() < 0.95
    other = (mapped.argmax(1) + torch.randint(1, 10, (4000,))) % 10
    against = torch.full((4000, 10), -50.0).scatter(1, other[:, None], 0.0).log_softmax(1)
    stands = TwoParts(confidence, (), ()).sum(against, mapped).argmax(1) == mapped.argmax(1)
    assert stands[sure].all()
    assert not stands[~sure].all()


def mixture(*more: str) -> tuple[Mixture, Config]:
    told = "{weight: 0.7, shift: 0.3, power: 2, scale: 1.5}"
    settings = config.load("digits-whole", [*SMALL, f"confidence={told}", *more])
    return assembly.seeded_mixture(settings).eval(), settings


BRANCHED = ("experts.start=fresh", "experts.trunk={stages: 3}", "gate={kind: features}")


@pytest.mark.parametrize("more", [(), BRANCHED], ids=["whole", "branched"])
def test_a_mixture_combines_its_roles(more: tuple[str, ...], digits: Data) -> None:
    model, settings = mixture(*more)
    x = digits.test[:6].pixels()
    assert model.confidence is not None
    assert model.confidence.accurate == (0,)
    assert model.confidence.robust == (1, 2)
    with torch.no_grad():
        log_w, z = model.parts(x)
        torch.testing.assert_close(model(x), model.confidence.combine(mix_probabilities, log_w, z))
        torch.testing.assert_close(model(x).exp().sum(1), torch.ones(6))
        cheap = crafting_view(model, Numerics())
        cheap.refresh()
        torch.testing.assert_close(cheap.module(x), model(x), atol=1e-4, rtol=1e-4)
    assert settings.confidence is not None


def test_it_is_kept_in_the_models_folder_and_exported(tmp_path: Path, digits: Data) -> None:
    model, settings = mixture()
    folder = Folder.at(tmp_path / "model")
    model_folder.save_model(
        folder, model.state_dict(), settings, data_digest=digits.digest, metrics={}
    )
    loaded, again, _ = model_folder.load_model(folder)
    assert again.confidence == settings.confidence
    x = digits.test[:4].pixels()
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        exported = torch.export.export(loaded, (x,)).module()
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({**GIVEN, "accurate": ["clean"]}, "confidence.accurate: no experts of role clean"),
        ({**GIVEN, "accurate": ["benign", "fgsm", "pgd"]}, "names every role"),
        ({**GIVEN, "weight": 0.4}, "confidence.weight"),
        ({**GIVEN, "weight": 1.0}, "confidence.weight"),
        ({**GIVEN, "scale": 0.0}, "confidence.scale"),
        ({**GIVEN, "power": math.nan}, "confidence.power"),
        ({**GIVEN, "accurate": []}, "confidence.accurate"),
    ],
)
def test_what_cannot_be_is_refused(told: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.load("digits-whole", [*SMALL, f"confidence={json.dumps(told)}"])


def test_a_gate_that_asks_one_expert_has_no_two_parts() -> None:
    with pytest.raises(UserError, match="kind: top1 asks one expert"):
        mixture("gate={kind: top1}")


def test_an_attack_that_the_map_blinds_goes_round_it() -> None:
    """The robust expert flips at 0.5; mapped this steeply it gives no gradient in float32."""
    confidence = Confidence(accurate=["benign"], weight=0.9, power=10, scale=100)
    two = TwoParts(confidence, accurate=(0,), robust=(1,))
    model = Mixture([Fixed(1, 0), Pixel(4.0)], Fixed(0, 0), confidence=two)
    given, before = chunk(0.58, 0.58, 0.9)
    x = given.x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert gradient.abs().max() < 1e-6
    found, _ = mixings(model, given, before, Linf(eps=0.1))
    assert found["broken.surrogate"].tolist() == [True, True, False]


def answers(robust: Tensor, attacked: Tensor, accurate: Tensor, y: Tensor) -> Answers:
    plain = accurate.log_softmax(1), robust.log_softmax(1)
    return Answers(plain[1], *plain, attacked.log_softmax(1), y)


def noisy(y: Tensor, sure: float, right: float) -> Tensor:
    """Logits that are right about a share of the labels, surer there than elsewhere."""
    hit = torch.rand(len(y)) < right
    said = torch.where(hit, y, (y + 1) % 10)
    peak = torch.where(hit, sure, sure / 3)[:, None]
    return torch.randn(len(y), 10) / 2 + torch.nn.functional.one_hot(said, 10) * peak


@pytest.mark.parametrize("keep", [0.8, 0.95, 1.0])
@pytest.mark.parametrize("images", [43, 2000])
def test_the_fit_keeps_what_was_asked_and_gains_clean_accuracy(images: int, keep: float) -> None:
    torch.manual_seed(0)
    y = torch.randint(10, (images,))
    given = answers(noisy(y, 6, 0.6), noisy(y, 5, 0.4), noisy(y, 8, 0.9), y)
    confidence, clean = calibration.fit(given, ["benign"], keep)
    mapped = confidence.mapped(given.attacked[given.withstanding])
    wrong = (y[given.withstanding] + 1) % 10
    against = torch.full(mapped.shape, -50.0).scatter(1, wrong[:, None], 0.0).log_softmax(1)
    stands = TwoParts(confidence, (), ()).sum(against, mapped).argmax(1)
    assert (stands == y[given.withstanding]).double().mean() >= keep - 1e-9
    robust = calibration.right(given.robust, y)
    assert clean >= robust + (0.1 if keep < 1 and images > 100 else 0)
    both = TwoParts(confidence, (), ()).sum(given.accurate, confidence.mapped(given.robust))
    assert calibration.right(both, y) == clean


def test_of_maps_that_are_right_as_often_the_labels_decide() -> None:
    """A mixture that errs on nothing stays sure of its answers."""
    torch.manual_seed(0)
    y = torch.randint(10, (200,))
    given = answers(noisy(y, 9, 1.0), noisy(y, 9, 1.0), noisy(y, 9, 1.0), y)
    confidence, clean = calibration.fit(given, ["benign"], 0.98)
    both = TwoParts(confidence, (), ()).sum(given.accurate, confidence.mapped(given.robust))
    assert clean == 1.0
    assert both.exp().amax(1).median() > 0.9


def test_nothing_to_keep_is_one_line() -> None:
    y = torch.zeros(50, dtype=torch.long)
    wrong = torch.tensor([[0.0, 5.0]]).expand(50, 2)
    with pytest.raises(UserError, match="nothing withstands"):
        calibration.fit(answers(wrong, wrong, wrong, y), ["benign"], 0.9)


def saved(folder: Path, digits: Data) -> Path:
    settings = config.load("digits-whole", [*SMALL, *BRANCHED, "evaluate.eps=0.001"])
    model = assembly.seeded_mixture(settings)
    digests = {"train_digest": digits.train_digest, "test_digest": digits.test_digest}
    model_folder.save_model(
        Folder.at(folder),
        model.state_dict(),
        settings,
        data_digest=digits.digest,
        part_digests=digests,
        metrics={"clean": 0.1},
        extra={"selected_on": "validation"},
    )
    return folder


def told(folder: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((folder / "model.json").read_text())
    return read


def test_the_command_writes_a_model_with_the_same_weights(
    tmp_path: Path, digits: Data, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(tmp_path / "model", digits), tmp_path / "calibrated"
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(source), "--to", str(target), "--keep", "0.6", "--json"])
    assert ended.value.code in (0, None)
    answer = json.loads(capfd.readouterr().out)
    card, before = told(target), told(source)
    assert card["sha256"] == before["sha256"] == answer["digest"]
    assert card["metrics"] == {}, "those of the model as it was are not its own"
    assert card["selected_on"] == "validation"
    model, settings, _ = model_folder.load_model(Folder.at(target))
    assert settings.confidence is not None
    assert settings.confidence.model_dump(mode="json") == answer["confidence"]
    val = data.load("digits", val_images=settings.data.val_images).val
    assert answer["validation"]["images"] == len(val)
    with torch.no_grad():
        right = (model(val.pixels()).argmax(1) == val.labels).double().mean().item()
    assert right == pytest.approx(answer["validation"]["clean"], abs=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--accurate", "clean"], "no experts of role clean (there are benign, fgsm, pgd)"),
        (["--to", "."], "is the working directory"),
    ],
)
def test_the_command_refuses_in_one_line(
    more: list[str], said: str, tmp_path: Path, digits: Data, capfd: pytest.CaptureFixture[str]
) -> None:
    source = saved(tmp_path / "model", digits)
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(source), "--to", str(tmp_path / "to"), *more])
    assert ended.value.code == 2
    assert said in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "to").exists()


def test_other_training_images_than_the_models_are_refused(tmp_path: Path, digits: Data) -> None:
    card = told(saved(tmp_path / "model", digits))
    calibration.check_data(card, digits.train_digest)
    with pytest.raises(UserError, match="not those that the model was trained on"):
        calibration.check_data(card, "0" * 64)
