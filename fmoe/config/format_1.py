"""What fmoe 0.1.0 wrote, in the words of today: model folders of format 1, and keys that moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BACKBONES = {"resnet18": "cifar", "resnet18-patch": "patch"}
"""Its names, and the stem that each of them means."""
NORMALISATION: dict[str, tuple[list[float], list[float]]] = {
    "digits": ([0.3053], [0.3760]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "svhn": ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
}
"""Mean and std by which it trained; its folders do not hold them, so these never change."""


def card(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`model.json` with the normalisation. Raises `KeyError` for a data set that 0.1.0 did not
    know."""
    name = tree["data"]["name"]
    if not isinstance(name, str):
        raise KeyError(name)
    mean, std = NORMALISATION[name]
    return {**tree, "mean": mean, "std": std}


def config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`experts: {backbone: resnet18, width: 8}` as one backbone; anything else as it is."""
    experts = tree.get("experts")
    if not isinstance(experts, dict) or moved(tree) is None:
        return dict(tree)
    name, width = experts.get("backbone", "resnet18"), experts.get("width", 64)
    if not isinstance(name, str) or name not in BACKBONES:
        return dict(tree)
    backbone = {"kind": "resnet18", "width": width, "stem": BACKBONES[name]}
    rest = {key: value for key, value in experts.items() if key not in ("backbone", "width")}
    return {**tree, "experts": {"backbone": backbone, **rest}}


def moved(tree: Mapping[str, Any]) -> str | None:
    """What to say of a key that has another path now; None where there is no such key."""
    experts = tree.get("experts")
    if not isinstance(experts, dict):
        return None
    if "width" in experts:
        return "experts.width: is now experts.backbone.width"
    name = experts.get("backbone")
    if isinstance(name, str):
        stem = ", stem: patch" if name == "resnet18-patch" else ""
        kind = "resnet18" if name in BACKBONES else name[:40]
        return f"experts.backbone: is now a kind and its fields: {{kind: {kind}{stem}}}"
    return None
