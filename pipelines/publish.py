"""What a finished run leaves: a model folder, plots, a page, a registered version."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fmoe import model_folder
from fmoe.config import Config
from fmoe.data import Data, Images
from fmoe.evaluation import Evaluation, examples
from fmoe.plots import run as run_plots
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker, tags
from fmoe.training import joint
from fmoe.training.calibration import deployed
from pipelines.judging import of_training


def publish(
    run: Folder,
    tracker: Tracker,
    config: Config,
    data: Data[Images],
    history: list[dict[str, float]],
    epoch: int,
    evaluation: Evaluation,
    name: str | None,
    further: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Registers the model of `epoch` as `name` (fmoe-<data>); gives its URI and digest.

    evaluation: its evaluation on the test images; further: tags of the version.
    """
    model = joint.trained(config, run, data.identity, epoch)
    config = deployed(config, history[epoch])
    parts = {"train_digest": data.train_digest, "test_digest": data.test_digest}
    report = evaluation.to_json() | {
        "data": data.name,
        "digest": data.digest,
        **parts,
        "epoch": epoch,
    }
    run.write_json("evaluation.json", report)
    charts = numbered(
        {
            "training_curves": run_plots.training_curves(history),
            "gate_weights": run_plots.gate_weights(history, config.experts.names),
            "adversarial_images": run_plots.adversarial_row(
                examples.first(model, data.test, config.evaluate.threat), data.facts.classes
            ),
            **of_experts(tracker),
        }
    )
    for title, figure in charts.items():
        write_figure(run, title, figure)
    registered = name or f"fmoe-{data.name}"
    with tempfile.TemporaryDirectory() as aside:
        for place in (Folder.at(aside), run / "model"):
            digest = model_folder.save_model(
                place,
                model.state_dict(),
                config,
                data_digest=data.digest,
                part_digests=parts,
                counts={"train": len(data.train), "val": len(data.val), "test": len(data.test)},
                metrics=report,
                facts=data.facts,
                extra={"run_id": tracker.run_id, "selected_on": "validation"},
            )
        page = Path(aside) / "report"
        card = model_folder.read_card(Folder.at(aside))
        of_training.write(run.name, model, config, card, data, evaluation, page)
        copy(page, run / "report")
        tracker.settle()
        tracker.log_figures(charts)
        tracker.log_folder(page, "report")
        tracker.log_json("evaluation.json", report)
        tracker.log({f"test_{key}": value for key, value in evaluation.figures.items()}, epoch)
        labels = tags.tested(evaluation.figures) | tags.tested_on(report)
        labels |= {tags.DIGEST: digest, tags.DATA_DIGEST: data.digest, **(further or {})}
        version = tracker.register(model, Path(aside), registered, data.facts.shape, labels)
    return f"models:/{registered}/{version}", digest


def of_experts(tracker: Tracker) -> dict[str, Figure]:
    """Where some were trained apart."""
    known = tracker.curves.epochs if tracker.curves else {}
    return {"experts": run_plots.expert_curves(known)} if known else {}


def numbered(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """By names that sort as they are to be read."""
    return {f"{place}_{name}": figure for place, (name, figure) in enumerate(figures.items(), 1)}


def copy(place: Path, folder: Folder) -> None:
    """Files and folders of files."""
    for path in sorted(place.rglob("*")):
        if path.is_file():
            inside = path.relative_to(place).parent.as_posix()
            (folder if inside == "." else folder / inside).write(path.name, path.read_bytes())


def write_figure(folder: Folder, name: str, figure: Figure) -> None:
    """`plots/NAME.png` in the folder."""
    (folder / "plots").write(f"{name}.png", run_plots.png(figure))
