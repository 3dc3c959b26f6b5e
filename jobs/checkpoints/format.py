"""Checkpoints: weights and optimizer state as safetensors, everything else as JSON, no pickle.

A checkpoint is a folder `step-00001500` that carries the sha256 of its files and rebuilds its model without any other
file; `snapshot.py` writes it, `checkpoints.py` knows where. Its `model.safetensors` are the weights to use: the moving
average where there is one, and then the trained weights lie beside it for a resume.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs.errors import CorruptedError, UserError
from jobs.events import MetricPoint
from jobs.files import file_sha256
from vlae.config import ModelConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model

FORMAT = 5
META, WEIGHTS, HISTORY = "checkpoint.json", "model.safetensors", "history.json"
OPTIMIZER, TRAINED = "optimizer.safetensors", "trained.safetensors"
_FILES = {WEIGHTS, OPTIMIZER, HISTORY}  # beside the JSON part; TRAINED is there where there is an average
_SEAL = "sha256"  # of the rest of the JSON, which holds the sha256 of every other file
_ABSENT = FileNotFoundError, NotADirectoryError, IsADirectoryError  # what a read says of a file that is not there


@dataclass(frozen=True)
class Restored:
    """What a resume needs besides the weights, which are loaded in place."""

    step: int
    history: list[MetricPoint]
    pending: list[list[float]]  # values of the steps since the last point of the curve
    machine: Mapping[str, Any] | None = None  # that an exact run has been trained on
    passed_over: Sequence[int] = ()  # steps of newer checkpoints, which are damaged


def weights_sha256(model: nn.Module) -> str:
    """sha256 over the bytes of the model's tensors, by sorted name (hex)."""
    return tensors_sha256({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()})


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the bytes of contiguous tensors on the CPU, by sorted name (hex)."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def restore(
    path: Path,
    model: HierarchicalModel,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    settings: Mapping[str, str],
) -> Restored:
    """Load weights, their average and optimizer state in place.

    Args:
        path: of the checkpoint.
        model, optimizer, ema: to load into.
        settings: of the training that goes on.

    Raises:
        UserError: the checkpoint is of a training with other settings.
    """
    meta = read_meta(path)
    if changed := differences(meta["settings"], settings):
        raise UserError(
            f"{path.name} is of a training with other settings ({changed}): set them back, "
            "or start a new training from it with init_from="
        )
    _check_shape(meta, model, path.name)
    # Without an average, then or now, the weights to use are the trained ones, and the average begins with them.
    model.load_state_dict(load_file(path / (TRAINED if TRAINED in meta["files"] else WEIGHTS)))
    if ema is not None:
        ema.module.load_state_dict(load_file(path / WEIGHTS))
        ema.n_averaged.fill_(meta["ema_updates"])
    state = _optimizer_state(load_file(path / OPTIMIZER), model)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    pending = json.loads((path / HISTORY).read_text())["pending"]
    return Restored(meta["step"], read_history(path), pending, meta["machine"])


def _optimizer_state(saved: Mapping[str, Tensor], model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """State by the number that the optimizer gives a parameter, from state by its name."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(trained))}
    numbers = {name: index for index, (name, _) in enumerate(trained)}
    for key, tensor in saved.items():
        name, _, entry = key.rpartition(":")
        parameter = trained[numbers[name]][1]
        # A fused optimizer walks parameter and state in memory order: they must be laid out alike.
        laid_out = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state[numbers[name]][entry] = laid_out
    return state


def _check_shape(meta: Mapping[str, Any], model: HierarchicalModel, name: str) -> None:
    """Images of other data may not fit a checkpoint that a training was forked from."""
    if tuple(meta["image_shape"]) != tuple(model.image_shape):
        shapes = ["x".join(map(str, shape)) for shape in (meta["image_shape"], model.image_shape)]
        raise UserError(
            f"{name} is of a model for images of {shapes[0]}, the data's are {shapes[1]} (channels x height x width): "
            "use data of that shape, or start without init_from= and with force=train"
        )


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Settings that differ, `train.adam_beta2 .9 -> .99, ...`; empty if none does."""
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return ", ".join(f"{key} {old.get(key, '(unset)')} -> {new.get(key, '(unset)')}" for key in keys)


def read_history(path: Path) -> list[MetricPoint]:
    """The learning curve up to a checkpoint."""
    return [MetricPoint(**point) for point in json.loads((path / HISTORY).read_text())["points"]]


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        DamagedError: missing, damaged, or of another version.
        UserError: it cannot be read.
    """
    try:
        return parse_meta((path / META).read_bytes(), str(path))
    except _ABSENT as error:
        raise CorruptedError(f"{path} is not a checkpoint ({error}): train again with force=train") from error
    except OSError as error:
        raise _unreadable(path / META, error) from error


def parse_meta(content: bytes, address: str) -> dict[str, Any]:
    """The JSON part of a checkpoint, from its bytes; errors as for `read_meta`."""
    try:
        meta: dict[str, Any] = json.loads(content)
        found = meta["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedError(f"{address} is not a checkpoint ({error}): train again with force=train") from error
    if found != FORMAT:
        raise CorruptedError(f"{address} has format {found}, this version reads {FORMAT}: train again with force=train")
    if meta.pop(_SEAL, None) != seal(meta)[_SEAL]:
        raise CorruptedError(f"{address}/{META} is not as it was written: train again with force=train")
    if not isinstance(meta.get("files"), dict) or not _FILES <= set(meta["files"]) <= {*_FILES, TRAINED}:
        raise CorruptedError(f"{address}/{META} does not name the files of a checkpoint: train again with force=train")
    return meta


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON part with the sha256 of itself."""
    return {**meta, _SEAL: hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()}


def verify(path: Path, address: str) -> None:
    """See that every file of a checkpoint has its sha256.

    Raises:
        DamagedError: one is missing, or not as it was written.
        UserError: nobody can tell, as a file is there and cannot be read.
    """
    for name, digest in read_meta(path)["files"].items():
        try:
            found = file_sha256(path / name)
        except _ABSENT as error:
            raise damaged(address, name) from error
        except OSError as error:
            raise _unreadable(path / name, error) from error
        if found != digest:
            raise damaged(address, name)


def damaged(address: str, name: str) -> CorruptedError:
    """The error for a file of a checkpoint that is missing, or not as it was written."""
    return CorruptedError(f"checkpoint {address} is damaged ({name}): train again with force=train")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"checkpoint {path}: {error.strerror or error}; mend that and run again")


def load_model(path: Path) -> HierarchicalModel:
    """Rebuild the model of a checkpoint, in evaluation mode on the CPU.

    Raises:
        DamagedError: the checkpoint is missing or damaged.
    """
    meta = read_meta(path)
    weights = path / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != meta["files"][WEIGHTS]:
        raise damaged(str(path), WEIGHTS)
    channels, height, width = meta["image_shape"]
    model = build_model(TypeAdapter(ModelConfig).validate_python(meta["model"]), (channels, height, width))
    model.load_state_dict(load_file(weights))
    return model.eval()


def export_model(path: Path, folder: Path) -> None:
    """Copy what `load_model` needs, and no optimizer state, to an empty or missing `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (META, WEIGHTS):
        shutil.copyfile(path / name, folder / name)
