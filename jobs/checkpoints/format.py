"""The format of a checkpoint: weights and optimizer state as safetensors, everything else as JSON, no pickle.

A checkpoint is a folder `step-00001500` that carries the sha256 of its files and rebuilds its model without any other
file. `model.safetensors` holds the weights to use: the moving average where there is one; then the trained weights are
stored beside it, for a resume.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs.errors import CorruptedError, UserError, first_line, os_error_reason
from jobs.events import MetricPoint
from jobs.files import file_sha256, write_json
from vlae.config import ModelConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model

FORMAT = 6
META, WEIGHTS, HISTORY = "checkpoint.json", "model.safetensors", "history.json"
OPTIMIZER, TRAINED = "optimizer.safetensors", "trained.safetensors"
_FILES = {WEIGHTS, OPTIMIZER, HISTORY}  # TRAINED is optional
_SEAL = "sha256"  # key of the hash of the rest of the JSON, which holds the sha256 of every other file
_MISSING = FileNotFoundError, NotADirectoryError, IsADirectoryError  # errors of reading a file that does not exist
_RETRAIN = "Train again with force=train."


@dataclass(frozen=True)
class Snapshot:
    """Copies of a training's state after `step` updates, from which a checkpoint is written while training continues.

    Attributes:
        validation_elbo: In nats per image, by which the best checkpoint is kept; None where unknown or not finite.
        weights: Weights to use: the moving average where there is one.
        trained: Trained weights where there is a moving average, else None.
        optimizer: Optimizer state by parameter and entry, such as `trunk.0.weight:exp_avg`.
        pending: Packed step metrics since the last point of the curve.
        meta: Rest of the JSON part.
        warnings: Texts of the training's warnings by key.
    """

    step: int
    validation_elbo: float | None
    weights: dict[str, Tensor]
    trained: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    history: list[MetricPoint]
    pending: list[list[float]]
    meta: dict[str, Any]
    warnings: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder, `checkpoint.json` last, because it makes the checkpoint complete.

        Raises:
            UserError: The files cannot be written.
        """
        points = ",\n".join([point.json for point in self.history])
        rest = f'"pending": {json.dumps(self.pending)},\n"warnings": {json.dumps(self.warnings)}'
        (folder / HISTORY).write_text(f'{{"points": [{points}],\n{rest}}}\n')
        mode = (folder / HISTORY).stat().st_mode
        for name, tensors in {WEIGHTS: self.weights, OPTIMIZER: self.optimizer, TRAINED: self.trained}.items():
            if tensors is None:
                continue
            try:
                save_file(tensors, folder / name)
            except SafetensorError as error:  # also for a full disk
                raise UserError(
                    f"{folder / name}: cannot write ({first_line(error)}). Free space or correct permissions.",
                    retry=True,
                ) from error
            (folder / name).chmod(mode)  # because safetensors hides its files from other users
        meta = {
            "format": FORMAT,
            "step": self.step,
            "validation_elbo": self.validation_elbo,
            **self.meta,
            "weights_sha256": _tensors_sha256(self.weights),
            "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.suffix},
        }
        write_json(folder / META, seal(meta))


@dataclass(frozen=True)
class Restored:
    """State of a resumed training besides the weights, which are loaded in place.

    Attributes:
        pending: Packed step metrics since the last point of the curve.
        machine: Machine of a deterministic training, as `machine_info` returns it.
        skipped: Steps of newer checkpoints, which are damaged.
    """

    step: int
    history: list[MetricPoint]
    pending: list[list[float]]
    machine: Mapping[str, Any] | None = None
    warnings: dict[str, str] = field(default_factory=dict)
    skipped: Sequence[int] = ()


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 (64 hexadecimal digits) over the bytes of the model's tensors, by sorted name."""
    return _tensors_sha256({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()})


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
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
    """Return the rest of a verified checkpoint's state after loading weights, moving average and moments in place.

    Raises:
        UserError: The checkpoint belongs to a training with other settings or images of another shape.
    """
    meta = read_meta(path)
    if changed := differences(meta["settings"], settings):
        raise UserError(
            f"{path.name}: belongs to a training with other settings ({changed}). Set them back, or start a new "
            "training from it with init_from=."
        )
    if tuple(meta["image_shape"]) != tuple(model.image_shape):  # after a warm start on other data
        shapes = ["x".join(map(str, shape)) for shape in (meta["image_shape"], model.image_shape)]
        raise UserError(
            f"{path.name}: its model is for images of {shapes[0]} (channels x height x width), and the dataset's are "
            f"{shapes[1]}. Use a dataset of that shape, or start without init_from= and with force=train."
        )
    # Where one of the two trainings has no moving average, the average starts from the trained weights.
    model.load_state_dict(load_file(path / (TRAINED if TRAINED in meta["files"] else WEIGHTS)))
    if ema is not None:
        ema.module.load_state_dict(load_file(path / WEIGHTS))
        ema.n_averaged.fill_(meta["ema_updates"])
    state = _optimizer_state(load_file(path / OPTIMIZER), model)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    history = read_history(path)
    return Restored(meta["step"], history.points, history.pending, meta["machine"], history.warnings)


def _optimizer_state(saved: Mapping[str, Tensor], model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """Return the state by the optimizer's index of a parameter, from the state by its name."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    index_of = {name: index for index, (name, _) in enumerate(trained)}
    state: dict[int, dict[str, Tensor]] = {index: {} for index in index_of.values()}
    for key, tensor in saved.items():
        name, _, entry = key.rpartition(":")
        parameter = trained[index_of[name]][1]
        # torch's fused optimizers walk parameter and state in memory order, so both need the same strides.
        same_strides = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state[index_of[name]][entry] = same_strides
    return state


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return the settings that differ, by sorted key; empty if there are none.

    Example:
        >>> differences({"train.steps": "100", "seed": "0"}, {"train.steps": "200", "seed": "0"})
        'train.steps 100 -> 200'
    """
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return ", ".join(f"{key} {old.get(key, '(unset)')} -> {new.get(key, '(unset)')}" for key in keys)


@dataclass(frozen=True)
class History:
    """What a training has reported until a checkpoint.

    Attributes:
        points: Learning curve, by rising step.
        pending: Packed step metrics since the last point of the curve.
        warnings: Texts of warnings by key.
    """

    points: list[MetricPoint] = field(default_factory=list)
    pending: list[list[float]] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)


def read_history(path: Path) -> History:
    """Return the history of a verified checkpoint."""
    return parse_history((path / HISTORY).read_bytes())


def parse_history(content: bytes) -> History:
    """Return the history from the bytes of `history.json`."""
    parsed = json.loads(content)
    return History([MetricPoint(**point) for point in parsed["points"]], parsed["pending"], parsed["warnings"])


def _cannot_read(path: Path, error: OSError) -> str:
    return f"{path}: cannot read ({os_error_reason(error)}). Correct the permissions, or train again with force=train."


def read_meta(path: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint, without its seal.

    Raises:
        CorruptedError: The JSON part is missing, damaged or of another format.
        UserError: The JSON part cannot be read.
    """
    try:
        return parse_meta((path / META).read_bytes(), str(path))
    except _MISSING as error:
        raise CorruptedError(f"{path}: not a checkpoint ({os_error_reason(error)}). {_RETRAIN}") from error
    except OSError as error:
        raise UserError(_cannot_read(path / META, error), retry=True) from error


def parse_meta(content: bytes, address: str) -> dict[str, Any]:
    """Return the JSON part without its seal; raise CorruptedError if it is damaged or of another format."""
    try:
        meta: dict[str, Any] = json.loads(content)
        version = meta["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedError(f"{address}: not a checkpoint ({first_line(error)}). {_RETRAIN}") from error
    if version != FORMAT:
        raise CorruptedError(f"{address}: has format {version}, and this version reads {FORMAT}. {_RETRAIN}")
    if meta.pop(_SEAL, None) != seal(meta)[_SEAL]:
        raise CorruptedError(f"{address}/{META}: differs from what was written. {_RETRAIN}")
    if not isinstance(meta.get("files"), dict) or not _FILES <= set(meta["files"]) <= {*_FILES, TRAINED}:
        raise CorruptedError(f"{address}/{META}: lists other files than those of a checkpoint. {_RETRAIN}")
    return meta


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the JSON part with the sha256 of itself."""
    return {**meta, _SEAL: hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()}


def verify(path: Path, address: str) -> None:
    """Check that every file of a checkpoint has its sha256; `address` is for messages.

    Raises:
        CorruptedError: A file is missing or differs from what was written.
        UserError: A file exists and cannot be read.
    """
    for name, expected in read_meta(path)["files"].items():
        try:
            digest = file_sha256(path / name)
        except _MISSING as error:
            raise CorruptedError(damage(address, name)) from error
        except OSError as error:
            raise UserError(_cannot_read(path / name, error), retry=True) from error
        if digest != expected:
            raise CorruptedError(damage(address, name))


def damage(address: str, name: str) -> str:
    """Return the message for a missing or damaged file `name` of the checkpoint at `address`."""
    return f"{address}/{name}: missing or damaged. {_RETRAIN}"


def load_model(path: Path) -> HierarchicalModel:
    """Return the model of `export_model`'s files, in evaluation mode on the CPU.

    Raises:
        CorruptedError: The checkpoint is missing or damaged.
    """
    meta = read_meta(path)
    weights = path / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != meta["files"][WEIGHTS]:
        raise CorruptedError(damage(str(path), WEIGHTS))
    channels, height, width = meta["image_shape"]
    model = build_model(TypeAdapter(ModelConfig).validate_python(meta["model"]), (channels, height, width))
    model.load_state_dict(load_file(weights))
    return model.eval()


def export_model(path: Path, folder: Path) -> None:
    """Copy the files that `load_model` needs, without the optimizer state, into an empty or missing folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (META, WEIGHTS):
        shutil.copyfile(path / name, folder / name)
