"""The command with its shards on S3, in a process of its own, as a user runs it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.commands import command, result_of, run, small, wait_for
from servers.fake_s3 import FakeS3
from servers.faults import Fault, FaultProxy
from servers.http import serve
from servers.processes import descendants

from jobs.storage import open_storage


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_pipeline_on_s3_makes_the_model_of_a_local_store(s3: str, tmp_path: Path, encoding: str) -> None:
    overrides = small(storage_path=f"s3://{s3}/lab", data__encoding=encoding)
    first = result_of(run(overrides, tmp_path))
    assert set(first["stages"].values()) == {"done"}
    assert set(result_of(run(overrides, tmp_path))["stages"].values()) == {"skipped"}
    # Another machine, which shares only the store, finds the shards.
    other = result_of(run(small(storage_path=f"s3://{s3}/lab", data__encoding=encoding, workspace="other"), tmp_path))
    assert other["stages"]["shard"] == "skipped"
    assert other["weights_sha256"] == first["weights_sha256"]
    # A local store makes the same model of the same data.
    local = result_of(run(small(storage_path="shared", data__encoding=encoding), tmp_path))
    assert local["weights_sha256"] == first["weights_sha256"]
    for path in tmp_path.rglob("*"):
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in (path.read_bytes() if path.is_file() else b"")


@pytest.mark.slow
def test_two_workers_share_the_cache(s3: str, tmp_path: Path) -> None:
    overrides = small(
        storage_path=f"s3://{s3}/lab", train__num_workers=2, train__shuffle_block_shards=1, data__cache_dir="cache"
    )
    assert set(result_of(run(overrides, tmp_path))["stages"].values()) == {"done"}
    assert list((tmp_path / "cache").rglob("*.tar"))


@pytest.mark.slow
def test_force_shard_on_s3_writes_the_shards_again(s3: str, tmp_path: Path) -> None:
    overrides = small(stage="shard", storage_path=f"s3://{s3}/lab")
    result_of(run(overrides, tmp_path))
    assert result_of(run([*overrides, "force=shard"], tmp_path))["stages"] == {"shard": "done"}


@pytest.mark.slow
def test_pipeline_with_s3_faults_completes(faulty_s3: tuple[str, FaultProxy], tmp_path: Path) -> None:
    bucket, proxy = faulty_s3
    proxy.inject(
        *(
            Fault(kind, method, "lab", first=n, count=1)
            for n, kind in enumerate(("503", "reset", "lose"), 2)
            for method in ("GET", "PUT")
        )
    )
    proxy.inject(
        Fault("flip", "GET", r"\.tar"),
        Fault("truncate", "GET", r"\.tar", first=2),
        Fault("flip_upload", "PUT", r"\.tar"),
    )
    assert set(result_of(run(small(storage_path=f"s3://{bucket}/lab"), tmp_path))["stages"].values()) == {"done"}
    assert sum(hit.fault is not None for hit in proxy.hits) == 9


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_in_a_shared_storage_has_one_owner(s3: str, tmp_path: Path, stack: ExitStack) -> None:
    """A second workspace is refused, and continues once the first is killed; a third takes over from it."""

    def overrides(workspace: str) -> list[str]:
        changes = {"train__steps": 400, "train__checkpoint_every": 10, "stage": "shard,train"}
        return small(storage_path=f"s3://{s3}/lab", workspace=workspace, **changes)

    def kill(process: subprocess.Popen[str]) -> None:
        for pid in (process.pid, *descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.communicate()

    def begin(workspace: str, steps: int) -> subprocess.Popen[str]:
        """Start the command and wait until the training has saved the checkpoint of a step."""
        pipe, env = subprocess.PIPE, {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        arguments = command(overrides(workspace))
        process = subprocess.Popen(arguments, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)
        stack.callback(lambda: process.poll() is None and kill(process))
        wait_for(lambda: steps_of() and steps_of()[-1] >= steps, process, 500)
        return process

    def runs() -> list[str]:
        return list(open_storage(f"s3://{s3}/lab/runs").folders())

    def steps_of() -> list[int]:
        return sorted(
            int(name.removeprefix("step-"))
            for run_name in runs()
            for name in open_storage(f"s3://{s3}/lab/runs/{run_name}/checkpoints").folders("step-")
        )

    first = begin("first", 10)
    refused = run(overrides("second"), tmp_path)
    assert refused.returncode == 1
    assert f"{tmp_path}/first on " in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    kill(first)
    second = begin("second", steps_of()[-1] + 20)
    (name,) = runs()
    store = open_storage(f"s3://{s3}/lab/runs/{name}/checkpoints")
    record = {"owner": "third", "workspace": "/third", "host": "h", "machine": "m", "pid": 1, "started": ""}
    owner = json.dumps(record | {"until": "a later time"}).encode()
    assert store.create("owner-1000.json", owner) == owner
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 1
    assert "/third on h" in errors.splitlines()[-1]
    assert "taken over" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert steps_of()[-1] < 400


def test_refused_credentials_are_an_error_in_one_line(s3: str, tmp_path: Path) -> None:
    process = run(small(storage_path=f"s3://{s3}/lab"), tmp_path, AWS_SECRET_ACCESS_KEY="not-it")
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "AWS_SECRET_ACCESS_KEY" in line
    assert "not-it" not in line


def test_missing_bucket_is_an_error_in_one_line(s3: str, tmp_path: Path) -> None:
    process = run(small(storage_path="s3://no-such-bucket/lab"), tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "s3://no-such-bucket/lab" in line
    assert "storage_path" in line


@pytest.mark.slow
def test_storage_without_writes_fails_before_sharding(s3: str, tmp_path: Path) -> None:
    server = FakeS3("writes")
    with serve(server) as url:
        process = run(small(stage="shard", storage_path="s3://bucket/lab"), tmp_path, AWS_ENDPOINT_URL=url)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()[-1:]
    assert "s3://bucket/lab" in line
    assert "NotImplemented" in line
    assert "Run the command again" not in line
    assert [path for method, path in server.requests if method == "PUT" and ".probe-" not in path] == []
