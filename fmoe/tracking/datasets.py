"""What a run was given to learn from and to be judged on, as MLflow's pages show datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from mlflow.entities import Dataset, DatasetInput, InputTag

from fmoe.data import Data, Images, TrainingData

CONTEXT = "mlflow.data.context"
LONGEST_DIGEST = 36
"""MLflow's limit; a sha256 has 64 characters."""


def inputs(data: TrainingData[Images]) -> list[DatasetInput]:
    """Its parts, each by a digest of which images it has."""
    return [
        DatasetInput(
            Dataset(
                name=f"{data.name}/{part}",
                digest=digest[:LONGEST_DIGEST],
                source_type="fmoe",
                source=json.dumps({"name": data.name, "published_sha256": published}),
                schema=_schema(images.shape),
                profile=json.dumps(
                    {
                        "num_rows": len(images),
                        "shape": list(images.shape),
                        "classes": len(data.facts.classes),
                        "sha256": published,
                    }
                ),
            ),
            [InputTag(CONTEXT, context)],
        )
        for part, context, images, digest, published in _parts(data)
    ]


def _parts(data: TrainingData[Images]) -> Iterator[tuple[str, str, Images, str, str]]:
    """Name, context, images, digest, and that of the published files that they are of.

    Training and validation images are cut out of one part that is published, by their numbers.
    """
    published = data.train_digest
    for part, context, images in (("train", "training", data.train),
                                  ("validation", "validation", data.val)):  # fmt: skip
        cut = f"{published} {data.identity.val_images} {part} {len(images)}"
        yield part, context, images, hashlib.sha256(cut.encode()).hexdigest(), published
    if isinstance(data, Data):
        yield "test", "testing", data.test, data.test_digest, data.test_digest


def _schema(shape: tuple[int, ...]) -> str:
    """Of uint8 images [N,C,H,W] and labels [N]."""

    def tensor(kind: str, sides: tuple[int, ...]) -> str:
        spec = {"dtype": kind, "shape": [-1, *sides]}
        return json.dumps([{"type": "tensor", "tensor-spec": spec}])

    parts = {"features": tensor("uint8", shape), "targets": tensor("int64", ())}
    return json.dumps({"mlflow_tensorspec": parts})
