"""A checkpoint in another training: one with the same settings, or a child that was forked from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.datasets import write_dataset
from helpers.small_job import run, small_job
from safetensors.torch import load_file
from servers.faults import FaultProxy

from jobs.checkpoints.format import differences, load_model, read_history, read_meta, restore
from jobs.checkpoints.manager import Checkpoints, warm_start
from jobs.data.sources.config import DigitsConfig
from jobs.data.sources.digits import DigitScenes
from jobs.errors import UnavailableError, UserError
from jobs.events import MetricPoint, TrainingResumed
from jobs.training.state import Training, TrainJob, Worker, prepare

NOWHERE = Path("/nowhere")  # for copies, of which a folder needs none


@pytest.fixture
def parent(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    """A whole training whose newest checkpoint is that of step 3: step 3 is in no point of the curve yet."""
    job = small_job(digit_dataset, tmp_path / "parent", checkpoint_every=3, keep_checkpoints=9)
    run(job)
    for step in (6, 9):
        Checkpoints(job.checkpoints).drop(step)
    Path(job.checkpoints, "step-00000012").rename(tmp_path / "whole")
    return job


def child_of(parent: TrainJob, place: Path | str, fingerprint: str = "", **changes: object) -> TrainJob:
    """The job of a child, with the parent's checkpoint in its place."""
    train = parent.train.model_copy(update=changes)
    settings = {"model.width": "4", **{f"train.{name}": str(value) for name, value in changes.items()}}
    child = replace(parent, checkpoints=str(place), settings=settings, train=train)
    fingerprint = fingerprint or meta_of(parent)["data_fingerprint"]
    places = Checkpoints(parent.checkpoints), Checkpoints(child.checkpoints)
    assert warm_start(*places, "my-parent", settings, fingerprint, train.steps) == 3
    return child


def newest(job: TrainJob) -> Path:
    path = Checkpoints(job.checkpoints).newest(NOWHERE)
    assert path is not None
    return path


def meta_of(job: TrainJob) -> dict[str, object]:
    return read_meta(newest(job))


def state(training: Training) -> dict[str, torch.Tensor]:
    """Weights, their average, and moments by number."""
    found = {f"weights.{name}": tensor for name, tensor in training.model.state_dict().items()}
    if training.ema is not None:
        found |= {f"average.{name}": tensor for name, tensor in training.ema.state_dict().items()}
    for number, entries in training.optimizer.state_dict()["state"].items():
        found |= {f"moments.{number}.{name}": tensor for name, tensor in entries.items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], kind: str = "") -> bool:
    keys = {name for name in {*one, *other} if name.startswith(kind)}
    return bool(keys) and all(name in one and name in other and torch.equal(one[name], other[name]) for name in keys)


def test_weights_moments_and_curve_are_the_parents(parent: TrainJob, tmp_path: Path) -> None:
    child = child_of(parent, tmp_path / "child")
    theirs, ours = prepare(parent, Worker()), prepare(child, Worker())
    assert all(same(state(theirs), state(ours), kind) for kind in ("weights", "average", "moments"))
    assert ours.step == 3
    assert ours.restored == theirs.restored
    assert [point.step for point in ours.restored.history] == [2, 3]  # of the loss, and of the validation
    assert len(ours.restored.pending) == 1
    assert meta_of(child) == {**meta_of(parent), "settings": child.settings}
    messages = run(child)
    assert [message.step for message in messages if isinstance(message, TrainingResumed)] == [3]
    assert [m.step for m in messages if isinstance(m, MetricPoint) and "train/loss" in m.metrics] == [4, 6, 8, 10, 12]
    # With nothing changed it goes on as its parent did.
    assert meta_of(child)["weights_sha256"] == read_meta(tmp_path / "whole")["weights_sha256"]
    assert newest(parent).name == "step-00000003"


@pytest.mark.slow
def test_on_s3(parent: TrainJob, tmp_path: Path, faulty_s3: tuple[str, FaultProxy]) -> None:
    bucket, proxy = faulty_s3
    first = child_of(parent, f"s3://{bucket}/first")
    second = replace(first, checkpoints=f"s3://{bucket}/second")
    places = [Checkpoints(job.checkpoints) for job in (first, second)]
    assert warm_start(*places, "first", first.settings, "other-data", 12) == 3
    copy = places[1].newest(tmp_path / "copies")
    assert read_meta(copy) == {**meta_of(parent), **read_meta(copy), "data_fingerprint": "other-data", "score": None}
    with proxy.refusing(), pytest.raises(UnavailableError):
        warm_start(places[0], Checkpoints(str(tmp_path / "third")), "first", {}, "", 12)
    assert Checkpoints(str(tmp_path / "third")).steps() == []


def test_the_score_is_of_the_parents_data(parent: TrainJob, tmp_path: Path) -> None:
    """On other data none can be compared with it: the parent's would be kept as the best for ever."""
    assert meta_of(parent)["score"] is not None
    assert Checkpoints(child_of(parent, tmp_path / "same").checkpoints).scores() == {3: meta_of(parent)["score"]}
    assert Checkpoints(child_of(parent, tmp_path / "other", "other-data").checkpoints).scores() == {3: None}


@pytest.mark.parametrize(("theirs", "ours"), [(0.9, 0), (0, 0.9)])
def test_an_average_may_begin_or_end(digit_dataset: Path, tmp_path: Path, theirs: float, ours: float) -> None:
    parent = small_job(digit_dataset, tmp_path / "parent", steps=3, ema_decay=theirs)
    run(parent)
    trained = load_file(newest(parent) / ("trained.safetensors" if theirs else "model.safetensors"))
    child = child_of(parent, tmp_path / "child", ema_decay=ours, steps=6)
    training = prepare(child, Worker())
    weights = dict(training.model.state_dict())
    assert same(weights, trained)
    if ours:
        assert same(dict(training.ema.module.state_dict()), trained)
    run(child)
    assert newest(child).name == "step-00000006"
    assert load_model(newest(child))
    assert (newest(child) / "trained.safetensors").exists() == bool(ours)


def test_what_cannot_be_taken_over_is_said(parent: TrainJob, tmp_path: Path) -> None:
    def wrong(match: str, settings: dict[str, str], steps: int = 12, place: str = parent.checkpoints) -> None:
        child = Checkpoints(str(tmp_path / "child"))
        with pytest.raises(UserError, match=match):
            warm_start(Checkpoints(place), child, "my-parent", settings, "", steps)
        assert child.folders() == []
        assert list((tmp_path / "child").glob("*")) == []

    nothing = str(tmp_path / "nothing")
    wrong("init_from=my-parent has no whole checkpoint: train it first, or leave init_from= out", {}, place=nothing)
    wrong(r"init_from=my-parent has another model \(model.width 4 -> 8\)", {"model.width": "8"})
    wrong(r"another model \(model \(unset\) -> lvae\)", {"model.width": "4", "model": "lvae"})
    wrong(r"another model \(model.width 4 -> \(unset\)\)", {"train.adam_beta2": "0.9"})
    for steps in (2, 3):
        wrong("init_from=my-parent has made 3 steps: set train.steps above that", {"model.width": "4"}, steps)
    weights = newest(parent) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    wrong("has no whole checkpoint", {"model.width": "4"})


def test_other_settings_are_named(parent: TrainJob) -> None:
    training = prepare(parent, Worker())
    before = {name: tensor.clone() for name, tensor in state(training).items()}
    settings = {"model.width": "4", "train.steps": "20", "train.adam_beta2": "0.9"}
    said = r"step-00000003 is .* \(train.adam_beta2 \(unset\) -> 0.9, train.steps 12 -> 20\): set them back, or .* init_from="
    with pytest.raises(UserError, match=said):
        restore(newest(parent), training.model, training.optimizer, training.ema, settings)
    assert same(state(training), before)
    with pytest.raises(UserError, match=r"train.steps 12 -> 20"):
        run(replace(parent, settings=settings))
    assert differences({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == ""


def test_images_of_another_shape_are_named(parent: TrainJob, tmp_path: Path) -> None:
    config = DigitsConfig(num_images=60, image_size=32, samples_per_task=60, validation_fraction=0.1, test_fraction=0.1)
    write_dataset(DigitScenes(60, 32, config.channels, 0), tmp_path / "large", config)
    child = child_of(parent, tmp_path / "child", "large")
    child = replace(child, data=small_job(tmp_path / "large", "").data)
    with pytest.raises(UserError, match="step-00000003 is of a model for images of 3x16x16, the data's are 3x32x32"):
        run(child)
    assert read_history(newest(child)) == read_history(newest(parent))
