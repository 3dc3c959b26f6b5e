"""Ownership of a storage folder, in a local folder and on S3."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_job import EventScript, small_job

from jobs.checkpoints.manager import CheckpointManager
from jobs.errors import UserError
from jobs.events import CheckpointSaved
from jobs.storage import lease, open_storage
from jobs.storage.base import Storage
from jobs.storage.lease import Lease, LeaseLostError, check_owner
from jobs.training.loop import train_model
from jobs.training.state import Worker

FAST = {"renew_seconds": 0.05, "expiry_seconds": 60.0}
SHORT = {"renew_seconds": 0.05, "expiry_seconds": 0.3}
HOLD = """
import sys, time
from pathlib import Path
from jobs.storage import open_storage
from jobs.storage.lease import Lease
with Lease(open_storage(sys.argv[1]), "killed", "first"):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    url = f"s3://{request.getfixturevalue('s3')}/run" if request.param == "s3" else str(tmp_path / "run")
    return open_storage(url)


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which this process is on another machine than before, as far as leases can tell."""
    return lambda: monkeypatch.setattr(lease, "_machine", lambda: "another boot")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_lost(held: Lease) -> bool:
    try:
        held.check()
    except LeaseLostError:
        return True
    return False


def test_lease_is_free_after_its_end(store: Storage) -> None:
    for owner in "abc":
        with Lease(store, owner, "w") as held:
            check_owner(store, owner)
            held.check()
    assert len(list(store.names("owner-"))) == 1
    with pytest.raises(LeaseLostError):
        check_owner(store, "a")


def test_lease_of_a_running_process_is_refused(store: Storage) -> None:
    with (
        Lease(store, "a", "/home/first"),
        pytest.raises(UserError, match=r"/home/first on .*until .* UTC") as caught,
        Lease(store, "b", "w"),
    ):
        pass
    assert store.url in str(caught.value)


def test_lease_renewed_on_another_machine_is_refused(store: Storage, other_machine: Callable[[], None]) -> None:
    waits: list[str] = []
    with Lease(store, "a", "/home/first", **FAST):
        other_machine()
        with pytest.raises(UserError, match="/home/first"), Lease(store, "b", "w", waits.append, **FAST):
            pass
    assert waits
    assert all("/home/first" in wait for wait in waits)


def test_lease_not_renewed_on_another_machine_is_taken_over(store: Storage, other_machine: Callable[[], None]) -> None:
    """The first owner finds that out before its next write, also after the second one has ended."""
    with Lease(store, "a", "first", renew_seconds=600):
        check_owner(store, "a")
        other_machine()
        with Lease(store, "b", "/home/second", **SHORT):
            check_owner(store, "b")
            with pytest.raises(LeaseLostError, match="/home/second"):
                check_owner(store, "a")
    with pytest.raises(LeaseLostError):
        check_owner(store, "a")
    assert b'"released": true' in (store.read("owner-2.json") or b"")


def test_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path / "run"))
    with subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "owned\n"
        with pytest.raises(UserError, match=str(process.pid)), Lease(store, "b", "w"):
            pass
        process.kill()
        process.wait()
    with Lease(store, "b", "w"):
        check_owner(store, "b")


def test_suspended_owner_finds_the_lease_lost(tmp_path: Path, other_machine: Callable[[], None]) -> None:
    store = open_storage(str(tmp_path / "run"))
    program = HOLD.replace("time.sleep(600)", "while True: lease.check(); time.sleep(0.01)")
    program = program.replace('"first")', '"first", renew_seconds=0.05) as lease')
    with subprocess.Popen([sys.executable, "-c", program, store.url], stdout=subprocess.PIPE, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"owned\n"
        os.kill(process.pid, signal.SIGSTOP)
        other_machine()
        with Lease(store, "b", "/home/second", **SHORT):
            os.kill(process.pid, signal.SIGCONT)
            _, errors = process.communicate(timeout=20)
            check_owner(store, "b")
    assert b"/home/second" in errors
    assert process.returncode == 1


@pytest.mark.parametrize("field", ["owner", "pid", "started", "workspace"])
def test_lease_without_a_field_is_of_an_unknown_command(tmp_path: Path, field: str) -> None:
    """It is taken over when it is not renewed, although it may name this machine."""
    store = open_storage(str(tmp_path / "run"))
    record = json.loads(Lease(store, "a", "first")._content())
    del record[field]
    store.write("owner-1.json", json.dumps(record).encode())
    waits: list[str] = []
    with Lease(store, "b", "second", waits.append, **SHORT):
        check_owner(store, "b")
    assert set(waits) == {"an unknown command"}


def test_lease_requested_by_many_goes_to_one(store: Storage) -> None:
    def acquire(owner: str) -> Lease | None:
        held = Lease(store, owner, "w")
        try:
            return held.__enter__()
        except UserError:
            return None

    owners = [f"owner {index}" for index in range(6)]
    with ThreadPoolExecutor(len(owners)) as pool:
        leases = list(pool.map(acquire, owners))
    (winner,) = [owner for owner, held in zip(owners, leases, strict=True) if held]
    check_owner(store, winner)
    for held in filter(None, leases):
        held.__exit__(None, None, None)


def test_lease_overwritten_by_another_is_lost(tmp_path: Path) -> None:
    """As happens on a server that ignores the condition of a conditional write."""
    store = open_storage(str(tmp_path / "run"))
    with Lease(store, "a", "first", **FAST) as held:
        other = Lease(store, "b", "second")._content()
        store.write("owner-1.json", other)
        wait_for(lambda: is_lost(held))
    assert store.read("owner-1.json") == other


def test_training_whose_storage_was_taken_over_stops(digit_dataset: Path, tmp_path: Path) -> None:
    job = replace(small_job(digit_dataset, tmp_path / "run"), owner="a")
    store = open_storage(job.checkpoints)
    with Lease(store, "a", "first"):
        with pytest.raises(LeaseLostError, match="taken over"):
            train_model(job, Worker(), EventScript((CheckpointSaved, 6, lambda: store.create("owner-2.json", b"{}"))))
        assert CheckpointManager(job.checkpoints).steps() == [3, 6]


def test_checkpoints_of_another_owner_are_not_written(tmp_path: Path) -> None:
    owner, loser = (CheckpointManager(str(tmp_path / "run"), name) for name in "ab")
    with Lease(open_storage(str(tmp_path / "run")), "a", "first"):
        for step in (1, 2):
            with owner.new(step) as folder:
                (folder / "checkpoint.json").write_text("{}")
        with pytest.raises(LeaseLostError, match="first"), loser.new(1) as folder:
            (folder / "checkpoint.json").write_text("[]")
        for write in (loser.sweep, lambda: loser.prune(1, 1)):
            with pytest.raises(LeaseLostError):
                write()
    assert [path.read_text() for path in (tmp_path / "run").glob("step-*/checkpoint.json")] == ["{}", "{}"]
