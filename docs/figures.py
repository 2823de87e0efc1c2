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
  text { font: 15px system-ui, sans-serif; fill: var(--ink); }
  .soft { fill: var(--soft); font-size: 13px; }
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


def arrow(*points: tuple[float, float]) -> str:
    """Along the points, with a head at the last one, which is reached from the left."""
    path = " L".join(f"{x:g},{y:g}" for x, y in points)
    x, y = points[-1]
    head = f"{x:g},{y:g} {x - 8:g},{y - 4:g} {x - 8:g},{y + 4:g}"
    return f'<path class="flow" d="M{path}"/><polygon class="head" points="{head}"/>'


def mixture() -> str:
    """Image -> experts and gate -> sum."""
    parts = [labelled(20, 168, 78, 44, "image"), text(250, 34, "nine experts", "soft middle")]
    for place, (role, colour, weight) in enumerate(EXPERTS):
        y = 46 + place * 30
        parts += [arrow((98, 190), (125, y + 12), (185, y + 12))]
        parts += [box(185, y, 130, 24), box(185, y, 6, 24, colour)]
        parts += [text(205, y + 17, f"{role}")]
        parts += [arrow((315, y + 12), (390, y + 12))]
        parts += [box(392, y + 5, 260 * weight, 14, colour)]
        parts += [text(400 + 260 * weight, y + 17, f"{weight:.2f}", "soft")]
    parts += [text(430, 34, "weights wₑ, sum 1", "soft middle")]
    parts += [arrow((98, 190), (125, 348), (185, 348)), labelled(185, 326, 130, 44, "gate")]
    parts += [text(330, 353, "softmax(gate(x) / temperature) gives the weights", "soft")]
    parts += [arrow((500, 178), (560, 190)), labelled(562, 168, 138, 44, "log Σₑ wₑ pₑ")]
    parts += [text(631, 234, "one probability a class", "soft middle")]
    return svg(720, 390, "An image, nine experts, a gate and the weighted sum", parts)


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def gate() -> str:
    """One image's gate logits at three temperatures."""
    logits, parts = (0.2, 1.1, 0.5, 1.7, -0.4), []
    for place, (temperature, said) in enumerate(
        ((0.3, "nearly one expert"), (1.0, "the default"), (3.0, "nearly even"))
    ):
        x = 30 + place * 228
        parts += [text(x + 100, 36, f"temperature {temperature:g}", "middle")]
        parts += [text(x + 100, 56, said, "soft middle")]
        for expert, weight in enumerate(softmax(logits, temperature)):
            height, left = 170 * weight, x + 8 + expert * 38
            parts += [box(left, 250 - height, 28, height, "one")]
            parts += [text(left + 14, 242 - height, f"{100 * weight:.0f}%", "soft middle")]
            parts += [text(left + 14, 270, f"{expert + 1}", "soft middle")]
        parts += [arrow((x, 250), (x + 200, 250))]
    parts += [text(360, 296, "weight of each of five experts, from the same logits", "soft middle")]
    return svg(720, 312, "Softmax of the same logits at temperatures 0.3, 1 and 3", parts)


def trunk() -> str:
    """Image -> shared stages -> branches and gate -> sum."""
    parts = [labelled(16, 158, 66, 44, "image")]
    for place, stage in enumerate(("stem", "stage 1", "stage 2", "stage 3")):
        x = 104 + place * 78
        parts += [arrow((x - 22, 180), (x, 180)), labelled(x, 140, 58, 80, stage)]
    parts += [text(233, 250, "the trunk: once an image", "soft middle")]
    parts += [text(510, 32, "nine branches, side by side", "soft middle")]
    for place, (role, colour, _) in enumerate(EXPERTS):
        y = 46 + place * 29
        parts += [arrow((396, 180), (420, y + 11), (446, y + 11))]
        parts += [box(446, y, 128, 22), box(446, y, 6, 22, colour), text(464, y + 16, role)]
    parts += [arrow((396, 180), (420, 335), (446, 335)), labelled(446, 316, 128, 38, "gate")]
    parts += [arrow((574, 168), (606, 180)), arrow((574, 335), (590, 335), (606, 196))]
    parts += [labelled(608, 158, 96, 44, "Σₑ wₑ pₑ")]
    return svg(720, 372, "An image, a shared trunk, nine branches and a gate", parts)


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
    parts = []
    for place, (path, share) in enumerate(found.items()):
        y = 44 + place * 34
        parts += [text(300, y + 16, path, "end"), box(312, y, max(2, 320 * share), 22, "one")]
        parts += [text(320 + 320 * share, y + 16, f"{100 * share:.0f}%", "soft")]
    height = 60 + 34 * len(found)
    parts += [text(20, 28, "share of the variance of val_robust, 24 trials, fANOVA", "soft")]
    return svg(720, height, "Importance of a study's settings", parts)


FIGURES = {"mixture": mixture, "gate": gate, "trunk": trunk, "importance": importance}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
