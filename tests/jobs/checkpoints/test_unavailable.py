"""A place that cannot be read is an error: taken for an empty one, it would train from the start without a word."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from helpers.datasets import tiny_disk
from helpers.small_job import put, small_job
from servers.faults import Fault, FaultProxy

from jobs.checkpoints.manager import Checkpoints
from jobs.errors import CorruptedError, UnavailableError, UserError
from jobs.events import Event
from jobs.storage.s3 import S3Store
from jobs.training.loop import train_model
from jobs.training.state import Training, Worker, prepare

CALLS: dict[str, Callable[[Checkpoints, Path], object]] = {
    "steps": lambda place, _: place.steps(),
    "scores": lambda place, _: place.scores(),
    "newest": lambda place, folder: place.newest(folder),
    "fetch": lambda place, folder: place.fetch(7, folder),
    "sweep": lambda place, _: place.sweep(),
}


@pytest.fixture(scope="module")
def training(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return prepare(small_job(digit_dataset, tmp_path_factory.mktemp("none")), Worker())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of S3 as it is, but for how long it waits."""
    monkeypatch.setattr("jobs.checkpoints.manager.open_store", lambda url: S3Store(url, timeout=0.3, tries=2))


@pytest.fixture
def url(faulty_s3: tuple[str, FaultProxy], impatient: None) -> str:
    return f"s3://{faulty_s3[0]}/place"


@pytest.fixture
def place(url: str, training: Training) -> Checkpoints:
    """With two checkpoints, behind the proxy."""
    place = Checkpoints(url)
    for step in (3, 7):
        put(place, training, step)
    return place


@pytest.fixture
def proxy(faulty_s3: tuple[str, FaultProxy]) -> FaultProxy:
    return faulty_s3[1]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("503", "hang", "reset")]


@pytest.mark.parametrize("kind", ["refused", *SLOW])
def test_a_store_that_is_away_is_an_error(place: Checkpoints, proxy: FaultProxy, tmp_path: Path, kind: str) -> None:
    with proxy.refusing() if kind == "refused" else harmed(proxy, kind):
        for call in CALLS.values():
            with pytest.raises(UnavailableError, match=r"s3://bucket-\w+/place.* S3 .*run again when"):
                call(place, tmp_path / "copies")
    assert place.newest(tmp_path / "copies").name == "step-00000007"


@contextmanager
def harmed(proxy: FaultProxy, kind: str, path: str = "") -> Iterator[None]:
    proxy.inject(Fault(kind, "*", path, count=10**6))
    yield
    proxy.clear()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "hang", "truncate"])
@pytest.mark.parametrize("name", ["00000007/checkpoint.json", "model.safetensors", "optimizer.safetensors"])
def test_one_that_breaks_off_is_no_damage(
    place: Checkpoints, proxy: FaultProxy, tmp_path: Path, kind: str, name: str
) -> None:
    """The older one, which could be had, must not take its place either."""
    with harmed(proxy, kind, name):
        for call in ("newest", "fetch"):
            with pytest.raises(UnavailableError):
                CALLS[call](place, tmp_path / "copies")
    assert place.newest(tmp_path / "copies").name == "step-00000007"


def test_what_changes_on_the_way_is_read_again(place: Checkpoints, proxy: FaultProxy, tmp_path: Path) -> None:
    names = ["checkpoint.json", "history.json", "model.safetensors"]
    for name in names:
        proxy.inject(Fault("flip", "GET", f"00000007/{name}"))
        assert place.newest(tmp_path / "copies").name == "step-00000007"
    assert [hit.path.rpartition("/")[2] for hit in proxy.hits if hit.fault] == names


def test_a_training_does_not_begin_anew_while_its_store_is_away(
    place: Checkpoints, url: str, proxy: FaultProxy, digit_dataset: Path
) -> None:
    messages: list[Event] = []
    with proxy.refusing(), pytest.raises(UnavailableError):
        train_model(small_job(digit_dataset, url), Worker(), messages.append)
    assert messages == []


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", pytest.param("AWS_ACCESS_KEY_ID", marks=pytest.mark.slow)])
def test_refused_credentials_are_no_empty_place(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(wrong, "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    place = Checkpoints(url)
    for call in CALLS.values():
        with pytest.raises(UserError, match=r"S3 refuses the credentials .*: check AWS_ACCESS_KEY_ID"):
            call(place, tmp_path / "copies")


def test_a_missing_bucket_is_no_empty_place(url: str, tmp_path: Path) -> None:
    place = Checkpoints("s3://nobody-has-made-this/place")
    for call in CALLS.values():
        with pytest.raises(UserError, match="the bucket does not exist: create it"):
            call(place, tmp_path / "copies")


@contextmanager
def without_root() -> Iterator[None]:
    """Permissions do not bind root."""
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["checkpoint.json", "history.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_no_damage(training: Training, tmp_path: Path, name: str) -> None:
    """The same holds for a folder on a network that is gone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # else another user cannot even look into it
        place = Checkpoints(f"{folder}/place")
        for step in (3, 7):
            put(place, training, step)
        (Path(folder) / "place" / "step-00000007" / name).chmod(0)
        for call in ("newest", "fetch"):
            with without_root(), pytest.raises(UserError, match=f"step-00000007/{name}: Permission denied; m") as error:
                CALLS[call](place, tmp_path / "copies")
            assert not isinstance(error.value, CorruptedError)


def test_no_room_for_the_copies_is_one_clear_error(place: Checkpoints, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "16k") as disk, pytest.raises(UserError) as error:
        place.newest(disk)
    assert re.search(r"disk/step-00000007: No space left on device; mend that and run again$", str(error.value))
    assert not isinstance(error.value, CorruptedError)
