"""The spool: what was appended is there after a kill at any byte, its owner is alone, and what has arrived is gone."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.datasets import tiny_disk
from mlflow import MlflowClient
from mlflow.entities import Dataset

from jobs.config import TrackingConfig
from jobs.events import CheckpointSaved, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker
from jobs.tracking.spool import Spool, missing
from jobs.tracking.uploader import MetricUploader, UploadRecovery

HOME = {"uri": "", "experiment": "vlae"}
DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
AWAY = {"uri": "http://127.0.0.1:9", "experiment": "vlae"}


def point(step: int, value: float = 0.1) -> MetricPoint:
    return MetricPoint(step, 1_700_000_000_000 + step, {"train/loss": value / 3, "train/kl": -value * step})


def opened(path: Path) -> Spool:
    spool = Spool.claim(path, HOME)
    assert spool is not None
    return spool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "0123abcd.jsonl"


def test_what_is_appended_is_there_for_the_next_process(path: Path) -> None:
    entries = [point(2), TrainingWarning(3, "bad", "a word\nand another"), point(4)]
    spool = opened(path)
    spool.append(entries[:2])
    spool.append(entries[2:])
    spool.close()
    again = opened(path)
    assert (again.run_id, again.home, again.empty) == ("0123abcd", HOME, False)
    assert again.pending(10)[0] == entries


def test_what_is_acknowledged_is_gone(path: Path) -> None:
    spool = opened(path)
    bare = path.stat().st_size
    spool.append(point(step) for step in range(10))
    first, end = spool.pending(4)
    spool.acknowledge(end)
    spool.append([point(10)])
    rest, end = spool.pending(100)
    assert [entry.step for entry in [*first, *rest]] == list(range(11))
    assert not spool.empty
    spool.acknowledge(end)
    assert (spool.empty, spool.pending(5)[0], path.stat().st_size) == (True, [], bare)
    spool.append([point(11)])
    assert spool.pending(5)[0] == [point(11)]
    spool.clear()
    spool.close()
    assert list(path.parent.iterdir()) == []


def test_steps_of_a_metric_only_rise(path: Path) -> None:
    spool = opened(path)
    spool.append([point(2), point(4)])
    spool.append([point(2, 9.0), point(4, 9.0), MetricPoint(4, 5, {"validation/elbo": -1.0}), point(6)])
    spool.close()
    again = opened(path)  # which knows it from the file
    again.append([point(6, 9.0), point(8)])
    elbo = MetricPoint(4, 5, {"validation/elbo": -1.0})
    assert again.pending(100)[0] == [point(2), point(4), elbo, point(6), point(8)]
    assert missing([point(2), MetricPoint(4, 1, {"a": 1.0, "b": 2.0})], {"train/loss": 2, "train/kl": 3, "a": 4}) == [
        MetricPoint(4, 1, {"b": 2.0})
    ]


def test_a_file_that_is_cut_at_any_byte(path: Path) -> None:
    spool = opened(path)
    spool.append([point(2), point(4)])
    spool.close()
    whole = path.read_bytes()
    ends = [number for number, byte in enumerate(whole, 1) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        cut = opened(path)
        left = max(0, sum(end <= size for end in ends) - 1)  # whole lines, without the first
        assert cut.pending(5)[0] == [point(2), point(4)][:left]
        cut.append([point(4), point(6)])
        assert cut.pending(5)[0] == [point(2), point(4), point(6)][:left] + [point(4), point(6)][max(0, left - 1) :]
        os.close(cut._file)


def test_what_comes_after_a_damaged_line_is_left_to_the_checkpoint(path: Path) -> None:
    """Sent without the point before, it would hide for ever that one is missing."""
    spool = opened(path)
    spool.append([point(2), point(4), point(6)])
    spool.close()
    path.write_bytes(path.read_bytes().replace(b'"step": 4', b'"step"? 4'))
    assert opened(path).pending(5)[0] == [point(2)]


def test_one_owner_at_a_time(path: Path) -> None:
    spool = opened(path)
    spool.append([point(2)])
    assert Spool.claim(path) is None
    assert Spool.claim(path, HOME) is None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Spool.claim, (path,)) is None
    spool.close()
    assert opened(path).pending(5)[0] == [point(2)]
    assert Spool.claim(path.with_name("other.jsonl")) is None
    assert not path.with_name("other.jsonl").exists()


def test_the_first_line_tells_where_and_no_secrets(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "swordfish")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(TrackingConfig(uri=AWAY["uri"]), tmp_path)
    with MetricUploader(tracker, "0123abcd", path.parent) as sender:
        sender.take(TrainingResumed(1, [point(1)]))
        with pytest.raises(Exception, match="Connection refused"):
            sender.close(0.5)
    first, *rest = path.read_text().splitlines()
    assert json.loads(first) == AWAY
    assert len(rest) == 1
    assert "swordfish" not in path.read_text()


def test_a_full_disk_is_told_and_waited_for(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    with tiny_disk(tmp_path / "small") as small:
        (small / "fill").write_bytes(b"x" * (2**20 - 2 * 4096))
        with MetricUploader(tracker, run_id, small) as sender:
            sender.take(TrainingResumed(0))
            long = [MetricPoint(step, step, {f"train/{name}": 0.1 for name in range(100)}) for step in range(100)]
            for taken in [*long, CheckpointSaved(100)]:
                sender.take(taken)
            while not (news := sender.news()):
                pass
            assert "cannot be written" in news[0]
            (small / "fill").unlink()
            sender.close(20)
        assert list(small.iterdir()) == []
    assert [p.step for p in client.get_metric_history(run_id, "train/7")] == list(range(100))


KILLED = """
import os, signal, sys, time
from pathlib import Path
from jobs.config import TrackingConfig
from jobs.events import Committed, Point, Started
from jobs.tracking.uploader import Sender
from jobs.tracking.client import Tracker

run_id, uri, workspace = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sender = Sender(Tracker(TrackingConfig(uri=uri), workspace), run_id, workspace / "spool")
sender.take(Started(0))
for step in (1, 2, 3):
    sender.take(Point(step, step, {"train/loss": step / 3}))
sender.take(Committed(2))
path = workspace / "spool" / f"{run_id}.jsonl"
while not path.exists() or b'"step": 2' not in path.read_bytes():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(run_id: str, uri: str, workspace: Path) -> None:
    """Steps 1 and 2 are committed by a process that is killed while MLflow is away."""
    done = subprocess.run([sys.executable, "-c", KILLED, run_id, uri, workspace], check=False, cwd=Path.cwd())
    assert done.returncode == -9
    (path,) = (workspace / "spool").glob(f"{run_id}.jsonl")
    path.write_text(path.read_text().replace(uri, ""))  # as if it had been this one that was away


@pytest.mark.slow
def test_a_later_process_sends_what_is_left(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    deleted = tracker.start_run("r", {}, DATASET, key="k2")
    client.delete_run(deleted)
    for left in (run_id, deleted):
        leave(left, AWAY["uri"], tmp_path)
    elsewhere, alive = tmp_path / "spool" / "elsewhere.jsonl", tmp_path / "spool" / "alive.jsonl"
    spool = Spool.claim(elsewhere, AWAY)
    assert spool is not None
    spool.append([point(1)])
    spool.close()
    living = opened(alive)
    living.append([point(1)])
    (tmp_path / "spool" / "begun.jsonl").touch()  # killed before its first line
    news = UploadRecovery(tracker, tmp_path / "spool").finish(20)
    assert [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run_id, "train/loss")] == [
        (1, 1, 1 / 3),
        (2, 2, 2 / 3),
    ]
    assert sorted(news) == sorted(
        [
            f"the rest of an earlier curve has arrived in MLflow: run {run_id}",
            f"{tmp_path / 'spool' / deleted}.jsonl is dropped: its run was deleted in MLflow",
        ]
    )
    assert sorted((tmp_path / "spool").iterdir()) == [alive, elsewhere]
    assert UploadRecovery(tracker, tmp_path / "nowhere").finish(20) == []


def test_a_later_process_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "spool"
    for name in "ab":
        spool = Spool.claim(folder / f"{name}.jsonl", AWAY)
        assert spool is not None
        spool.append([point(1)])
        spool.close()
    tracker = Tracker(TrackingConfig(uri=AWAY["uri"]), tmp_path)
    (news,) = UploadRecovery(tracker, folder).finish(20)
    assert news == f"earlier curves wait still in {folder}: [Errno 111] Connection refused"
    assert [opened(folder / f"{name}.jsonl").pending(5)[0] for name in "ab"] == [[point(1)]] * 2
