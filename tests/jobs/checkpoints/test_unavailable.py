"""A store that cannot be read is an error: taken for an empty one, it would silently restart the training."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from helpers.datasets import tiny_disk
from helpers.small_job import publish_checkpoint, small_job
from servers.faults import Fault, FaultProxy

from jobs.checkpoints.manager import CheckpointManager
from jobs.errors import CorruptedError, UnavailableError, UserError
from jobs.events import Event
from jobs.storage.s3 import S3Storage
from jobs.training.loop import train_model
from jobs.training.state import Training, Worker, prepare

CALLS: dict[str, Callable[[CheckpointManager, Path], object]] = {
    "steps": lambda manager, _: manager.steps(),
    "validation_elbos": lambda manager, _: manager.validation_elbos(),
    "latest": lambda manager, folder: manager.latest(folder),
    "load": lambda manager, folder: manager.load(7, folder),
    "sweep": lambda manager, _: manager.sweep(),
}


@pytest.fixture(scope="module")
def training(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return prepare(small_job(digit_dataset, tmp_path_factory.mktemp("none")), Worker())


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.checkpoints.manager.open_storage", lambda url: S3Storage(url, timeout=0.3, tries=2))


@pytest.fixture
def url(faulty_s3: tuple[str, FaultProxy], short_timeouts: None) -> str:
    return f"s3://{faulty_s3[0]}/checkpoints"


@pytest.fixture
def manager(url: str, training: Training) -> CheckpointManager:
    """A manager of two checkpoints behind the proxy."""
    manager = CheckpointManager(url)
    for step in (3, 7):
        publish_checkpoint(manager, training, step)
    return manager


@pytest.fixture
def proxy(faulty_s3: tuple[str, FaultProxy]) -> FaultProxy:
    return faulty_s3[1]


@contextmanager
def injected(proxy: FaultProxy, kind: str, path: str = "") -> Iterator[None]:
    proxy.inject(Fault(kind, "*", path, count=10**6))
    yield
    proxy.clear()


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("503", "hang", "reset")]


@pytest.mark.parametrize("kind", ["refused", *SLOW])
def test_unavailable_store_is_an_error(
    manager: CheckpointManager, proxy: FaultProxy, tmp_path: Path, kind: str
) -> None:
    with proxy.refusing() if kind == "refused" else injected(proxy, kind):
        for call in CALLS.values():
            with pytest.raises(UnavailableError, match=r"s3://bucket-\w+/checkpoints.* S3 "):
                call(manager, tmp_path / "copies")
    assert manager.latest(tmp_path / "copies").name == "step-00000007"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "hang", "truncate"])
@pytest.mark.parametrize("name", ["00000007/checkpoint.json", "model.safetensors", "optimizer.safetensors"])
def test_interrupted_read_is_not_damage(
    manager: CheckpointManager, proxy: FaultProxy, tmp_path: Path, kind: str, name: str
) -> None:
    """The older checkpoint, which could be read, must not be used instead."""
    with injected(proxy, kind, name):
        for call in ("latest", "load"):
            with pytest.raises(UnavailableError):
                CALLS[call](manager, tmp_path / "copies")
    assert manager.latest(tmp_path / "copies").name == "step-00000007"


def test_bits_flipped_on_the_way_are_read_again(manager: CheckpointManager, proxy: FaultProxy, tmp_path: Path) -> None:
    names = ["checkpoint.json", "history.json", "model.safetensors"]
    for name in names:
        proxy.inject(Fault("flip", "GET", f"00000007/{name}"))
        assert manager.latest(tmp_path / "copies").name == "step-00000007"
    assert [hit.path.rpartition("/")[2] for hit in proxy.hits if hit.fault] == names


def test_training_does_not_restart_without_store(
    manager: CheckpointManager, url: str, proxy: FaultProxy, digit_dataset: Path
) -> None:
    events: list[Event] = []
    with proxy.refusing(), pytest.raises(UnavailableError):
        train_model(small_job(digit_dataset, url), Worker(), events.append)
    assert events == []


@pytest.mark.parametrize("key", ["AWS_SECRET_ACCESS_KEY", pytest.param("AWS_ACCESS_KEY_ID", marks=pytest.mark.slow)])
def test_refused_credentials_are_an_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(key, "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    manager = CheckpointManager(url)
    for call in CALLS.values():
        with pytest.raises(UserError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
            call(manager, tmp_path / "copies")


def test_missing_bucket_is_an_error(url: str, tmp_path: Path) -> None:
    manager = CheckpointManager("s3://missing-bucket/checkpoints")
    for call in CALLS.values():
        with pytest.raises(UserError, match="s3://missing-bucket"):
            call(manager, tmp_path / "copies")


@contextmanager
def without_root() -> Iterator[None]:
    """Drop the rights of root, whom permissions do not bind."""
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["checkpoint.json", "history.json", "model.safetensors"])
def test_unreadable_file_is_not_damage(training: Training, tmp_path: Path, name: str) -> None:
    """The same holds for a folder on an unreachable network."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # so that another user can list it
        manager = CheckpointManager(f"{folder}/checkpoints")
        for step in (3, 7):
            publish_checkpoint(manager, training, step)
        (Path(folder) / "checkpoints" / "step-00000007" / name).chmod(0)
        for call in ("latest", "load"):
            with without_root(), pytest.raises(UserError, match=rf"step-00000007/{name}: .*Permission denied") as error:
                CALLS[call](manager, tmp_path / "copies")
            assert not isinstance(error.value, CorruptedError)


def test_full_disk_for_copies_is_one_clear_error(manager: CheckpointManager, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "16k") as disk, pytest.raises(UserError) as error:
        manager.latest(disk)
    assert "disk/step-00000007: " in str(error.value)
    assert "No space left on device" in str(error.value)
    assert error.value.retry
    assert not isinstance(error.value, CorruptedError)
