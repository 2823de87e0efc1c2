r"""The mixture against the best single network of the same training time, on real CIFAR-10.

    python -m benchmarks.equal_time --data-dir DATA --work FOLDER --seeds 0,1,2
    python -m benchmarks.equal_time --data-dir DATA --work FOLDER --arms eps-12,branched --seeds 0

Every arm is trained by `fmoe train` with its own epochs, chosen so that all take about the same
time; `fmoe calibrate` makes the calibrated arm of the one with roles. Then the same attacks on the
same test images by `fmoe evaluate`, AutoAttack on the first of them, and paired tests over all
seeds against the best single network. All are trained before any is judged, and nothing else may
run until then, but for another seed on another core (`taskset -c 0 … --workers 1`). What is in
FOLDER is not done again, so that the command may be stopped and given again. A row that is finished
goes to benchmarks/results/equal_time/ARM-SEED.json, with the verdict on every image, and is not
asked for again; all that are there make the table, which may grow over days. One network cannot be
judged by the mixture suite: its worst case counts the other attacks alone, to its favour.
Result: benchmarks/results/equal_time.json and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.baselines import command
from fmoe import assembly, config, provenance
from fmoe.config import Config
from fmoe.evaluation import mcnemar
from fmoe.evaluation.promotion import VERDICTS

SINGLE, NINE = "cifar10-small-single", "cifar10-small-branched"
SHARES = (
    "{kind: shares, parts: [1, 8], of: [{kind: clean}, "
    "{kind: fgsm, eps: 12/255, step_size: 14/255, random_start: true}]}"
)
"""The first expert of nine has the clean images, the others the attacked ones."""


def branches(number: int) -> list[str]:
    """So many experts, all of one role."""
    return [
        f"experts.roles={{fgsm: {{count: {number}, attack: {{kind: fgsm, eps: 12/255}}}}}}",
        *(["gate={kind: uniform}"] if number == 1 else []),
    ]


ARMS: dict[str, tuple[str, list[str]]] = {
    **{
        f"eps-{eps}": (
            SINGLE,
            [f"joint.attack.eps={eps}/255", f"joint.attack.step_size={eps + 2}/255"],
        )
        for eps in (8, 12, 16)
    },
    "branched": (NINE, []),
    "roles": (NINE, [f"joint.attack={SHARES}", "joint.own=0.5"]),
    "whole": ("cifar10-small", ["experts.train.epochs=1", "joint.epochs=1"]),
    "uniform": (NINE, ["gate={kind: uniform}"]),
    "top1": (NINE, ["gate={kind: top1}"]),
}
"""Recipe and what is set, by name."""
ABLATION: dict[str, tuple[str, list[str]]] = {
    "without-trunk": (
        NINE,
        ["experts.trunk=null", "experts.backbone.width=8", "gate={kind: conv}"],
    ),
    **{f"branches-{number}": (NINE, branches(number)) for number in (1, 3, 16)},
    **{f"temperature-{t}": (NINE, [f"gate.temperature={t}"]) for t in (0.3, 3)},
}
"""Asked for by `--arms`: what the parts of `branched` earn, beside `uniform` and `roles`; nine
whole networks are narrower, so that they take as long."""
CALIBRATED = {"calibrated": "roles"}
"""Arms that are made of another one's model after training."""
SINGLES = ("eps-8", "eps-12", "eps-16")
ATTACKS = "pgd,pgd50,gate-only,frozen-gate,surrogate,reweighted"
"""The transfer matrix, which attacks all images once more for each expert, costs as much as these
together and is left to `fmoe evaluate --full`."""
ROWS = measure.RESULTS / "equal_time"
ASKED = ("train_images", "images", "autoattack", "keep", "sets")
"""Options that decide a row's figures, but for arm and seed."""


class Bench:
    """Arms in `work`, each answer kept in a file of its own."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.work = given, given.work.resolve()
        self.data = ["--data-dir", str(Path(given.data_dir).resolve())]
        self.work.mkdir(parents=True, exist_ok=True)

    def once(self, file: str, program: str, *arguments: str) -> dict[str, Any]:
        """The command's answer, asked for if it is not there."""
        kept = self.work / f"{file}.json"
        if not kept.exists():
            kept.write_text(
                json.dumps(command(self.work, program, *arguments, *self.data), indent=1)
            )
        return dict(json.loads(kept.read_text()))

    def settings(self, arm: str, seed: int) -> tuple[str, list[str]]:
        """The recipe that an arm is trained by, and what is set."""
        recipe, own = {**ARMS, **ABLATION}[CALIBRATED.get(arm, arm)]
        sets = [f"seed={seed}", f"data.train_images={self.given.train_images}",
                "evaluate.images=100", *self.given.sets, *own]  # fmt: skip
        return recipe, sets

    def model(self, arm: str, seed: int) -> tuple[str, float]:
        """The model's folder and the seconds of its training."""
        name = f"{arm}-{seed}"
        if arm in CALIBRATED:
            source, seconds = self.model(CALIBRATED[arm], seed)
            made = self.once(f"{name}-made", "calibrate", source, "--to", str(self.work / name),
                             "--keep", self.given.keep)  # fmt: skip
            return made["path"], seconds
        recipe, sets = self.settings(arm, seed)
        done = self.once(name, "train", recipe, "--name", name, "--workers", self.given.workers,
                         *(part for one in sets for part in ("--set", one)))  # fmt: skip
        return done["run_dir"], done["seconds"]["pool"] + done["seconds"]["joint"]

    def kept(self, arm: str, seed: int) -> Path:
        return ROWS / f"{arm}-{seed}.json"

    def finished(self) -> list[dict[str, Any]]:
        """All rows that are kept, of this call and of others."""
        names = sorted(file.stem.rpartition("-") for file in ROWS.glob("*.json"))
        return [self.row(arm, int(seed)) for arm, _, seed in names]

    def row(self, arm: str, seed: int) -> dict[str, Any]:
        """Figures of a model, and on which images it withstands everything: kept in the results."""
        kept = self.kept(arm, seed)
        asked = {name: getattr(self.given, name) for name in ASKED}
        recipe = config.load(*self.settings(arm, seed))
        if kept.exists():
            row = dict(json.loads(kept.read_text()))
            # what there was no setting for then is as its default says
            then = config.validate(row["recipe"], kept.name).deciding()
            same = row["asked"] | {"autoattack": asked["autoattack"]}  # some rows may lack it
            if (same, then) != (asked, recipe.deciding()):
                raise SystemExit(f"{kept.name} was asked something else: move it, or ask the same")
            return row
        row = {"asked": asked, **self.judged(arm, seed), "machine": provenance.hardware()}
        row["recipe"] = recipe.plain()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(row, indent=1) + "\n")
        return row

    def judged(self, arm: str, seed: int) -> dict[str, Any]:
        folder, seconds = self.model(arm, seed)
        name = f"{arm}-{seed}"
        page, workers = self.work / f"{name}-page", ["--workers", self.given.workers, "--fast"]
        found = self.once(f"{name}-judged", "evaluate", folder, "--attacks", ATTACKS, "--limit",
                          self.given.images, "--report", str(page), *workers)  # fmt: skip
        row = {"arm": arm, "seed": seed, "seconds": seconds}
        row |= {"clean": found["clean"], **found["robust"], "worst_case": found["worst_case"]}
        if int(self.given.autoattack):
            hard = self.once(f"{name}-autoattack", "evaluate", folder, "--attacks", "autoattack",
                             "--limit", self.given.autoattack, *workers)  # fmt: skip
            row["autoattack"] = hard["robust"]["autoattack"]
        return row | {"flags": found["flags"], "right": verdicts(page)}


def verdicts(page: Path) -> dict[str, str]:
    """About which test images the model is right, clean and after all attacks: a 1 or 0 each."""
    table = pq.read_table(page / VERDICTS).to_pydict()
    right = torch.tensor(table["prediction"]) == torch.tensor(table["label"])
    attacks = [table[name] for name in table if name.startswith("success_")]
    broken = [any(found) for found in zip(*attacks, strict=True)]  # None: not attacked any more
    told = {"clean": right, "worst_case": right & ~torch.tensor(broken)}
    return {name: "".join(str(int(one)) for one in given) for name, given in told.items()}


def right(rows: Iterable[Mapping[str, Any]], name: str) -> Tensor:
    """bool: of all rows' images, one row after the other."""
    return torch.tensor([one == "1" for row in rows for one in row["right"][name]])


def paired(one: Tensor, other: Tensor) -> dict[str, float]:
    """McNemar's exact test over the images of all seeds."""
    difference = one.double().mean() - other.double().mean()
    return {
        "difference": difference.item(),
        "p_value": mcnemar(one, other),
        "images": len(one),
    }


def added_in_place(_sum: Any, left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    """Operations of `addmm_` by shapes, which the counter does not know by itself."""
    return 2 * left[0] * left[1] * right[1]


def inference(settings: Mapping[str, Config], images: int = 250) -> dict[str, dict[str, float]]:
    """Multiply-adds of one image and milliseconds an image, all models taking turns; what they
    learned does not change that."""
    x = torch.rand(images, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    models = {arm: assembly.seeded_mixture(one).eval() for arm, one in settings.items()}

    def asks(model: nn.Module) -> Any:
        return torch.inference_mode()(lambda: model(x))

    seconds = measure.interleaved({arm: asks(model) for arm, model in models.items()}, rounds=9)
    cost = {}
    counts = {torch.ops.aten.addmm_: added_in_place}
    for arm, model in models.items():
        with FlopCounterMode(display=False, custom_mapping=counts) as counted, torch.no_grad():
            model(x[:1])
        cost[arm] = {
            "multiply_adds": counted.get_total_flops() / 2,
            "ms_an_image": 1000 * seconds[arm] / images,
        }
    return cost


def front(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    singles = [arm for arm in SINGLES if arm in rows]
    axes.plot(
        [100 * rows[arm]["clean"] for arm in singles],
        [100 * rows[arm]["worst_case"] for arm in singles],
        "o-", color="tab:gray", label="one network",
    )  # fmt: skip
    for arm, row in rows.items():
        if arm not in singles:
            axes.plot(100 * row["clean"], 100 * row["worst_case"], "s", label=arm)
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel("worst case (%)")
    axes.legend()
    return figure


def summary(judged: list[dict[str, Any]], settings: Mapping[str, Config]) -> dict[str, Any]:
    """Means over seeds by arm, paired with the best single network, and what inference costs."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in judged:
        by_arm.setdefault(row["arm"], []).append(row)
    figures = ("clean", "pgd", "pgd50", "worst_case", "autoattack", "seconds")
    rows: dict[str, Any] = {
        arm: {
            name: round(statistics.fmean(one[name] for one in given), 4)
            for name in figures
            if all(name in one for one in given)
        }
        | {"seeds": [one["seed"] for one in given], "flags": [one["flags"] for one in given]}
        | {f"{name}_by_seed": [one[name] for one in given] for name in ("clean", "worst_case")}
        for arm, given in by_arm.items()
    }
    singles = [arm for arm in SINGLES if arm in rows]
    best = max(singles, key=lambda arm: rows[arm]["worst_case"]) if singles else None
    if best is not None:
        theirs = {one["seed"]: one for one in by_arm[best]}
        for arm, given in by_arm.items():
            both = [one for one in given if one["seed"] in theirs]
            rows[arm]["against_best_single"] = {
                name: paired(right(both, name), right([theirs[o["seed"]] for o in both], name))
                for name in ("clean", "worst_case")
            }
    cost = inference(settings)
    return {"best_single": best, "arms": {arm: rows[arm] | cost[arm] for arm in rows}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arms", default=",".join([*ARMS, *CALIBRATED]))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--train-images", default="45000")
    parser.add_argument("--images", default="5000", help="Test images.")
    parser.add_argument("--autoattack", default="1000", metavar="IMAGES")
    parser.add_argument("--keep", default="0.98", help="Of `fmoe calibrate`.")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE")
    bench = Bench(parser.parse_args())
    seeds, arms = bench.given.seeds.split(","), bench.given.arms.split(",")
    asked = [(arm, int(seed)) for seed in seeds for arm in arms]
    for one in asked:
        if not bench.kept(*one).exists():
            bench.model(*one)
    for one in asked:
        bench.row(*one)
    rows = bench.finished()
    result = summary(rows, {r["arm"]: config.load(*bench.settings(r["arm"], 0)) for r in rows})
    told = {name: getattr(bench.given, name) for name in ASKED}
    measure.write("equal_time", {**told, **result})
    front(result["arms"]).savefig(measure.path("equal_time", "png"), dpi=150)


if __name__ == "__main__":
    main()
