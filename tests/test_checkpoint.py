"""Checkpoints fall back past damage; model folders are verified; no pickle anywhere."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmoe import assembly, model_folder
from fmoe.config import Config, validate
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.model_folder import WEIGHTS
from fmoe.models.mixture import Mixture
from fmoe.storage import checkpoint
from fmoe.storage.checkpoint import STATE, Checkpoint, Checkpoints
from fmoe.storage.folder import MANIFEST, Damaged, Folder, sha256
from fmoe.storage.tensors import pack, unpack


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(Folder.at(tmp_path / "checkpoints"), "key")


def state(epoch: int) -> Checkpoint:
    """Tensors filled with the epoch, and metrics of every epoch so far."""
    return Checkpoint(
        epoch,
        {
            "model": {
                "conv.weight": torch.full((2, 3), float(epoch)),
                "bn.num_batches_tracked": torch.tensor(epoch),
            },
            "optimizer:adamw": {
                "conv.weight/exp_avg": torch.full((2, 3), epoch / 3),
                "conv.weight/step": torch.tensor(float(epoch)),
            },
            "optimizer:plain": {},
        },
        history=[{"epoch": float(i), "loss": 1 / (i + 3)} for i in range(epoch + 1)],
    )


def save(kept: Checkpoints, epochs: int, best: Callable[[int], int] = lambda epoch: epoch) -> None:
    for epoch in range(epochs):
        kept.save(state(epoch), best_epoch=best(epoch))


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert (found.epoch, found.history) == (expected.epoch, expected.history)
    assert found.families.keys() == expected.families.keys()
    for family, tensors in found.families.items():
        others = expected.families[family]
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype
            assert torch.equal(tensor, others[name])


def file_of(kept: Checkpoints, epoch: int, name: str) -> Path:
    assert kept.folder.local is not None
    return kept.folder.local / f"epoch-{epoch:04d}" / name


def test_no_checkpoint_yet(kept: Checkpoints) -> None:
    assert kept.latest() is None


def test_what_is_saved_is_loaded(kept: Checkpoints) -> None:
    save(kept, 2)
    assert_same(kept.latest(), state(1))
    assert_same(kept.load(0), state(0))


def test_the_last_two_and_the_best_are_kept(kept: Checkpoints) -> None:
    save(kept, 6, best=lambda epoch: min(epoch, 1))
    assert kept.folder.names() == ["epoch-0001", "epoch-0004", "epoch-0005"]


def test_a_former_best_goes(kept: Checkpoints) -> None:
    save(kept, 4, best=lambda epoch: 0)
    assert kept.folder.names() == ["epoch-0000", "epoch-0002", "epoch-0003"]
    kept.save(state(4), best_epoch=4)
    assert kept.folder.names() == ["epoch-0003", "epoch-0004"]


def test_epochs_are_ordered_as_numbers(kept: Checkpoints) -> None:
    for epoch in (9_999, 10_000):
        kept.save(Checkpoint(epoch, {"model": {"w": torch.tensor([1.0])}}, []), best_epoch=epoch)
    latest = kept.latest()
    assert latest is not None
    assert latest.epoch == 10_000


def test_tensors_need_not_be_contiguous_or_detached(kept: Checkpoints) -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    kept.save(Checkpoint(0, {"model": {"w": weight}}, []), best_epoch=0)
    assert torch.equal(kept.load(0).model["w"], weight)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "state truncated": (STATE, lambda f: f.write_bytes(f.read_bytes()[:-1])),
    "state empty": (STATE, lambda f: f.write_bytes(b"")),
    "state missing": (STATE, lambda f: f.unlink()),
    "state altered": (STATE, lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\x7f")),
    "manifest missing": (MANIFEST, lambda f: f.unlink()),
    "manifest truncated": (MANIFEST, lambda f: f.write_bytes(f.read_bytes()[:20])),
    "manifest empty": (MANIFEST, lambda f: f.write_bytes(b"")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_gives_way_to_the_one_before(kind: str, kept: Checkpoints) -> None:
    save(kept, 3)
    name, damage = DAMAGE[kind]
    damage(file_of(kept, 2, name))
    with pytest.raises(Damaged, match="epoch-0002"):
        kept.load(2)
    assert_same(kept.latest(), state(1))


def test_damaged_epoch_is_replaced_by_saving_it_again(kept: Checkpoints) -> None:
    save(kept, 3)
    file_of(kept, 2, STATE).write_bytes(b"")
    kept.save(state(2), best_epoch=2)
    assert_same(kept.latest(), state(2))


def test_all_damaged_is_as_none(kept: Checkpoints) -> None:
    save(kept, 2)
    for epoch in (0, 1):
        file_of(kept, epoch, MANIFEST).unlink()
    assert kept.latest() is None


def test_tensors_that_are_no_safetensors_are_damaged() -> None:
    with pytest.raises(Damaged, match="here: damaged: not a safetensors file"):
        unpack(b"\x80\x04K\x01.", "here")


def test_checkpoints_of_other_settings_are_refused(kept: Checkpoints) -> None:
    save(kept, 1)
    other = Checkpoints(kept.folder, "another key")
    with pytest.raises(UserError, match=r"epoch-0000: belongs to other .* data .* --name"):
        other.latest()


def test_a_checkpoint_of_0_1_0_is_refused_in_one_line(kept: Checkpoints) -> None:
    """It kept `momentum.*` of an optimizer and named no families."""
    tensors = {"model.w": torch.ones(2), "momentum.w": torch.ones(2)}
    manifest = {"key": kept.key, "epoch": 0, "history": []}
    (kept.folder / "epoch-0000").commit({STATE: pack(tensors)}, manifest)
    with pytest.raises(UserError, match=r"epoch-0000: a checkpoint .* --name$") as caught:
        kept.latest()
    assert "\n" not in str(caught.value)


def test_what_would_be_deployed_is_kept_where_it_is_not_what_is_trained(kept: Checkpoints) -> None:
    weights, average = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    kept.save(Checkpoint(0, {"model": weights}, []), best_epoch=0)
    assert torch.equal(kept.load(0).deployed["w"], weights["w"])
    kept.save(Checkpoint(1, {"model": weights, "deployed": average}, []), best_epoch=1)
    assert torch.equal(kept.load(1).deployed["w"], average["w"])
    assert torch.equal(kept.load(1).model["w"], weights["w"])


def test_a_type_that_would_not_be_read_is_not_written(kept: Checkpoints) -> None:
    odd = {"model": {"w": torch.zeros(2, dtype=torch.complex64)}}
    with pytest.raises(UserError, match=r"model\.w: tensors of type torch\.complex64 are not kept"):
        kept.save(Checkpoint(0, odd, []), best_epoch=0)
    assert kept.latest() is None


def test_stray_names_are_no_checkpoints(kept: Checkpoints) -> None:
    save(kept, 1)
    kept.folder.write("notes.txt", b"")
    (kept.folder / "epoch-best").write("a", b"")
    assert_same(kept.latest(), state(0))


# Model folders


@pytest.fixture
def model(small: Config, digits: Data) -> Mixture:
    """Untrained, but with BatchNorm statistics of its own."""
    made = assembly.seeded_mixture(small)
    with torch.no_grad():
        made.train()(digits.train[:32].pixels())
    return made.eval()


@pytest.fixture
def saved(tmp_path: Path, small: Config, model: Mixture) -> Path:
    folder = tmp_path / "model"
    write(folder, model, small)
    return folder


def write(folder: Path, model: Mixture, config: Config) -> str:
    return model_folder.save_model(
        Folder.at(folder),
        model.state_dict(),
        config,
        data_digest="abc",
        metrics={"clean": 0.9},
        extra={"note": "extra"},
    )


def log_probabilities(model: Mixture, digits: Data) -> Tensor:
    with torch.no_grad():
        return model(digits.test[:16].pixels())  # type: ignore[no-any-return]


def test_model_round_trip_gives_equal_outputs(
    saved: Path, model: Mixture, small: Config, digits: Data
) -> None:
    loaded, config, card = model_folder.load_model(Folder.at(saved))
    assert torch.equal(log_probabilities(loaded, digits), log_probabilities(model, digits))
    assert not any(module.training for module in loaded.modules())
    assert config == small
    assert len(loaded.experts) == 3
    assert card["metrics"] == {"clean": 0.9}
    assert card["note"] == "extra"


@pytest.mark.parametrize("kind", ["linear", "uniform", "top1", "resnet"])
def test_every_gate_and_its_settings_come_back(
    kind: str, tmp_path: Path, small: Config, digits: Data
) -> None:
    tree = {**small.plain(), "gate": {"kind": kind, "temperature": 2.0}, "mixing": "logits"}
    config = validate(tree, "test")
    model = assembly.seeded_mixture(config).eval()
    write(tmp_path, model, config)
    loaded, _, _ = model_folder.load_model(Folder.at(tmp_path))
    assert (loaded.temperature, loaded.mixing, loaded.hard) == (2.0, "logits", kind == "top1")
    assert torch.equal(log_probabilities(loaded, digits), log_probabilities(model, digits))


def test_model_card(saved: Path, small: Config, model: Mixture) -> None:
    card = model_folder.read_card(Folder.at(saved))
    weights = (saved / WEIGHTS).read_bytes()
    assert card["sha256"] == sha256(weights) == write(saved, model, small)
    assert card["classes"] == list("0123456789")
    assert card["input_shape"] == [1, 8, 8]
    assert card["data"] == {"name": "digits", "digest": "abc"}
    assert card["versions"].keys() >= {"fmoe", "torch"}


def test_model_folder_holds_its_files_and_a_card_for_people(saved: Path) -> None:
    named = sorted(file.name for file in saved.iterdir())
    assert named == ["README.md", "config.yaml", "model.json", WEIGHTS]


def alter(file: Path, at: int = -1) -> None:
    """One bit of one byte."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights altered": (WEIGHTS, alter, "damaged: its sha256"),
    "weights truncated": (WEIGHTS, lambda f: f.write_bytes(f.read_bytes()[:-9]), "damaged"),
    "weights empty": (WEIGHTS, lambda f: f.write_bytes(b""), "damaged"),
    "weights missing": (WEIGHTS, lambda f: f.unlink(), "missing"),
    "config missing": ("config.yaml", lambda f: f.unlink(), "missing"),
    "config edited": (
        "config.yaml",
        lambda f: f.write_text(f.read_text().replace("seed: 0", "seed: 1")),
        "damaged: its sha256",
    ),
    "card truncated": ("model.json", lambda f: f.write_bytes(f.read_bytes()[:50]), "not a JSON"),
    "card missing": ("model.json", lambda f: f.unlink(), "no model folder"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_model_folder_is_refused_by_the_files_name(kind: str, saved: Path) -> None:
    name, damage, message = FAULTS[kind]
    damage(saved / name)
    with pytest.raises(UserError, match=message) as caught:
        model_folder.load_model(Folder.at(saved))
    assert name in str(caught.value)
    assert str(saved) in str(caught.value)


def mend(folder: Path) -> None:
    """Makes the card's digests those of the files, as someone who means it would."""
    card = json.loads((folder / "model.json").read_text())
    card["sha256"] = sha256((folder / WEIGHTS).read_bytes())
    card["config_sha256"] = sha256((folder / "config.yaml").read_bytes())
    (folder / "model.json").write_text(json.dumps(card))


def test_truncated_weights_with_a_right_digest_are_refused(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-9])
    mend(saved)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: damaged: has \d+ bytes, the tensors"):
        model_folder.load_model(Folder.at(saved))


def test_pickled_weights_are_refused(saved: Path, model: Mixture) -> None:
    torch.save(model.state_dict(), saved / WEIGHTS)
    mend(saved)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: damaged: not a safetensors"):
        model_folder.load_model(Folder.at(saved))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    width: 4\n    stem", "    width: 8\n    stem", f"{WEIGHTS}: does not fit"),
        ("mixing:", "mixed:", "config.yaml: unknown key mixed"),
        ("seed: 0", "- seed", "config.yaml: not YAML"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    old: str, new: str, message: str, saved: Path
) -> None:
    text = (saved / "config.yaml").read_text()
    assert text.count(old) == 1
    (saved / "config.yaml").write_text(text.replace(old, new))
    mend(saved)
    with pytest.raises(UserError, match=message):
        model_folder.load_model(Folder.at(saved))


def test_no_pickle_is_written_or_read(
    tmp_path: Path, small: Config, model: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refuse)
    write(tmp_path / "model", model, small)
    model_folder.load_model(Folder.at(tmp_path / "model"))
    kept = Checkpoints(Folder.at(tmp_path / "checkpoints"), "key")
    save(kept, 2)
    assert kept.latest() is not None
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json", ".yaml", ".md"}


def test_copied_state_does_not_follow_the_module() -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()
    copy = checkpoint.copy_state(module)
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(copy["weight"], before)
    assert not copy["weight"].requires_grad
