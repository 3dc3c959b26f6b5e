"""A checkpoint as an MLflow model: images in, codes of every rung out, for whoever has this package installed.

No pickle: the model is code by name (`served_model.py`) and a checkpoint of safetensors and JSON, which
`load_model` verifies.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch import Tensor

from jobs.checkpoints.format import export_model, load_model, read_meta
from jobs.evaluation.encode import rung_means

_NAME = "checkpoint"  # of the artifact
CHECKPOINT = f"artifacts/{_NAME}"  # where it lies in the model
_CODE = Path(__file__).with_name("served_model.py")


class VlaeEncoder(PythonModel):
    """`mlflow.pyfunc.load_model("models:/NAME@champion").predict(images)`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild the model.

        Raises:
            UserError: a file of the checkpoint is missing or not as it was written.
        """
        self._model = load_model(Path(context.artifacts[_NAME]))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: np.ndarray,  # other annotations MLflow warns of
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> dict[str, NDArray[np.float32]]:
        """Posterior means of each rung.

        Args:
            context: MLflow's, as at loading.
            model_input: (N, H, W, C) uint8.
            params: none are known.

        Returns:
            `rung_0` (nearest the pixels), `rung_1`, ...: (N, D_l) float32.
        """
        images = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2)
        return {f"rung_{rung}": means for rung, means in enumerate(rung_means(self._model, images))}


def package_model(checkpoint: Path, folder: Path, example: Tensor, model_id: str, run_id: str) -> None:
    """Write the MLflow model of a checkpoint to an empty or missing folder.

    Args:
        checkpoint: its folder.
        folder: of the model: MLmodel, the code, the checkpoint without its optimizer state, an example.
        example: (n, C, H, W) uint8 images, kept with the model to try it on.
        model_id: of the LoggedModel that it will be.
        run_id: that trained it.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    meta = read_meta(checkpoint)
    channels, height, width = meta["image_shape"]
    dims = meta["model"]["latent_dims"]
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, dim), f"rung_{rung}") for rung, dim in enumerate(dims)]),
    )
    exported = folder.with_name(f"{folder.name}.exported") / _NAME
    export_model(checkpoint, exported)
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(_CODE),
        artifacts={_NAME: str(exported)},
        signature=signature,
        input_example=example.permute(0, 2, 3, 1).numpy(),
        pip_requirements=[f"vlae-pipeline=={version('vlae-pipeline')}"],
        mlflow_model=Model(model_id=model_id, run_id=run_id),
    )
