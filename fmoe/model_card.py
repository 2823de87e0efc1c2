"""A trained model's card: `README.md` as Hugging Face reads it, out of `model.json` and settings.

Nothing is taken from another card, and nothing in it is checked when a folder is read: a folder's
`README.md` is written again from what was verified. Names are text (`fmoe.markdown`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from fmoe.attacks.threat import threat_model
from fmoe.config import Config
from fmoe.errors import UserError, plain
from fmoe.evaluation.intervals import wilson
from fmoe.markdown import block, code, codes, paragraphs, table

README = "README.md"
PAPER = "[Divided We Fall](https://arxiv.org/abs/2512.20821)"
ON_THE_HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
}
"""Data sets as Hugging Face calls them; a set of one's own has no name there."""
FIRST_SHOWN = 20
"""Classes, flags."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Figures(BaseModel):
    """Accuracies and what they are of, as far as an evaluation's JSON has them."""

    clean: Share
    robust: dict[str, Share] = Field(default_factory=dict, max_length=100)
    worst_case: Share
    images: Annotated[int, Field(ge=1, le=10**9)]
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    norm: str = "linf"
    flags: list[str] = Field(default_factory=list)
    stages: list[str] = Field(default_factory=list)
    protocol: int | str | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Figures | None:
        """None where it has none, or none that make sense."""
        try:
            return cls.model_validate(report)
        except ValidationError:
            return None

    @property
    def named(self) -> dict[str, float]:
        """Clean accuracy, each attack's, and the worst case, which says most."""
        return {"worst_case": self.worst_case, "clean": self.clean, **self.robust}

    def interval(self, share: float) -> str:
        """95%, Wilson's."""
        low, high = wilson(round(share * self.images), self.images)
        return f"{100 * low:.1f} to {100 * high:.1f}%"

    @property
    def threat(self) -> str:
        """The adversary, in a few words."""
        try:
            symbol = threat_model(self.norm, self.eps).symbol
        except UserError:
            symbol = code(self.norm)
        return f"{symbol} ε = {ratio(self.eps, self.norm)}"

    def headline(self) -> str:
        """The figure that counts, and whether anything speaks against it."""
        flags = f"**{len(self.flags)} flags**" if self.flags else "no flag"
        flags = flags.replace("1 flags", "1 flag")
        return (
            f"**{percent(self.worst_case)} worst case** ({self.interval(self.worst_case)}) under "
            f"{self.threat}, {percent(self.clean)} clean, {self.images:,} test images, {flags}."
        )

    def table(self) -> str:
        names = {"worst_case": "worst case", "clean": "clean"}
        rows = [
            [names.get(name) or code(name), percent(value), self.interval(value),
             f"{self.images:,}"]
            for name, value in self.named.items()
        ]  # fmt: skip
        return table(["", "accuracy:", "95% interval:", "n:"], rows)

    def told_flags(self) -> str:
        """Each on a line of a list; that there is none is said, too."""
        if not self.flags:
            return "No flag: nothing that the evaluation looks for speaks against these figures."
        shown = [f"- {code(flag)}" for flag in self.flags[:FIRST_SHOWN]]
        left = len(self.flags) - len(shown)
        lines = [*shown, *([f"- and {left} more"] if left else [])]
        return paragraphs("**Flags**, reasons not to trust these figures:", "\n".join(lines))


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def ratio(eps: float, norm: str) -> str:
    """`8/255` where it is of whole steps of a pixel, else the number."""
    steps = round(255 * eps)
    whole = norm == "linf" and steps > 0 and abs(255 * eps - steps) < 1e-6
    return f"{steps}/255" if whole else f"{eps:g}"


def attack(settings: Mapping[str, Any]) -> str:
    """What is trained against, out of its settings: `pgd` (eps 0.1, steps 3, 5 or 7)."""
    kind = settings.get("kind", "")
    if kind == "mix":
        parts = ", ".join(attack(part) for part in settings.get("of", ()))
        return f"a mix of {parts}"
    wanted = {key: settings.get(key) for key in ("eps", "step_size", "steps")}
    told = [
        f"{key.replace('_', ' ')} {drawn(value)}"
        for key, value in wanted.items()
        if value is not None
    ]
    return f"{code(kind)} ({', '.join(told)})" if told else code(kind)


def drawn(value: Any) -> str:
    """A number, or those that one is drawn from."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return f"{value:.4g}" if isinstance(value, int | float) else code(value)
    texts = [drawn(one) for one in value]
    return " or ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def network(config: Config, role: str) -> str:
    tree = config.experts.backbone_of(role).model_dump(mode="json")
    kind = str(tree.pop("name", None) or tree["kind"])
    width = f" of width {tree['width']}" if "width" in tree else ""
    return f"{kind}{width}"


def experts(config: Config) -> str:
    """A row a role, and what combines them."""
    roles = [(name, role) for name, role in config.experts.roles.items() if role.count]
    rows = [
        [code(name), str(role.count), code(network(config, name)),
         attack(role.attack.model_dump(mode="json"))]
        for name, role in roles
    ]  # fmt: skip
    gate = config.gate.model_dump(mode="json")
    learned = (
        f"Gate: {code(gate['kind'])}, temperature {drawn(gate.get('temperature', 1.0))}; it weighs "
        f"the experts' {config.mixing}."
    )
    trunk = config.experts.trunk
    shared = f"The experts share the network's first {trunk.stages} stages." if trunk else ""
    start = {
        "pretrained": "Each was trained apart against its role's attack first",
        "forked": "All were forked from one network",
        "fresh": "They began untrained",
    }[config.experts.start]
    together = (
        f"{start}; then all were trained together, on adversarial images that were made through "
        f"the whole mixture: {attack(config.joint.attack.model_dump(mode='json'))}, for up to "
        f"{config.joint.epochs} epochs (what learns: {code(config.joint.update)})."
    )
    confidence = (
        f"Roles {codes(config.confidence.accurate)} count only where the others are in doubt: the "
        f"two parts are combined by confidence (weight {config.confidence.weight:.3f})."
        if config.confidence
        else ""
    )
    listed = table(["role", "experts:", "network", "trained against"], rows)
    return paragraphs(listed, " ".join(filter(None, [learned, shared, confidence])), together)


def title(config: Config) -> str:
    count = len(config.experts.members)
    return f"A robust mixture of {count} experts" if count > 1 else "A robust network"


def data(card: Mapping[str, Any]) -> str:
    """What it was trained on, as `model.json` says."""
    told, classes = card["data"], card["classes"]
    counts = told.get("images") or {}
    rows = [[code(part), f"{count:,}"] for part, count in counts.items()]
    shape = " × ".join(map(str, card["input_shape"]))
    return paragraphs(
        f"{code(told['name'])}: images [C,H,W] of {shape}, {len(classes):,} classes "
        f"({codes(classes, FIRST_SHOWN)}).",
        table(["part", "images:"], rows) if rows else "",
        f"sha256 of the training and test images: {code(told['digest'])}",
    )


def limits(card: Mapping[str, Any], figures: Figures | None) -> str:
    chosen = card.get("selected_on")
    lines = [
        "Its robustness is against this adversary alone: not against another norm or a larger ε, "
        "not against corruptions, patches, rotations or other data.",
        "It answers with one of its classes whatever it is shown.",
    ]
    if figures is None:
        lines.insert(0, "No figures are kept with it: judge it before you trust it "
                        "(`fmoe evaluate FOLDER --full`).")  # fmt: skip
    elif "autoattack" not in {stage.partition(".")[0] for stage in figures.stages}:
        lines.insert(0, "Its figures are those of training's own evaluation, without AutoAttack: "
                        "`fmoe evaluate FOLDER --full` is stronger.")  # fmt: skip
    if chosen:
        lines.append(f"Its epoch was chosen on {code(chosen)} images.")
    return "\n".join(f"- {line}" for line in lines)


def loading(place: str, card: Mapping[str, Any]) -> str:
    """place: a model folder or a registry URI."""
    channels, height, width = card["input_shape"]
    return block(
        f"import fmoe\n\nmodel = fmoe.load({place!r})\n"
        f"log_probs = model(x)  # x: float [B,{channels},{height},{width}] in [0,1] -> "
        f"log-probabilities [B,{len(card['classes'])}]\n"
        "weights = model.gate_weights(x)  # [B,E], rows sum to 1",
        "python",
    )


def front_matter(card: Mapping[str, Any], figures: Figures | None) -> dict[str, Any]:
    """As https://huggingface.co/docs/hub/model-cards has it. The licence is the owner's to say."""
    name = card["data"]["name"]
    tree: dict[str, Any] = {
        "library_name": "fmoe",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "adversarial-training", "mixture-of-experts"],
    }
    if name in ON_THE_HUB:
        tree["datasets"] = [ON_THE_HUB[name]]
    if figures is None:
        return tree
    shown = plain(name)
    threat = f"{plain(figures.norm)} eps {ratio(figures.eps, figures.norm)}"
    titles = {"clean": "clean accuracy", "worst_case": f"worst-case accuracy, {threat}"}
    metrics = [
        {
            "type": "accuracy",
            "name": titles.get(attack, f"accuracy under {plain(attack)[:100]}, {threat}"),
            "value": round(value, 4),
        }
        for attack, value in figures.named.items()
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": ON_THE_HUB.get(name, shown), "name": shown, "split": "test"},
        "metrics": metrics,
    }
    return tree | {
        "metrics": ["accuracy"],
        "model-index": [{"name": f"fmoe {shown}", "results": [result]}],
    }


def render(card: Mapping[str, Any], config: Config) -> str:
    """`README.md` of a model folder.

    card: as `fmoe.model_folder.Card` checks it; what it holds beyond may be anything.
    """
    figures = Figures.of(card["metrics"])
    head = yaml.safe_dump(
        front_matter(card, figures), sort_keys=False, allow_unicode=True, width=10**6
    )
    version = code(card["versions"].get("fmoe", "?"))
    digests = [[code(name), code(card[key])] for name, key in
               (("model.safetensors", "sha256"), ("config.yaml", "config_sha256"))]  # fmt: skip
    judged = (
        f"On {figures.images:,} test images, {figures.threat}, with 95% Wilson intervals. The "
        f"worst case counts the images that survive every attack that was run "
        f"({codes(list(figures.robust))})."
        if figures
        else ""
    )
    body = paragraphs(
        f"# {title(config)} for {code(card['data']['name'])}",
        figures.headline() if figures else "",
        f"A classifier of images that was trained to hold up against adversarial examples, after "
        f"{PAPER}: a soft gate weighs experts that were trained against different attacks. Made "
        f"by fmoe {version}.",
        "## Figures" if figures else "",
        judged,
        figures.table() if figures else "",
        figures.told_flags() if figures else "",
        "## Data",
        data(card),
        "## Experts and gate",
        experts(config),
        "## How to load it",
        "The folder is checked against its digests when it is read. Normalisation is inside of the "
        "model.",
        loading("FOLDER", card),
        "## Limits",
        limits(card, figures),
        "## Files",
        table(["file", "sha256"], digests),
        f"`model.json` names them; this page (`{README}`) was written from it and is not read "
        "when the model is.",
    )
    return f"---\n{head}---\n\n{body}\n"
