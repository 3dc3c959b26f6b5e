"""Checkpoints in a folder and on a real S3 server: complete or absent, whatever is damaged."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers.small_job import publish_checkpoint, run, small_job
from safetensors.torch import load_file

from jobs.checkpoints.format import (
    META,
    History,
    load_model,
    parse_meta,
    read_history,
    read_meta,
    seal,
    verify,
    weights_sha256,
)
from jobs.checkpoints.manager import CheckpointManager, kept_steps
from jobs.errors import CorruptedError
from jobs.storage import open_storage
from jobs.storage.local import LocalStorage
from jobs.training.state import Training, Worker, prepare
from jobs.training.step import train_step

FILES = ["history.json", "model.safetensors", "optimizer.safetensors", "trained.safetensors"]
OLD, NEW = "step-00000003", "step-00000007"


@pytest.fixture(scope="module")
def training(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training after two steps, so that average, weights and moments differ."""
    training = prepare(small_job(digit_dataset, tmp_path_factory.mktemp("none")), Worker())
    for _ in range(2):
        train_step(training, training.loader.images(0))
    return training


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    return f"s3://{request.getfixturevalue('s3')}/some/checkpoints"


@pytest.fixture
def manager(url: str, training: Training) -> CheckpointManager:
    """A manager of two checkpoints."""
    manager = CheckpointManager(url)
    publish_checkpoint(manager, training, 3)
    publish_checkpoint(manager, training, 7, elbo=-1.5)
    return manager


def latest(manager: CheckpointManager, folder: Path) -> str | None:
    path = manager.latest(folder / "copies")
    return path and path.name


def test_saved_checkpoint_is_loaded(manager: CheckpointManager, training: Training, url: str, tmp_path: Path) -> None:
    assert manager.steps() == [3, 7]
    assert manager.validation_elbos() == {3: None, 7: -1.5}
    path = manager.latest(tmp_path / "copies")
    assert path is not None
    assert path.name == NEW
    assert manager.step_of(path) == 7
    assert sorted(file.name for file in path.iterdir()) == [META, *FILES]
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}  # other users may read them
    assert weights_sha256(load_model(path)) == weights_sha256(training.ema.module) == read_meta(path)["weights_sha256"]
    trained = load_file(path / "trained.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in training.model.state_dict().items())
    assert manager.load(3, tmp_path / "copies").name == OLD
    manager.remove(7)
    assert manager.steps() == [3]
    assert list(open_storage(url).folders()) == [OLD]
    assert latest(CheckpointManager(f"{url}/elsewhere"), tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "append", "missing"])
def test_damaged_checkpoint_is_skipped(
    manager: CheckpointManager, training: Training, url: str, tmp_path: Path, damage: str
) -> None:
    store, rng = open_storage(url), random.Random(damage)
    for name in [META, *FILES]:
        content = store.read(f"{NEW}/{name}")
        at = rng.randrange(1, len(content))
        if damage == "missing":
            store.remove(f"{NEW}/{name}")
        else:
            flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
            damaged = {"flip": flipped, "truncate": content[:at], "empty": b""}.get(damage, content + b"}")
            store.write(f"{NEW}/{name}", damaged)
        file = "" if name == META else f"/{name}: "
        with pytest.raises(CorruptedError, match=rf"checkpoints/{NEW}{file}.*force=train"):
            manager.load(7, tmp_path / "copies")
        assert latest(manager, tmp_path) == OLD
        assert manager.validation_elbos() == ({3: None} if name == META else {3: None, 7: -1.5})
        publish_checkpoint(manager, training, 7, elbo=-1.5)
        assert latest(manager, tmp_path) == NEW


def test_parse_meta_detects_every_flipped_bit(manager: CheckpointManager, url: str) -> None:
    content = open_storage(url).read(f"{NEW}/{META}")
    meta, equal = parse_meta(content, "address"), 0
    for bit in random.Random(0).sample(range(8 * len(content)), 2000):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert parse_meta(bytes(changed), "address") == meta  # 1e-3 and 1E-3
            equal += 1
        except CorruptedError:
            pass
    assert equal < 20


def test_partial_checkpoint_is_absent_and_swept(
    manager: CheckpointManager, training: Training, url: str, tmp_path: Path
) -> None:
    """The writer was killed after some files, or while it removed an old checkpoint."""
    store = open_storage(url)
    for arrived in range(1, 5):
        publish_checkpoint(manager, training, 9)
        for name in (META, *FILES[arrived:]):
            store.remove(f"step-00000009/{name}")
        assert manager.steps() == [3, 7]
        assert 9 not in manager.validation_elbos()
        assert latest(manager, tmp_path) == NEW
        manager.sweep()
        assert sorted(store.folders()) == [OLD, NEW]
        assert sorted(store.names(f"{NEW}/")) == [f"{NEW}/{name}" for name in (META, *FILES)]
    manager.sweep()
    assert latest(manager, tmp_path) == NEW


def test_other_files_are_left_alone(manager: CheckpointManager, url: str, tmp_path: Path) -> None:
    store = open_storage(url)
    for name in ("step-8/checkpoint.json", "step-best/weights", "notes/step-00000009", "steps", "step-00000003.old/x"):
        store.write(name, b"other")
    assert manager.steps() == [3, 7]
    manager.sweep()
    assert latest(manager, tmp_path) == NEW
    assert store.read("notes/step-00000009") == store.read("step-best/weights") == store.read("steps") == b"other"


def test_foreign_file_names_are_refused(manager: CheckpointManager, url: str, tmp_path: Path) -> None:
    """A valid seal does not authenticate the JSON part: a file name in it could point anywhere."""
    store = open_storage(url)
    meta = parse_meta(store.read(f"{NEW}/{META}"), "address")
    digest = meta["files"]["history.json"]
    for name in ("../../outside", "/tmp/outside", "..", ".", "", "a/b", META, "model.safetensors/../x", "x"):
        for files in ({**meta["files"], name: digest}, {name: digest}, [name], None):
            store.write(f"{NEW}/{META}", json.dumps(seal({**meta, "files": files})).encode())
            with pytest.raises(CorruptedError, match=f"{NEW}/{META}: .*files"):
                manager.load(7, tmp_path / "copies")
    assert latest(manager, tmp_path) == OLD
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"checkpoints", "copies"}
    assert not (tmp_path / "copies" / NEW).exists()


def test_latest_follows_a_running_training(
    manager: CheckpointManager, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between listing and copy, a training that keeps one checkpoint saves a newer one and removes the listed ones."""
    list_folders, moved = manager.folders, []

    def folders() -> list[int]:
        steps = list_folders()
        if not moved:
            moved.append(True)
            publish_checkpoint(manager, training, 9)
            for step in steps:
                manager.remove(step)
        return steps

    monkeypatch.setattr(manager, "folders", folders)
    assert latest(manager, tmp_path) == "step-00000009"


def test_latest_history_needs_no_weights(url: str, digit_dataset: Path, tmp_path: Path) -> None:
    manager, store = CheckpointManager(url), open_storage(url)
    assert manager.latest_history() == History()
    run(small_job(digit_dataset, url, steps=4))
    assert manager.steps() == [3, 4]
    for step in (4, 3):
        expected = read_history(manager.load(step, tmp_path / "copies"))
        store.remove(f"step-{step:08d}/model.safetensors")
        assert manager.latest_history() == expected
        store.remove(f"step-{step:08d}/history.json")
    assert manager.latest_history() == History()


def test_prune_keeps_latest_and_best(manager: CheckpointManager, training: Training, url: str) -> None:
    """Step 9 is damaged: the training resumed from 7 and saved step 8."""
    for step, elbo in {9: 0.0, 8: -3.0}.items():
        publish_checkpoint(manager, training, step, elbo)
    open_storage(url).remove(f"{OLD}/{META}")
    manager.prune(1, 8)
    assert sorted(manager.folders()) == manager.steps() == [7, 8]
    manager.prune(1, 9)  # removed by other workers meanwhile
    assert manager.steps() == [7, 8]


@pytest.mark.parametrize(
    ("elbos", "keep", "kept"),
    [
        ({}, 2, set()),
        ({5: None}, 1, {5}),
        ({5: 1.0, 10: 0.0}, 1, {5, 10}),
        ({5: 1.0, 10: 1.0, 15: 0.5}, 1, {10, 15}),  # the newer of equals
        ({5: -3.0, 10: -1.0, 15: -2.0, 20: None}, 2, {10, 15, 20}),
        ({5: 9.0, 10: None, 15: None}, 2, {5, 10, 15}),
        ({15: 1.0, 5: 0.0, 10: 0.5}, 2, {10, 15}),
        ({5: 1.0, 10: 2.0}, 7, {5, 10}),
    ],
)
def test_kept_steps_are_newest_and_best(elbos: dict[int, float | None], keep: int, kept: set[int]) -> None:
    assert kept_steps(elbos, keep) == kept


def test_sweep_keeps_a_checkpoint_completed_meanwhile(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(str(tmp_path))
    publish_checkpoint(manager, training, 3)
    list_steps = manager.steps

    def steps() -> list[int]:
        complete = list_steps()
        publish_checkpoint(manager, training, 7)
        return complete

    with monkeypatch.context() as patch:
        patch.setattr(manager, "steps", steps)
        manager.sweep()
    assert manager.steps() == [3, 7]


@pytest.mark.parametrize("name", [META, *FILES])
def test_checkpoint_is_absent_or_intact_at_all_times(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """After each operation on the store, while a damaged checkpoint is replaced by another one and removed."""
    manager, operations = CheckpointManager(str(tmp_path)), []
    publish_checkpoint(manager, training, 7, elbo=-1.0)
    (tmp_path / NEW / name).write_bytes(b"damaged")

    def check(operation: str) -> None:
        original = getattr(LocalStorage, operation)

        def checked(storage: LocalStorage, *arguments: object) -> None:
            original(storage, *arguments)
            operations.append(operation)
            if manager.steps():
                verify(tmp_path / NEW, NEW)

        monkeypatch.setattr(LocalStorage, operation, checked)

    check("publish")
    check("remove")
    publish_checkpoint(manager, training, 7, elbo=-2.0)
    assert manager.validation_elbos() == {7: -2.0}
    manager.remove(7)
    assert manager.folders() == []
    assert {"publish", "remove"} == set(operations)
