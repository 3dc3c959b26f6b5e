"""The state of a training at one step, copied to the CPU: what a checkpoint is written from while training goes on."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from jobs.checkpoints.format import FORMAT, HISTORY, META, OPTIMIZER, TRAINED, WEIGHTS, seal, tensors_sha256
from jobs.errors import UserError
from jobs.events import MetricPoint
from jobs.files import file_sha256, write_json
from jobs.training.ema import averaged_model
from jobs.training.state import Training


@dataclass(frozen=True)
class Snapshot:
    """Copies of all that a checkpoint holds."""

    step: int
    score: float | None  # finite validation ELBO at this step, by which the best checkpoint is kept
    weights: dict[str, Tensor]  # to use: the moving average where there is one
    trained: dict[str, Tensor] | None  # the trained weights beside an average
    optimizer: dict[str, Tensor]  # by the name of the parameter it belongs to: `trunk.0.weight:exp_avg`
    history: list[MetricPoint]
    pending: list[list[float]]  # values of the steps since the last point of the curve
    meta: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint into an empty folder, the one that makes it whole last."""
        points = ",\n".join([point.json for point in self.history])
        (folder / HISTORY).write_text(f'{{"points": [{points}],\n"pending": {json.dumps(self.pending)}}}\n')
        mode = (folder / HISTORY).stat().st_mode  # safetensors leaves files that no other user may read
        files = {WEIGHTS: self.weights, OPTIMIZER: self.optimizer, TRAINED: self.trained}
        for name, tensors in files.items():
            if tensors is not None:
                _write_tensors(tensors, folder / name)
                (folder / name).chmod(mode)
        meta = {
            **self.meta,
            "weights_sha256": tensors_sha256(self.weights),
            "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.suffix},
        }
        write_json(folder / META, seal(meta))


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # also for a full disk
        raise UserError(f"{path}: {error}; mend that and run again") from error


def take_snapshot(
    training: Training, history: list[MetricPoint], pending: list[list[float]], score: float | None
) -> Snapshot:
    """Copy the state of a training: the only part of a checkpoint that training waits for."""
    job, model, ema = training.job, training.model, training.ema
    meta = {
        "format": FORMAT,
        "step": training.step,
        "score": score,
        "model": job.model.model_dump(mode="json"),
        "image_shape": model.image_shape,
        "settings": dict(job.settings),
        "data_fingerprint": training.loader.data.manifest.fingerprint,
        "ema_updates": 0 if ema is None else int(ema.n_averaged),
        "machine": machine(training.worker.device) if job.train.deterministic else None,
        "versions": {name: version(name) for name in ("vlae-pipeline", "torch", "ray")},
    }
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    moments = training.optimizer.state_dict()["state"]
    return Snapshot(
        training.step,
        score,
        _copies(averaged_model(ema, model).state_dict()),
        None if ema is None else _copies(model.state_dict()),
        _copies({f"{names[i]}:{entry}": value for i, state in moments.items() for entry, value in state.items()}),
        list(history),
        pending,
        meta,
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What the bits of a sum depend on, besides the program."""
    if device.type == "cuda":
        return {"device": "cuda", "processor": torch.cuda.get_device_name(device), "threads": 0}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return {"device": "cpu", "processor": processor, "threads": torch.get_num_threads()}


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU in plain memory order, which is what safetensors stores; nobody else writes to them."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()) for name, tensor in tensors.items()
    }
