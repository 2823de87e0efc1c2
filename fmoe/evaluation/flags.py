"""Sanity flags: each is a reason not to trust the figures, and stops promotion.

A flag reads `code: what was seen`. The thresholds are the protocol's; each allows for the few
images that decide by chance in a small set.
"""

from __future__ import annotations

from collections.abc import Iterator

from fmoe.evaluation.chunk import BY, gate_weights, share
from fmoe.evaluation.figures import accuracy_after, better_alone
from fmoe.evaluation.findings import Findings
from fmoe.evaluation.intervals import mcnemar
from fmoe.evaluation.standard import LEAST_FOR_DLR, PARTS, SQUARE
from fmoe.evaluation.witness import ODD, Odd

PERCENT_POINT = 0.01
BY_PART = BY + "autoattack"
BLACK_BOX_SHARE = 0.002
"""As AutoAttack's own check has it, which our calling its parts one by one leaves out."""
GAP_IN_ACCURACY = 0.08
COLLAPSED_SHARE = 0.95
UNSURE_PROBABILITY = 0.1
"""How far above an equal share the largest probability of a trained model is not."""
MISLED_SHARE = 0.25
"""Share of images on which a step along the gradient may lower the loss: curvature does that."""
ABOVE_CHANCE = 0.05
"""How far above chance the accuracy at the largest eps may stay."""
SIGNIFICANT_P = 0.01
"""p-value below which two accuracies on the same images differ."""
TEST_SELECTION = "selected-on-test: the test split was used for selection"


def raised(findings: Findings) -> list[str]:
    checks = (
        *(non_finite, probabilities, steady, stateful, together, mode, gradients, misleading),
        *(scale, iterated, unsure, black_box, longer, larger, gap),
    )
    flags = [flag for check in checks for flag in check(findings)]
    if findings.settings.collapse_stops:
        flags += collapse(findings)
    if findings.settings.selected_on == "test":
        flags.append(TEST_SELECTION)
    return [*flags, *findings.raised]


def noted(findings: Findings) -> list[str]:
    """What the reader should know and what stops nothing."""
    notes = [] if findings.settings.collapse_stops else list(collapse(findings))
    classes = int(findings.columns["classes"].max()) if "classes" in findings.columns else 10
    if BY_PART in findings.columns and classes < LEAST_FOR_DLR:
        notes.append(
            f"{classes} classes have no targeted DLR loss: AutoAttack's apgd-t ascends the "
            "target's logit minus the label's"
        )
    if "transfer" in findings.columns:
        notes += [
            f"{name} alone is at least as accurate as the mixture, and more under PGD"
            for name in better_alone(findings.columns, findings.labels, findings.settings.experts)
        ]
    return notes


def odd(findings: Findings, kind: Odd, more_than: float = 0) -> str:
    """Where more than so many images were odd: `40 of 100 clean images, 30 under fgsm`."""
    counts = {
        name.removeprefix(ODD): int(((seen & int(kind)) != 0).sum())
        for name, seen in findings.columns.items()
        if name.startswith(ODD)
    }
    told = [
        f"{count} of {findings.images} clean images"
        if stage == "clean"
        else f"{count} under {stage}"
        for stage, count in counts.items()
        if count > more_than
    ]
    return ", ".join(told)


def non_finite(findings: Findings) -> Iterator[str]:
    where = odd(findings, Odd.NON_FINITE)
    if where:
        yield f"non-finite-output: NaN or infinite on {where}; it counts as wrong"


def probabilities(findings: Findings) -> Iterator[str]:
    if "probabilities" in findings.columns and findings.columns["probabilities"].all():
        yield (
            "probabilities: every output sums to 1; attacked through its logarithm, but logits or "
            "log-probabilities are expected, which do not round where the model is sure"
        )


def steady(findings: Findings) -> Iterator[str]:
    changed = int((~findings.columns["steady"]).sum())
    if changed:
        yield f"random: two forward passes differ on {changed} of {findings.images} images"
    else:
        where = odd(findings, Odd.RANDOM)
        if where:
            yield f"random: two forward passes differ on {where}"


def stateful(findings: Findings) -> Iterator[str]:
    where = odd(findings, Odd.STATEFUL, PERCENT_POINT * findings.images)
    if where:
        yield f"stateful: what the model was asked before changes its answer on {where}"


def together(findings: Findings) -> Iterator[str]:
    where = odd(findings, Odd.BATCH)
    if where:
        yield f"batch-dependent: the other images of the batch change the answer on {where}"


def mode(findings: Findings) -> Iterator[str]:
    where = odd(findings, Odd.MODE)
    if where:
        yield f"gradient-mode: asking for a gradient changes the answer on {where}"


def gradients(findings: Findings) -> Iterator[str]:
    largest = findings.columns["gradient"]
    dead = int(((largest == 0) | ~largest.isfinite()).sum())
    if dead > PERCENT_POINT * findings.images:
        yield (
            f"masked-gradient: the input gradient is zero or not finite, or the loss exactly 0, "
            f"on {dead} of {findings.images} images"
        )
        return
    where = odd(findings, Odd.GRADIENT | Odd.FLAT, PERCENT_POINT * findings.images)
    if where:  # clean images: with noise, too
        yield f"masked-gradient: the input gradient is zero or not finite near {where}"


def misleading(findings: Findings) -> Iterator[str]:
    where = odd(findings, Odd.MISLED, MISLED_SHARE * findings.images)
    if where:
        yield f"misleading-gradient: a step along it does not raise the loss on {where}"


def scale(findings: Findings) -> Iterator[str]:
    """A model that wants its images normalised before it: eps would be in the wrong scale."""
    for name in ("standardised", "bytes"):
        other = findings.columns[f"scaled.{name}"] == findings.labels
        more = share(other) - findings.clean
        if more > 2 * PERCENT_POINT and mcnemar(other, findings.right) < SIGNIFICANT_P:
            what = "standardised" if name == "standardised" else "0 to 255"
            yield (
                f"outside-normalisation: {more:.1%} more accurate on {what} images than on "
                "pixels in [0,1]; normalisation belongs inside the model"
            )


def iterated(findings: Findings) -> Iterator[str]:
    """Only pgd can leave more than fgsm: it, too, is run on every image that is right."""
    robust = findings.robust
    if "fgsm" in robust and "pgd" in robust and robust["pgd"] - robust["fgsm"] > PERCENT_POINT / 2:
        yield f"weak-iterated: pgd leaves {robust['pgd']:.1%}, one-step fgsm {robust['fgsm']:.1%}"


def unsure(findings: Findings) -> Iterator[str]:
    """Where all classes are about equally probable, the cross-entropy's gradient is that of their
    mean and leads to none."""
    if "margin" not in findings.columns or "pgd" not in findings.robust:
        return
    classes = int(findings.columns["classes"].max())
    pgd, one = findings.robust["pgd"], share(findings.right & findings.columns["margin"])
    even = findings.columns["confidence"].median().item() < 1 / classes + UNSURE_PROBABILITY
    if even and pgd - one > 2 * PERCENT_POINT:
        yield (
            f"weak-loss: logits all but equal: by the cross-entropy pgd leaves {pgd:.1%}, and one "
            f"step by the margin {one:.1%}"
        )


def black_box(findings: Findings) -> Iterator[str]:
    """Attacks that need no gradient of the mixture break what its own gradient did not."""
    if "transfer" in findings.columns:
        matrix = findings.columns["transfer"]
        own = share(findings.right & matrix[:, -1, -1])
        others = (findings.right[:, None] & matrix[:, :-1, -1]).double().mean(0)
        weakest = others.min().item()
        if own - weakest > PERCENT_POINT:
            yield (
                f"weak-white-box: examples made on expert {int(others.argmin())} leave "
                f"{weakest:.1%}, those made on the mixture itself {own:.1%}"
            )
    by = findings.columns.get(BY_PART)
    if by is not None:
        square = int((by == PARTS.index(SQUARE)).sum())
        if square > max(1, BLACK_BOX_SHARE * findings.images):
            yield (
                f"weak-white-box: Square, which needs no gradient, breaks {square} of "
                f"{findings.images} images that gradients did not"
            )


def longer(findings: Findings) -> Iterator[str]:
    if "step" in findings.columns:
        after = {k: accuracy_after(findings.columns["step"], findings.right, k) for k in (50, 100)}
        if after[50] - after[100] > PERCENT_POINT:
            yield (
                f"unfinished-attack: PGD leaves {after[50]:.1%} after 50 steps and "
                f"{after[100]:.1%} after 100"
            )


def larger(findings: Findings) -> Iterator[str]:
    if "radius" in findings.columns:
        left = share(findings.columns["radius"].isinf())
        # the best that a model can do that always says the same
        chance = findings.labels.bincount().max().item() / findings.images
        if left > chance + ABOVE_CHANCE:
            yield f"never-breaks: {left:.1%} survive the largest eps, where chance is {chance:.1%}"


def gap(findings: Findings) -> Iterator[str]:
    robust = {name: left for name, left in findings.robust.items() if name != "fgsm"}
    if "pgd" in robust:
        name = min(robust, key=robust.__getitem__)
        if robust["pgd"] - robust[name] > GAP_IN_ACCURACY:
            yield (
                f"wide-gap: pgd leaves {robust['pgd']:.1%}, {name} and what came before it "
                f"{robust[name]:.1%}: gradients mislead"
            )


def collapse(findings: Findings) -> Iterator[str]:
    """A single expert is no mixture, and cannot collapse."""
    for name, weights in gate_weights(findings.columns).items():
        if weights.shape[1] < 2:
            continue
        where = {"clean": "clean", "pgd": "attacked"}[name]
        carried = (weights > COLLAPSED_SHARE).double().mean(0)
        if carried.max() > COLLAPSED_SHARE:
            yield (
                f"gate-collapse: expert {int(carried.argmax())} carries over {COLLAPSED_SHARE:.0%} "
                f"of the weight on {carried.max().item():.1%} of {where} images"
            )
