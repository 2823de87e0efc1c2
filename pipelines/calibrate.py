"""`fmoe calibrate`: accurate and robust experts of a trained mixture, combined by confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.display import Display
from pipelines.options import DataDir, Json
from pipelines.output import percent, result, say


def calibrate(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or registry URI.")],
    to: Annotated[Path, typer.Option(help="The model folder to write.")],
    accurate: Annotated[
        str, typer.Option(help="Roles, with commas, whose experts are accurate, not robust.")
    ] = "benign",
    keep: Annotated[
        float,
        typer.Option(min=0.5, max=1, help="Share of what withstands attacks that shall still do."),
    ] = 0.98,
    images: Annotated[
        int | None, typer.Option(min=1, help="Only the first N validation images.")
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Fit `confidence` to validation images: clean accuracy for a bounded loss of robustness.

    The robust experts' answers are mapped by how sure they are; the accurate ones decide where
    these are in doubt. Weights stay as they are. Judge the new model as any other: the attacks know
    the maps, and also go round them.

    \b
    fmoe calibrate runs/my-run --to calibrated
    fmoe calibrate runs/my-run --to calibrated --keep 0.95 && fmoe evaluate calibrated --full
    """
    from fmoe import data, model_folder
    from fmoe.locate import located, replacing
    from fmoe.models.confidence import Calibrate
    from fmoe.storage.folder import Folder
    from fmoe.training import calibration

    with result(json) as answer, Display() as display, replacing(to) as fresh:
        with located(model) as folder:
            network, config, card = model_folder.load_model(folder)
        parts = config.data
        loaded = data.load_training(
            parts.name,
            data_dir,
            val_images=parts.val_images,
            train_images=parts.train_images,
            stream=None,  # where it is in files
        )
        calibration.check_data(card, loaded.train_digest)
        val = loaded.val[:images].held()
        bar = display.task("calibrate", len(val))
        fitted = calibration.calibrated(
            network,
            config,
            val,
            Calibrate(accurate=accurate.split(","), keep=keep, steps=20),
            progress=lambda done: display.update(bar, done),
        )
        digest = calibration.save(Folder.at(fresh), network, fitted, card)
        answer |= {"path": str(to.resolve()), "digest": digest, **fitted.to_json()}
    confidence, told = fitted.confidence, fitted.figures
    say(
        json,
        f"{to.resolve()}: weight {confidence.weight:.3f}, shift {confidence.shift:g}, power "
        f"{confidence.power:g}, scale {confidence.scale:.2f}",
        f"{told['images']} validation images, clean: {percent(told['clean_before'])} before, "
        f"{percent(told['clean'])} now ({percent(told['clean_accurate_part'])} by the accurate "
        f"part, {percent(told['clean_robust_part'])} by the robust one alone)",
    )


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("calibrate", calibrate)
