"""The start of a local Ray cluster: one line names why it cannot start, and the environment does not redirect it."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers.commands import command, environment, result_of, run, small
from helpers.datasets import tiny_disk

from jobs.cluster.ray_cluster import cluster
from jobs.config import RayConfig
from jobs.errors import UserError


@pytest.fixture(autouse=True)
def token_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment that `cluster` changes."""
    for name in ("RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


def start_error() -> str:
    with pytest.raises(UserError) as error, cluster(RayConfig(num_cpus=1)):
        pass
    return str(error.value)


def test_cluster_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        monkeypatch.setenv("TMPDIR", str(disk / "tmp"))
        assert start_error().startswith(f"{disk}/tmp/ray: 1 MB are free")


def test_cluster_long_temporary_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 100)
    monkeypatch.setenv("TMPDIR", str(folder))
    message = start_error()
    assert message.startswith(f"{folder}/ray: ")
    assert "AF_UNIX path length" in message
    assert "RAY_TMPDIR" in message


def test_cluster_temporary_path_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    assert start_error().startswith(f"{tmp_path}/file/ray: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "message"),
    [("ulimit -n 64", "error: ulimit -n: 64 open files"), ("mount -t tmpfs -o size=1m tmpfs /dev/shm", "320 MB")],
)
def test_command_with_low_limit_is_refused(tmp_path: Path, limit: str, message: str) -> None:
    """Few open files, and no shared memory beside a disk that is too small for objects."""
    shell = ["unshare", "--mount", "sh", "-c", f'{limit} && exec "$@"', "sh"]
    if subprocess.run([*shell, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed")
    with tiny_disk(tmp_path / "disk", "100m") as disk:
        env = {**environment(), "TMPDIR": str(disk)}
        process = subprocess.run(
            [*shell, *command(small(stage="shard"))], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
    assert process.returncode == 1
    assert message in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_command_ignores_variables_that_redirect_ray(tmp_path: Path) -> None:
    """The settings decide where the command runs, not variables that were set for something else."""
    elsewhere = "127.0.0.1:9"
    variables = {
        "RAY_TRAIN_V2_ENABLED": "0",
        "RAY_CLIENT_MODE": "1",
        "RAY_ADDRESS": elsewhere,
        "RAY_REDIS_ADDRESS": elsewhere,
        "RAY_AIR_LOCAL_CACHE_DIR": str(tmp_path / "elsewhere"),
        "RAY_STORAGE": str(tmp_path / "elsewhere"),
        "MASTER_ADDR": "192.0.2.99",
        "GLOO_SOCKET_IFNAME": "elsewhere0",
    }
    result = result_of(run(small(stage="shard,train"), tmp_path, **variables))
    assert result["stages"] == {"shard": "done", "train": "done"}
    assert not (tmp_path / "elsewhere").exists()
