"""`fmoe predict`: labels of images, and which experts decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Json
from pipelines.output import percent, result, say


def predict(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or registry URI.")],
    images: Annotated[list[Path], typer.Argument(help="Image files; resized to the model's size.")],
    json: Json = False,
) -> None:
    """Predict the label of each image, with its probability and the gate's weights.

    \b
    fmoe predict models:/fmoe-cifar10@candidate cat.png dog.jpg
    """
    import torch

    from fmoe import model_folder
    from fmoe.data.images import read_image
    from fmoe.errors import UserError
    from fmoe.locate import located

    with result(json) as answer:
        with located(model) as folder:
            network, config, card = model_folder.load_model(folder)
        facts = model_folder.facts_of(card)
        x = torch.stack([read_image(image, facts.shape) for image in images])
        with torch.no_grad():
            probabilities, weights = network(x).exp(), network.gate_weights(x)
        for image, row in zip(images, probabilities, strict=True):
            if not row.isfinite().all():
                raise UserError(f"{image}: {model} gives what is not finite; no label is right")
        experts = [f"{role}-{i}" for role, i in config.experts.members]
        answer["predictions"] = predictions = []
        for i, image in enumerate(images):
            best = int(probabilities[i].argmax())
            predictions.append(
                {
                    "image": str(image),
                    "label": facts.classes[best],
                    "probability": probabilities[i, best].item(),
                    "gate_weights": dict(zip(experts, weights[i].tolist(), strict=True)),
                }
            )
            top = max(zip(weights[i].tolist(), experts, strict=True))
            say(
                json,
                f"{image}: {facts.classes[best]} {percent(probabilities[i, best].item())} "
                f"(most weight: {top[1]} {percent(top[0])})",
            )


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("predict", predict)
