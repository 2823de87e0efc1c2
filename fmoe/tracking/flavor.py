"""How MLflow keeps a version: a pt2 program, the model folder beside it, and what is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow import pyfunc
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from torch import nn

from fmoe.tracking import served
from fmoe.version import VERSION

FOLDER = "extra_files"
"""Where MLflow's pytorch flavor puts the files beside the program."""


def save_model(
    path: str,
    mlflow_model: Model,
    *,
    network: nn.Module,
    files: Sequence[Path],
    shape: tuple[int, ...],
) -> None:
    """Called by `Model.log`. files: of the model folder; shape: of an image [C,H,W].

    The program serves who has torch alone, the folder `fmoe.load`, `pull` and MLflow's own servers:
    an exported program can neither move to a device nor be trained.
    """
    torch_version = torch.__version__.split("+")[0]
    mlflow.pytorch.save_model(
        network,
        path,
        mlflow_model=mlflow_model,
        signature=served.signature(shape),
        # of more than one image: MLflow makes a program for one otherwise
        input_example=np.zeros((2, *shape), dtype=np.float32),
        serialization_format="pt2",
        extra_files=[file.as_uri() for file in files],
        pip_requirements=[
            f"torch=={torch_version}",
            f"mlflow=={mlflow.__version__}",
            f"fmoe=={VERSION}",
        ],
    )
    env = mlflow_model.flavors[pyfunc.FLAVOR_NAME][pyfunc.ENV]
    pyfunc.add_to_model(
        mlflow_model,
        loader_module=served.__name__,
        data=FOLDER,
        conda_env=env["conda"],
        python_env=env["virtualenv"],
    )
    mlflow_model.save(str(Path(path) / MLMODEL_FILE_NAME))
