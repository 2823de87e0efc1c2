"""What a registered version answers where MLflow serves it: labels, and which experts decided.

MLflow's `python_function` names this module as what loads the model: out of the model folder that
was verified by its digests, and never out of a pickle. Where fmoe is not installed the version's
other flavor, `pytorch`, is a program that gives log-probabilities alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array, Map

from fmoe import model_folder
from fmoe.data.facts import Facts
from fmoe.models.mixture import Mixture
from fmoe.storage.folder import Folder

AT_ONCE = 256
"""Images of a request that the model is asked about together."""
Pixels = np.ndarray[Any, np.dtype[np.float32]]


def signature(shape: tuple[int, ...]) -> ModelSignature:
    """Float32 images [B,C,H,W] to a row an image. shape: of an image [C,H,W]."""
    columns = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.double), "log_probabilities"),
        ColSpec(Map(DataType.double), "gate_weights"),
    ]
    return ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]), Schema(columns))


@dataclass(frozen=True)
class Served:
    """Of one model."""

    network: Mixture
    facts: Facts
    experts: tuple[str, ...]

    def predict(self, images_BCHW: Pixels, params: object = None) -> pd.DataFrame:
        """A row an image: label, probability, log_probabilities [K], gate_weights by expert.

        Raises `MlflowException` (HTTP 400) for what are no pixels of [0,1].
        """
        low, high = float(images_BCHW.min(initial=0.0)), float(images_BCHW.max(initial=0.0))
        if not (low >= 0 and high <= 1):
            raise MlflowException(
                f"images are from {low:g} to {high:g}: expected floats of [0,1], such as pixels / "
                "255",
                INVALID_PARAMETER_VALUE,
            )
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(images_BCHW)), AT_ONCE)
        with torch.no_grad():
            answers = [(self.network(part), self.network.gate_weights(part)) for part in parts]
        log_probs_BK, weights_BE = (torch.cat(given) for given in zip(*answers, strict=True))
        best_B = log_probs_BK.argmax(1)
        return pd.DataFrame(
            {
                "label": [self.facts.classes[best] for best in best_B.tolist()],
                "probability": log_probs_BK.exp().amax(1).tolist(),
                "log_probabilities": log_probs_BK.tolist(),
                "gate_weights": [
                    dict(zip(self.experts, row, strict=True)) for row in weights_BE.tolist()
                ],
            }
        )


def _load_pyfunc(path: str) -> Served:
    """As MLflow asks for it. path: the model folder."""
    network, config, card = model_folder.load_model(Folder.at(path))
    return Served(network, model_folder.facts_of(card), config.experts.names)
