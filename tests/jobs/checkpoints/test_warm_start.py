"""A checkpoint in another training: one with the same settings, or one that starts from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.datasets import write_dataset
from helpers.small_job import run, small_job, steps_of
from safetensors.torch import load_file
from servers.faults import FaultProxy

from jobs.checkpoints.format import differences, load_model, read_history, read_meta, restore
from jobs.checkpoints.manager import CheckpointManager, warm_start
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.errors import UnavailableError, UserError
from jobs.events import MetricPoint, TrainingResumed
from jobs.training.state import Training, TrainJob, Worker, prepare

NOWHERE = Path("/nowhere")  # for copies, which a local folder does not need


@pytest.fixture
def parent(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    """A training whose latest checkpoint is of step 3, which is in no point of the curve yet."""
    job = small_job(digit_dataset, tmp_path / "parent", checkpoint_every=3, keep_checkpoints=9)
    run(job)
    for step in (6, 9):
        CheckpointManager(job.checkpoints).remove(step)
    Path(job.checkpoints, "step-00000012").rename(tmp_path / "complete")
    return job


def child_of(parent: TrainJob, checkpoints: Path | str, fingerprint: str = "", **changes: object) -> TrainJob:
    """Return the job of a child that has the parent's checkpoint."""
    train = parent.train.model_copy(update=changes)
    settings = {"model.width": "4", **{f"train.{name}": str(value) for name, value in changes.items()}}
    child = replace(parent, checkpoints=str(checkpoints), settings=settings, train=train)
    fingerprint = fingerprint or meta_of(parent)["data_fingerprint"]
    managers = CheckpointManager(parent.checkpoints), CheckpointManager(child.checkpoints)
    assert warm_start(*managers, "my-parent", settings, fingerprint, train.steps) == 3
    return child


def latest(job: TrainJob) -> Path:
    path = CheckpointManager(job.checkpoints).latest(NOWHERE)
    assert path is not None
    return path


def meta_of(job: TrainJob) -> dict[str, object]:
    return read_meta(latest(job))


def state(training: Training) -> dict[str, torch.Tensor]:
    """Return weights, their average, and moments by index."""
    tensors = {f"weights.{name}": tensor for name, tensor in training.model.state_dict().items()}
    if training.ema is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in training.ema.state_dict().items()}
    for index, entries in training.optimizer.state_dict()["state"].items():
        tensors |= {f"moments.{index}.{name}": tensor for name, tensor in entries.items()}
    return tensors


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], kind: str = "") -> bool:
    names = {name for name in {*first, *second} if name.startswith(kind)}
    return bool(names) and all(
        name in first and name in second and torch.equal(first[name], second[name]) for name in names
    )


def test_child_has_the_parents_state_and_curve(parent: TrainJob, tmp_path: Path) -> None:
    child = child_of(parent, tmp_path / "child")
    original, copy = prepare(parent, Worker()), prepare(child, Worker())
    assert all(same(state(original), state(copy), kind) for kind in ("weights", "average", "moments"))
    assert copy.step == 3
    assert copy.restored == original.restored
    assert [point.step for point in copy.restored.history] == [2, 3]  # of the loss, and of the validation
    assert len(copy.restored.pending) == 1
    assert meta_of(child) == {**meta_of(parent), "settings": child.settings}
    events = run(child)
    assert steps_of(events, TrainingResumed) == [3]
    points = [event for event in events if isinstance(event, MetricPoint) and "train/loss" in event.metrics]
    assert [point.step for point in points] == [4, 6, 8, 10, 12]
    # With unchanged settings the child continues as its parent did.
    assert meta_of(child)["weights_sha256"] == read_meta(tmp_path / "complete")["weights_sha256"]
    assert latest(parent).name == "step-00000003"


@pytest.mark.slow
def test_warm_start_on_s3(parent: TrainJob, tmp_path: Path, faulty_s3: tuple[str, FaultProxy]) -> None:
    bucket, proxy = faulty_s3
    first = child_of(parent, f"s3://{bucket}/first")
    second = replace(first, checkpoints=f"s3://{bucket}/second")
    managers = [CheckpointManager(job.checkpoints) for job in (first, second)]
    assert warm_start(*managers, "first", first.settings, "other-data", 12) == 3
    copy = managers[1].latest(tmp_path / "copies")
    assert read_meta(copy) == {
        **meta_of(parent),
        **read_meta(copy),
        "data_fingerprint": "other-data",
        "validation_elbo": None,
    }
    with proxy.refusing(), pytest.raises(UnavailableError):
        warm_start(managers[0], CheckpointManager(str(tmp_path / "third")), "first", {}, "", 12)
    assert CheckpointManager(str(tmp_path / "third")).steps() == []


def test_elbo_of_other_data_is_dropped(parent: TrainJob, tmp_path: Path) -> None:
    """It is not comparable: the parent's checkpoint could be kept as the best forever."""
    assert meta_of(parent)["validation_elbo"] is not None
    assert CheckpointManager(child_of(parent, tmp_path / "same").checkpoints).validation_elbos() == {
        3: meta_of(parent)["validation_elbo"]
    }
    assert CheckpointManager(child_of(parent, tmp_path / "other", "other-data").checkpoints).validation_elbos() == {
        3: None
    }


@pytest.mark.parametrize(("parent_decay", "child_decay"), [(0.9, 0), (0, 0.9)])
def test_moving_average_may_start_or_end(
    digit_dataset: Path, tmp_path: Path, parent_decay: float, child_decay: float
) -> None:
    parent = small_job(digit_dataset, tmp_path / "parent", steps=3, ema_decay=parent_decay)
    run(parent)
    trained = load_file(latest(parent) / ("trained.safetensors" if parent_decay else "model.safetensors"))
    child = child_of(parent, tmp_path / "child", ema_decay=child_decay, steps=6)
    training = prepare(child, Worker())
    weights = dict(training.model.state_dict())
    assert same(weights, trained)
    if child_decay:
        assert same(dict(training.ema.module.state_dict()), trained)
    run(child)
    assert latest(child).name == "step-00000006"
    assert load_model(latest(child))
    assert (latest(child) / "trained.safetensors").exists() == bool(child_decay)


def test_impossible_warm_start_is_refused(parent: TrainJob, tmp_path: Path) -> None:
    def refused(match: str, settings: dict[str, str], steps: int = 12, url: str = parent.checkpoints) -> None:
        child = CheckpointManager(str(tmp_path / "child"))
        with pytest.raises(UserError, match=match):
            warm_start(CheckpointManager(url), child, "my-parent", settings, "", steps)
        assert child.folders() == []
        assert list((tmp_path / "child").glob("*")) == []

    nothing = str(tmp_path / "nothing")
    refused("init_from=my-parent: .*checkpoint", {}, url=nothing)
    refused(r"init_from=my-parent: .*\(model\.width 4 -> 8\)", {"model.width": "8"})
    refused(r"\(model \(unset\) -> lvae\)", {"model.width": "4", "model": "lvae"})
    refused(r"\(model.width 4 -> \(unset\)\)", {"train.adam_beta2": "0.9"})
    for steps in (2, 3):
        refused(r"init_from=my-parent: .*train\.steps", {"model.width": "4"}, steps)
    weights = latest(parent) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("init_from=my-parent: .*checkpoint", {"model.width": "4"})


def test_other_settings_are_refused(parent: TrainJob) -> None:
    training = prepare(parent, Worker())
    before = {name: tensor.clone() for name, tensor in state(training).items()}
    settings = {"model.width": "4", "train.steps": "20", "train.adam_beta2": "0.9"}
    changes = r"train\.adam_beta2 \(unset\) -> 0\.9, train\.steps 12 -> 20"
    with pytest.raises(UserError, match=rf"step-00000003: .*\({changes}\).*init_from="):
        restore(latest(parent), training.model, training.optimizer, training.ema, settings)
    assert same(state(training), before)
    with pytest.raises(UserError, match=r"train.steps 12 -> 20"):
        run(replace(parent, settings=settings))
    assert differences({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == ""


def test_images_of_another_shape_are_refused(parent: TrainJob, tmp_path: Path) -> None:
    config = DigitsConfig(num_images=60, image_size=32, samples_per_task=60, validation_fraction=0.1, test_fraction=0.1)
    write_dataset(DigitScenes(60, 32, config.channels, 0), tmp_path / "large", config)
    child = child_of(parent, tmp_path / "child", "large")
    child = replace(child, data=small_job(tmp_path / "large", "").data)
    with pytest.raises(UserError, match=r"step-00000003: .*3x16x16.*3x32x32"):
        run(child)
    assert read_history(latest(child)) == read_history(latest(parent))
