"""PGD-20 by the evaluator, torchattacks and foolbox on the same images of one model.

    python -m benchmarks.agreement MODEL --data-dir DATA --images 500

MODEL: a folder of a trained model; its own data set's first test images, at its own eps and norm,
steps of eps/4 from a random start. An image counts as broken if any iterate breaks it, for all
three. Needs the packages torchattacks (with `--no-deps`) and foolbox.
Result: benchmarks/results/agreement.json.
"""

from __future__ import annotations

import argparse

import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.ever import Ever
from fmoe import data, model_folder
from fmoe.evaluation import evaluate
from fmoe.storage.folder import Folder

STEPS = 20


class Rows(nn.Module):
    """The model, with input gradients in torch's usual memory format: PGDL2 takes no other."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.flatten(1).view(x.shape))
        return logits


def by_torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> float:
    """Robust accuracy."""
    seen = Ever(Rows(model), y).eval()
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    seen(kind(seen, eps=eps, alpha=eps / 4, steps=STEPS, random_start=True)(x.contiguous(), y))
    return seen.robust


def by_foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> float:
    """Robust accuracy."""
    seen = Ever(model, y).eval()
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    attack = kind(rel_stepsize=0.25, steps=STEPS, random_start=True)
    attack(foolbox.PyTorchModel(seen, bounds=(0, 1)), x, y, epsilons=eps)
    return seen.robust


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=500)
    given = parser.parse_args()
    model, config, _ = model_folder.load_model(Folder.at(given.model))
    test = data.load(config.data.name, given.data_dir).test[: given.images]
    x, y, threat = test.pixels(), test.labels, config.evaluate.threat
    eps, norm = threat.eps, threat.norm
    torch.manual_seed(0)
    found = {
        "fmoe": evaluate(model, test.images, y, attacks=["pgd"], eps=eps, norm=norm).robust["pgd"],
        "torchattacks": by_torchattacks(model, x, y, eps, norm),
        "foolbox": by_foolbox(model, x, y, eps, norm),
    }
    about = {"model": measure.named(given.model), "images": len(y), "norm": norm, "eps": eps}
    measure.write("agreement" if norm == "linf" else f"agreement-{norm}", {**about, **found})


if __name__ == "__main__":
    main()
