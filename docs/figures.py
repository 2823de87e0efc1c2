"""The site's figures as SVG, each in both colours of the reader's system.

python docs/figures.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FOLDER = DOCS / "figures"
STUDY = ROOT / "benchmarks" / "results" / "study-cifar10-small.json"

# A panel of its own colour behind everything: a page whose theme was switched by hand differs from
# the system's, and the figure is readable on either.
STYLE = """
  :root { --panel: #f8f9fb; --ink: #1c2330; --soft: #5b6472; --line: #8a93a1; --box: #ffffff;
          --one: #2f6fd6; --two: #c2571a; --three: #2c8a57; }
  @media (prefers-color-scheme: dark) {
    :root { --panel: #1b1f26; --ink: #e8ebf0; --soft: #a9b2c0; --line: #6d7787; --box: #262c36;
            --one: #6ea4ff; --two: #f0955a; --three: #63c792; } }
  text { font: 17px system-ui, sans-serif; fill: var(--ink); }
  .soft { fill: var(--soft); font-size: 15px; }
  .middle { text-anchor: middle; } .end { text-anchor: end; }
  .panel { fill: var(--panel); } .box { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
  .one { fill: var(--one); } .two { fill: var(--two); } .three { fill: var(--three); }
  .flow { fill: none; stroke: var(--line); stroke-width: 1.4; }
  .head { fill: var(--line); }
"""
Role = tuple[str, str, float]
"""An expert's label, its colour's class, and a weight in [0,1]."""
EXPERTS: list[Role] = [
    ("benign", "three", 0.05),
    *(("fgsm", "one", weight) for weight in (0.08, 0.13, 0.06, 0.11)),
    *(("pgd", "two", weight) for weight in (0.17, 0.10, 0.21, 0.09)),
]


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """One figure; title: what a reader who cannot see it is told."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">'
    )
    panel = f'<rect class="panel" width="{width}" height="{height}" rx="12"/>'
    lines = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", panel]
    return "\n".join([*lines, *parts, "</svg>", ""])


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    size = f'width="{width:g}" height="{height:g}"'
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" {size} rx="5"/>'


def labelled(x: float, y: float, width: float, height: float, words: str) -> str:
    return box(x, y, width, height) + text(x + width / 2, y + height / 2 + 5, words, "middle")


def line(*points: tuple[float, float]) -> str:
    path = " L".join(f"{x:g},{y:g}" for x, y in points)
    return f'<path class="flow" d="M{path}"/>'


def arrow(*points: tuple[float, float]) -> str:
    """Along the points, with a head at the last one, which is reached from the left."""
    x, y = points[-1]
    head = f"{x:g},{y:g} {x - 8:g},{y - 4:g} {x - 8:g},{y + 4:g}"
    return f'{line(*points)}<polygon class="head" points="{head}"/>'


def mixture() -> str:
    """Image -> experts and gate -> sum."""
    parts = [labelled(12, 168, 70, 44, "image"), text(222, 34, "nine experts", "soft middle")]
    for place, (role, colour, weight) in enumerate(EXPERTS):
        y = 46 + place * 30
        parts += [arrow((82, 190), (106, y + 12), (166, y + 12))]
        parts += [box(166, y, 112, 24), box(166, y, 6, 24, colour), text(186, y + 18, role)]
        parts += [arrow((278, y + 12), (322, y + 12)), box(324, y + 5, 240 * weight, 14, colour)]
        parts += [text(332 + 240 * weight, y + 18, f"{weight:.2f}", "soft")]
    parts += [text(384, 34, "weights, for example", "soft middle")]
    parts += [arrow((82, 190), (106, 348), (166, 348)), labelled(166, 326, 112, 44, "gate")]
    parts += [text(290, 354, "softmax(gate(x) / temperature)", "soft")]
    parts += [line((424, 50), (436, 50), (436, 312), (424, 312)), arrow((436, 190), (472, 190))]
    parts += [labelled(474, 168, 136, 44, "log Σₑ wₑ pₑ")]
    parts += [
        text(542, 236, "one probability", "soft middle"),
        text(542, 256, "a class", "soft middle"),
    ]
    return svg(622, 390, "An image, nine experts, a gate and the weighted sum", parts)


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def gate() -> str:
    """One image's gate logits at three temperatures."""
    logits, parts = (0.2, 1.1, 0.5, 1.7, -0.4), []
    for place, (temperature, said) in enumerate(
        ((0.3, "nearly one expert"), (1.0, "the default"), (3.0, "nearly even"))
    ):
        x = 10 + place * 206
        parts += [text(x + 97, 34, f"temperature {temperature:g}", "middle")]
        parts += [text(x + 97, 56, said, "soft middle")]
        for expert, weight in enumerate(softmax(logits, temperature)):
            height, left = 170 * weight, x + 6 + expert * 37
            parts += [box(left, 250 - height, 28, height, "one")]
            parts += [text(left + 14, 242 - height, f"{100 * weight:.0f}%", "soft middle")]
            parts += [text(left + 14, 270, f"{expert + 1}", "soft middle")]
        parts += [line((x, 250), (x + 194, 250))]
    parts += [text(311, 298, "weight of each of five experts, from the same logits", "soft middle")]
    return svg(622, 314, "Softmax of the same logits at temperatures 0.3, 1 and 3", parts)


def trunk() -> str:
    """Image -> shared stages -> branches and gate -> sum."""
    parts = [labelled(8, 158, 58, 44, "image")]
    for place, stage in enumerate(("stem", "stage 1", "stage 2", "stage 3")):
        x = 84 + place * 80
        parts += [
            arrow((x - 16, 180), (x, 180)),
            box(x, 140, 64, 80),
            text(x + 32, 185, stage, "soft middle"),
        ]
    parts += [text(236, 250, "the trunk: once an image", "soft middle")]
    parts += [text(488, 32, "nine branches, side by side", "soft middle")]
    for place, (role, colour, _) in enumerate(EXPERTS):
        y = 46 + place * 29
        parts += [arrow((388, 180), (402, y + 11), (430, y + 11))]
        parts += [box(430, y, 100, 22), box(430, y, 6, 22, colour), text(446, y + 17, role)]
    parts += [arrow((388, 180), (402, 335), (430, 335)), labelled(430, 316, 100, 38, "gate")]
    parts += [line((530, 57), (540, 57), (540, 335), (530, 335)), arrow((540, 180), (556, 180))]
    parts += [labelled(558, 158, 76, 44, "Σ wₑ pₑ")]
    return svg(642, 372, "An image, a shared trunk, nine branches and a gate", parts)


def importances() -> dict[str, float]:
    """Of the settings that all trials of the study share, by fANOVA: as a study's own plot."""
    import optuna

    from fmoe.tuning import search_space
    from fmoe.tuning.optuna_trials import as_optuna
    from fmoe.tuning.trials import Trial

    space = search_space.load("cifar10-small")
    trials = [
        Trial(
            number=row["trial"],
            values=row["values"],
            status=row["status"],
            history=[{"val_robust": row["val_robust"]}],
        )
        for row in json.loads(STUDY.read_text())["trials"]
    ]
    study = as_optuna(space, trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def importance() -> str:
    found = importances()
    parts, most = [], max(found.values())
    for place, (path, share) in enumerate(found.items()):
        y, wide = 44 + place * 34, max(2, 280 * share / most)
        parts += [text(266, y + 17, path, "end"), box(276, y, wide, 22, "one")]
        parts += [text(284 + wide, y + 17, f"{100 * share:.0f}%", "soft")]
    parts += [text(16, 28, "share of the variance of val_robust, 24 trials, fANOVA", "soft")]
    return svg(622, 60 + 34 * len(found), "Importance of a study's settings", parts)


FIGURES = {"mixture": mixture, "gate": gate, "trunk": trunk, "importance": importance}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
