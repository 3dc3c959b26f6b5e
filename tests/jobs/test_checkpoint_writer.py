"""Checkpoints are written while training goes on, and what befalls their place befalls neither training nor them."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_disk
from servers.faults import Fault, FaultProxy
from servers.s3 import S3Server
from small_job import run, small_job

from jobs import checkpoint_writer
from jobs.checkpoint import read_meta
from jobs.checkpoints import Checkpoints
from jobs.errors import AwayError, UserError
from jobs.loop import train_model
from jobs.messages import Committed, Message, Point, Warned
from jobs.snapshot import take_snapshot
from jobs.step import train_step
from jobs.store.base import Store
from jobs.store.open import open_store
from jobs.store.s3 import S3Store
from jobs.training import TrainJob, Worker, prepare
from vlae.config import LvaeConfig

FOREVER = 10**6


@pytest.fixture(scope="module")
def undisturbed(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A training of twelve steps with a checkpoint at each, all done."""
    job = small_job(digit_dataset, tmp_path_factory.mktemp("undisturbed"), checkpoint_every=1)
    run(job)
    return job


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store and writer as they are, but for how long they wait."""

    def impatient_store(url: str) -> Store:
        return S3Store(url, timeout=0.3, tries=2) if url.startswith("s3://") else open_store(url)

    monkeypatch.setattr("jobs.checkpoints.open_store", impatient_store)
    monkeypatch.setattr(checkpoint_writer, "_PAUSE", 0.05)


def ended_alike(job: TrainJob, other: TrainJob, folder: Path) -> bool:
    """Whether two trainings have the same checkpoints, the last with the same weights."""
    places = [Checkpoints(one.checkpoints) for one in (job, other)]
    last = [read_meta(place.newest(folder / str(number))) for number, place in enumerate(places)]
    return places[0].scores() == places[1].scores() and last[0]["weights_sha256"] == last[1]["weights_sha256"]


def steps_of(messages: list[Message], kind: type) -> list[int]:
    return [message.step for message in messages if isinstance(message, kind)]


class Story:
    """Takes the messages of a training, and does something once when one of a kind and a step arrives."""

    def __init__(self, *turns: tuple[type, int, Callable[[], object]]) -> None:
        self.messages: list[Message] = []
        self._turns, self._changed = list(turns), threading.Condition()

    def told(self, kind: type, step: int) -> bool:
        """Wait until a message of this kind and of this step or later has come."""
        with self._changed:
            return self._changed.wait_for(lambda: max(steps_of(self.messages, kind), default=-1) >= step, 60)

    def __call__(self, message: Message) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
        if self._turns and isinstance(message, self._turns[0][0]) and message.step >= self._turns[0][1]:
            self._turns.pop(0)[2]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "503", "hang", "lose"])
def test_a_store_that_is_away_for_a_while(
    undisturbed: TrainJob,
    faulty_s3: tuple[str, FaultProxy],
    impatient: None,
    tmp_path: Path,
    kind: str,
) -> None:
    """Training goes on: the store is back only after five more steps."""
    bucket, proxy = faulty_s3
    job = replace(undisturbed, checkpoints=f"s3://{bucket}/place")
    away = ExitStack()

    def go() -> None:
        if kind == "refused":
            away.enter_context(proxy.refusing())
        else:
            proxy.inject(Fault(kind, "*" if kind != "lose" else "PUT", "", count=FOREVER))
            away.callback(proxy.clear)

    def come_back() -> None:
        away.close()
        assert story.told(Committed, 3)

    story = Story((Committed, 2, go), (Point, 8, come_back))
    assert train_model(job, Worker(), story) == 12
    assert len(steps_of(story.messages, Warned)) == 1
    assert ended_alike(job, undisturbed, tmp_path)
    committed = steps_of(story.messages, Committed)
    assert committed[:2] == [1, 2]
    assert committed[-1] == 12
    assert committed == sorted(set(committed))


@pytest.mark.slow
def test_a_store_that_stays_away(
    digit_dataset: Path,
    faulty_s3: tuple[str, FaultProxy],
    impatient: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_PATIENCE", 0.3)
    bucket, proxy = faulty_s3
    job = small_job(digit_dataset, f"s3://{bucket}/place", steps=FOREVER, checkpoint_every=1)
    with ExitStack() as away:
        story = Story((Committed, 2, lambda: away.enter_context(proxy.refusing())))
        with pytest.raises(AwayError, match=f"s3://{bucket}/place.*: S3 .*; run again when it does"):
            train_model(job, Worker(), story)
    assert len(steps_of(story.messages, Warned)) == 1
    assert Checkpoints(job.checkpoints).newest(tmp_path).name == "step-00000002"


def test_a_silent_store_does_not_hold_training_up(
    digit_dataset: Path, faulty_s3: tuple[str, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first silence is not known as one before minutes have passed; neither steps nor an error wait for that."""
    bucket, proxy = faulty_s3
    monkeypatch.setattr("jobs.checkpoints.open_store", lambda url: S3Store(url, timeout=FOREVER, tries=1))
    monkeypatch.setattr(checkpoint_writer, "_STALL", 0.1)
    monkeypatch.setattr(checkpoint_writer, "_GRACE", 0.1)

    def fail() -> None:
        raise RuntimeError("someone else's error")

    hang = Fault("hang", "PUT", "", count=FOREVER)
    job = small_job(digit_dataset, f"s3://{bucket}/place", steps=FOREVER, checkpoint_every=1)
    story = Story((Committed, 2, lambda: proxy.inject(hang)), (Point, 10, fail))
    with pytest.raises(RuntimeError, match="someone else's error"):
        train_model(job, Worker(), story)
    assert steps_of(story.messages, Committed) == [1, 2]
    proxy.clear()
    with proxy.refusing():  # which ends the silence
        join_writers()


def join_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoints":
            thread.join(60)
            assert not thread.is_alive()


def test_an_error_in_training_does_not_wait_for_a_store_that_is_away(
    digit_dataset: Path, faulty_s3: tuple[str, FaultProxy], impatient: None, tmp_path: Path
) -> None:
    bucket, proxy = faulty_s3

    def fail() -> None:
        raise RuntimeError("someone else's error")

    job = small_job(digit_dataset, f"s3://{bucket}/place", steps=FOREVER, checkpoint_every=1)
    with ExitStack() as away:
        turns = (
            (Committed, 2, lambda: away.enter_context(proxy.refusing())),
            (Warned, 0, lambda: None),
            (Point, 0, fail),
        )
        with pytest.raises(RuntimeError, match="someone else's error"):
            train_model(job, Worker(), Story(*turns))
        join_writers()
    assert Checkpoints(job.checkpoints).newest(tmp_path).name == "step-00000002"


def test_an_error_in_training_waits_for_the_last_checkpoint(digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path / "place", steps=FOREVER, checkpoint_every=5, log_every=5)

    def fail() -> None:
        raise RuntimeError("someone else's error")

    story = Story((Point, 6, fail))
    with pytest.raises(RuntimeError, match="someone else's error"):
        train_model(job, Worker(), story)
    assert not any(thread.name == "checkpoints" for thread in threading.enumerate())
    assert steps_of(story.messages, Committed) == [5]


@pytest.mark.parametrize("pages", [20, 60, 75, 88])  # in the first checkpoint, or in some file of the second
def test_a_full_disk(undisturbed: TrainJob, tmp_path: Path, pages: int) -> None:
    with tiny_disk(tmp_path / "disk", f"{4 * pages}k") as disk:
        job = replace(undisturbed, checkpoints=str(disk / "place"))
        story = Story()
        with pytest.raises(UserError, match=r"disk/place/.*: .*No space left on device.*; mend that and run again$"):
            train_model(job, Worker(), story)
        assert steps_of(story.messages, Committed) == [1][: pages // 50]
        assert max(steps_of(story.messages, Point)) <= 4  # it does not go on to the end
        assert [path.name for path in (disk / "place").iterdir()] == ["step-00000001"][: pages // 50]
        newest = Checkpoints(job.checkpoints).newest(tmp_path)
        assert (newest and newest.name) == ("step-00000001" if pages > 50 else None)
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        run(job)
        assert ended_alike(job, undisturbed, tmp_path)


def test_a_place_that_can_no_longer_be_written(digit_dataset: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "10m") as disk:
        job = small_job(digit_dataset, disk / "place", steps=FOREVER, checkpoint_every=1)

        def close() -> None:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        with pytest.raises(UserError, match="disk/place/.*: Read-only file system; mend that and run again$"):
            train_model(job, Worker(), Story((Committed, 2, close)))
        assert Checkpoints(job.checkpoints).newest(tmp_path).name in ("step-00000002", "step-00000003")


def test_an_error_of_the_writer_ends_training(digit_dataset: Path, tmp_path: Path) -> None:
    """Somebody has put a file where the folder was."""
    place = tmp_path / "place"
    job = small_job(digit_dataset, place, steps=FOREVER, checkpoint_every=1)

    def replace_folder() -> None:
        place.rename(tmp_path / "moved")
        place.write_text("mine")

    with pytest.raises(UserError, match=r"place.*: (Not a directory|File exists); mend that and run again$"):
        train_model(job, Worker(), Story((Committed, 2, replace_folder)))
    assert Checkpoints(str(tmp_path / "moved")).newest(tmp_path).name == "step-00000002"


class Watched:
    """A store, and whether there is a whole checkpoint in it after each change; `straight` sees it without faults."""

    def __init__(self, store: Store, straight: Store, folder: Path) -> None:
        self._store, self._straight, self._folder = store, straight, folder
        self.seen: list[bool] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def publish(self, path: Path, name: str) -> None:
        with self._looking():
            self._store.publish(path, name)

    def remove(self, name: str) -> None:
        with self._looking():
            self._store.remove(name)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            yield
        finally:
            place = Checkpoints(self._straight.url)
            place._store = self._straight
            self.seen.append(place.newest(self._folder) is not None)


FAULTS = {  # by the steps of the training, the last of which is done again where it fails; each outlasts the store's tries
    2: [Fault("503", "DELETE", "00000001/model", count=4)],
    3: [Fault("503", "GET", "prefix=[^&]*00000002", count=4), Fault("lose", "PUT", "00000003/checkpoint", count=8)],
    12: [Fault("503", "PUT", "trained", first=3, count=4), Fault("lose", "DELETE", "checkpoint.json", 7, 8)],
}


@pytest.mark.slow
@pytest.mark.parametrize("steps", FAULTS)
def test_there_is_always_a_whole_one_on_s3(
    digit_dataset: Path,
    tmp_path: Path,
    s3_server: S3Server,
    faulty_s3: tuple[str, FaultProxy],
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """After every change, also those that fail half-way and are done again."""
    bucket, proxy = faulty_s3
    url = f"s3://{bucket}/place"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    straight = S3Store(url)
    assert straight.read("nothing") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    watched = Watched(S3Store(url, timeout=0.3, tries=2), straight, tmp_path / "copies")
    proxy.inject(*FAULTS[steps])
    monkeypatch.setattr("jobs.checkpoints.open_store", lambda _: watched)
    run(small_job(digit_dataset, url, checkpoint_every=1, keep_checkpoints=1, steps=steps))
    assert all(watched.seen[watched.seen.index(True) :])
    befell = {(hit.method, hit.fault) for hit in proxy.hits if hit.fault}
    assert befell == {(fault.method, fault.kind) for fault in FAULTS[steps]}
    assert Checkpoints(url).steps() == [steps]


def test_whoever_looks_while_it_is_trained_finds_one(digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path / "place", checkpoint_every=1, keep_checkpoints=1, steps=40)
    found: list[int] = []
    first, done = threading.Event(), threading.Event()

    def look() -> None:
        first.wait()
        place = Checkpoints(job.checkpoints)
        while not done.is_set():
            newest = place.newest(tmp_path)
            found.append(place.step_of(newest) if newest else -1)

    thread = threading.Thread(target=look)
    thread.start()
    train_model(job, Worker(), Story((Committed, 1, first.set)))
    done.set()
    thread.join()
    assert len(found) > 10
    assert found == sorted(found)
    assert found[0] >= 1


def test_a_snapshot_is_a_copy(undisturbed: TrainJob, tmp_path: Path) -> None:
    """Also of what is laid out channels-last, which is copied anyway, and of buffers and counters, which are not."""
    model = LvaeConfig(latent_dims=(2, 3), width=4, hidden=16, norm="batch", norm_heads=True)
    training = prepare(replace(undisturbed, model=model, checkpoints=str(tmp_path / "none")), Worker())
    train_step(training, training.loader.images(0))
    live = [*training.model.state_dict().values(), *training.ema.state_dict().values()]
    live += [tensor for state in training.optimizer.state.values() for tensor in state.values()]
    assert any(not tensor.is_contiguous() for tensor in live)
    assert any(not tensor.is_floating_point() for tensor in live)
    pending = [[1.0, 2.0]]
    snapshot = take_snapshot(training, [], pending, None)
    copied = [*snapshot.weights.values(), *snapshot.trained.values(), *snapshot.optimizer.values()]
    assert len(copied) == len(live) - 1  # the average counts its updates
    before = [tensor.clone() for tensor in copied]
    storages = {tensor.untyped_storage().data_ptr() for tensor in live}
    for tensor in live:
        tensor.data.fill_(7)
    assert not any(tensor.untyped_storage().data_ptr() in storages for tensor in copied)
    assert all(torch.equal(tensor, old) for tensor, old in zip(copied, before, strict=True))
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in copied)


@pytest.mark.slow
def test_killed_at_random_instants(undisturbed: TrainJob, digit_dataset: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_training.py")
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, str(script), str(digit_dataset), str(tmp_path / "place"), "10", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parents[2])
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert ended_alike(replace(undisturbed, checkpoints=str(tmp_path / "place")), undisturbed, tmp_path)
