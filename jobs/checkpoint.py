"""Checkpoints: weights and optimiser state as safetensors, everything else as JSON, no pickle.

A checkpoint is a folder `step-00001500` that appears whole or not at all, carries the sha256 of its
files and rebuilds its model without any other file. Its `model.safetensors` are the weights to use: the moving
average where there is one, and then the trained weights lie beside it for a resume.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs.ema import averaged_model
from jobs.errors import UserError
from jobs.files import file_sha256, remove_folder, write_json
from jobs.messages import Point
from vlae.build import build_model
from vlae.config import ModelConfig
from vlae.models.base import HierarchicalModel

FORMAT = 3
_META, _WEIGHTS, _HISTORY = "checkpoint.json", "model.safetensors", "history.json"
_OPTIMIZER, _TRAINED = "optimizer.safetensors", "trained.safetensors"
_SEAL = "sha256"  # of the rest of the JSON, which holds the sha256 of every other file


@dataclass(frozen=True)
class Restored:
    """What a resume needs besides the weights, which are loaded in place."""

    step: int
    history: list[Point]


def weights_sha256(model: nn.Module) -> str:
    """sha256 over the bytes of the model's tensors, by sorted name (hex)."""
    digest = hashlib.sha256()
    for _, tensor in sorted(_plain(model.state_dict()).items()):
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: HierarchicalModel,
    model_config: BaseModel,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    history: list[Point],
    data_fingerprint: str,
    keep: int,
) -> Path:
    """Write the checkpoint of `step` below `folder`, publish it by a rename, and drop all but the newest `keep`."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    used = averaged_model(ema, model)
    save_file(_plain(used.state_dict()), partial / _WEIGHTS)
    save_file(_optimizer_tensors(model, optimizer), partial / _OPTIMIZER)
    if ema is not None:
        save_file(_plain(model.state_dict()), partial / _TRAINED)
    write_json(partial / _HISTORY, [asdict(point) for point in history])
    meta = {
        "format": FORMAT,
        "step": step,
        "model": model_config.model_dump(mode="json"),
        "image_shape": model.image_shape,
        "data_fingerprint": data_fingerprint,
        "weights_sha256": weights_sha256(used),
        "ema_updates": 0 if ema is None else int(ema.n_averaged),
        "versions": {name: version(name) for name in ("vlae-pipeline", "torch", "ray")},
        "files": {path.name: file_sha256(path) for path in sorted(partial.iterdir())},
    }
    write_json(partial / _META, {**meta, _SEAL: _seal(meta)})
    remove_folder(final)
    partial.rename(final)
    published = _published(folder)
    kept = [path for path in published if path.name <= final.name][-keep:]
    for old in published:  # newer ones were found damaged, or this step would not be new
        if old not in kept:
            remove_folder(old)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below `folder`; damaged ones are passed over."""
    return next((path for path in reversed(_published(folder)) if _is_whole(path)), None)


def kept_checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints below `folder`, oldest first."""
    return [path for path in _published(folder) if _is_whole(path)]


def restore(
    path: Path, model: HierarchicalModel, optimizer: torch.optim.Optimizer, ema: AveragedModel | None
) -> Restored:
    """Load weights, their average and optimiser state in place."""
    meta = read_meta(path)
    model.load_state_dict(load_file(path / (_WEIGHTS if ema is None else _TRAINED)))
    if ema is not None:
        ema.module.load_state_dict(load_file(path / _WEIGHTS))
        ema.n_averaged.fill_(meta["ema_updates"])
    saved = load_file(path / _OPTIMIZER)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(trained))}
    numbers = {name: index for index, (name, _) in enumerate(trained)}
    for key, tensor in saved.items():
        name, _, entry = key.rpartition(":")
        parameter = trained[numbers[name]][1]
        # A fused optimiser walks parameter and state in memory order: they must be laid out alike.
        laid_out = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state[numbers[name]][entry] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Restored(meta["step"], read_history(path))


def read_history(path: Path) -> list[Point]:
    """The learning curve up to a checkpoint."""
    return [Point(**point) for point in json.loads((path / _HISTORY).read_text())]


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        UserError: missing, damaged, or of another version.
    """
    try:
        meta: dict[str, Any] = json.loads((path / _META).read_text())
        found = meta["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint ({error}): train again with force=train") from error
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, this version reads {FORMAT}: train again with force=train")
    if meta.pop(_SEAL, None) != _seal(meta):
        raise UserError(f"{path / _META} is not as it was written: train again with force=train")
    return meta


def load_model(path: Path) -> HierarchicalModel:
    """Rebuild the model of a checkpoint, in evaluation mode on the CPU.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    meta = read_meta(path)
    weights = path / _WEIGHTS
    if not weights.is_file() or file_sha256(weights) != meta["files"][_WEIGHTS]:
        raise UserError(f"checkpoint {path} is damaged: train again with force=train")
    channels, height, width = meta["image_shape"]
    model = build_model(TypeAdapter(ModelConfig).validate_python(meta["model"]), (channels, height, width))
    model.load_state_dict(load_file(weights))
    return model.eval()


def export_model(path: Path, folder: Path) -> None:
    """Copy what `load_model` needs, and no optimiser state, to an empty or missing `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_META, _WEIGHTS):
        shutil.copyfile(path / name, folder / name)


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _published(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _is_whole(path: Path) -> bool:
    try:
        return all(file_sha256(path / name) == digest for name, digest in read_meta(path)["files"].items())
    except (UserError, OSError):
        return False


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU in plain memory order, which is what safetensors stores."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state by the name of the parameter it belongs to: `trunk.0.weight:exp_avg`."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = optimizer.state_dict()["state"]
    return _plain({f"{names[i]}:{entry}": value for i, entries in state.items() for entry, value in entries.items()})
