"""The command with its shards on S3, in a process of its own, as a user runs it."""

import os
from pathlib import Path

import pytest
from helpers.commands import result_of, run, small
from servers.faults import Fault, FaultProxy


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
    assert list((tmp_path / "cache").glob("*.tar"))


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
