"""A checkpoint as an MLflow model: images in, codes of every rung out.

MLflow stores data only: a checkpoint of safetensors and JSON, and the name of this module, whose `_load_pyfunc`
rebuilds the model. The artifacts hold no code and no pickle, so loading a model runs nothing but the installed package.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch import Tensor

from jobs.checkpoints.format import export_model, load_model, read_meta
from jobs.evaluation.encode import rung_means

CHECKPOINT = "data/checkpoint"  # folder of the checkpoint in an MLflow model


class VlaeEncoder:
    """Encoder of an exported checkpoint: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(images)`.

    Raises:
        CorruptedError: A file of the checkpoint is missing or differs from what was written.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._model = load_model(checkpoint)

    def predict(
        self,
        model_input: NDArray[np.uint8],
        params: dict[str, Any] | None = None,  # noqa: ARG002  (MLflow passes it)
    ) -> dict[str, NDArray[np.float32]]:
        """Return `rung_0` (next to the pixels), ...: posterior means (N, D_l) float32 of images (N, H, W, C) uint8."""
        images = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2)
        return {f"rung_{rung}": means for rung, means in enumerate(rung_means(self._model, images))}


def _load_pyfunc(data_path: str) -> VlaeEncoder:
    """Return the model that MLflow loads; it calls this function by name (`loader_module`)."""
    return VlaeEncoder(Path(data_path))


def package_model(checkpoint: Path, folder: Path, example: Tensor, model_id: str, run_id: str) -> None:
    """Write the MLflow model of a checkpoint into an empty or missing folder; raise UserError if the source is damaged.

    The model has `MLmodel`, the checkpoint without optimizer state, and `example` images, (n, C, H, W) uint8.
    """
    meta = read_meta(checkpoint)
    channels, height, width = meta["image_shape"]
    dims = meta["model"]["latent_dims"]
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, dim), f"rung_{rung}") for rung, dim in enumerate(dims)]),
    )
    exported = folder.with_name(f"{folder.name}.exported") / Path(CHECKPOINT).name
    export_model(checkpoint, exported)
    mlflow.pyfunc.save_model(
        folder,
        loader_module=__name__,
        data_path=str(exported),
        signature=signature,
        input_example=example.permute(0, 2, 3, 1).numpy(),
        pip_requirements=[f"vlae-pipeline=={version('vlae-pipeline')}"],
        mlflow_model=Model(model_id=model_id, run_id=run_id),
    )
