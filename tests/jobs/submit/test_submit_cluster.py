"""Submission to a real cluster of three nodes, one of which fails during training."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.commands import TINY, wait_for
from mlflow import MlflowClient
from servers.ray_cluster import HEAD, RayCluster

from jobs.submit.client import JobClient
from jobs.submit.package import job_package

pytestmark = pytest.mark.slow

SMALL: dict[str, object] = TINY | {
    "train.num_workers": 2,
    "train.min_workers": 2,  # two nodes at once; the third replaces a lost one
    "train.log_every": 10,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(3) as started:
        yield started


def submit(cluster: RayCluster, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *arguments, f"address={cluster.address}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**cluster.environment(), **environment},
    )


def done(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def overrides(folder: Path, **changes: object) -> list[str]:
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()] + [f"workspace={folder}/ws"]


def newest_step(folder: Path) -> int:
    steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("ws/runs/*/checkpoints/step-*")]
    return max(steps, default=0)


def test_invalid_override_ends_with_two(cluster: RayCluster, tmp_path: Path) -> None:
    code, out, err = done(submit(cluster, ["name=wrong", f"workspace={tmp_path}/ws", "train.stepz=4"]))
    assert code == 2
    assert out.splitlines()[-1] == "error: train.stepz: unknown key. Did you mean 'train.steps'?"
    assert err.splitlines()[-1].endswith("with exit code 2")
    assert done(submit(cluster, ["logs", "wrong"]))[:2] == (2, out)
    listed = done(submit(cluster, ["list"]))[1]
    assert "wrong" in listed
    assert "failed" in listed
    again = done(submit(cluster, ["name=wrong", f"workspace={tmp_path}/ws"]))
    assert again[0] == 1
    assert again[2].startswith("error: name=wrong: ")


PROBE = """
import os, sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def secret_length():
    return len(os.environ.get("MY_SECRET", ""))

ray.init(address="auto", log_to_driver=False)
task = ray.remote(secret_length)
own = task.options(runtime_env={"env_vars": {"OTHER": "1"}})
run = RunConfig(storage_path=sys.argv[1])
trained = TorchTrainer(secret_length, scaling_config=ScalingConfig(num_workers=1), run_config=run).fit()
print("lengths", secret_length(), ray.get(task.remote()), ray.get(own.remote()), trained.return_value)
"""


def test_job_has_its_secrets_in_every_process(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    client, log = JobClient(cluster.address), list[str]()
    with job_package([], {"MY_SECRET": "x" * 17}) as (folder, _):
        (folder / "probe.py").write_text(PROBE)
        client.submit("probe", f"exec python -m jobs.submit.environment probe {tmp_path}", folder, with_secrets=True)
    with ThreadPoolExecutor(1) as pool:  # because a test with a browser leaves an event loop in this thread
        job = pool.submit(client.follow, "probe", log.append).result()
    assert job.driver_exit_code == 0, log
    assert "lengths 17 17 17 17" in "".join(log)


def test_job_is_left_running_then_stopped_then_resumed(cluster: RayCluster, tmp_path: Path) -> None:
    long = overrides(tmp_path, stage="shard,train", train__steps=100_000, train__checkpoint_every=100)
    process = submit(cluster, ["name=long", *long])
    wait_for(lambda: len(cluster.nodes_of_actors("RayTrainWorker")) == 2, process)
    process.send_signal(signal.SIGINT)
    code, out, err = done(process, 30)
    assert code == 130
    assert "job long is left running" in err
    assert "Traceback" not in err
    follower = submit(cluster, ["name=long", *long])
    wait_for(lambda: newest_step(tmp_path) >= 100, follower)
    before = newest_step(tmp_path)
    code, _, err = done(submit(cluster, ["stop", "long"]))
    assert (code, err) == (0, "job long stopped\n")
    code, followed, err = done(follower, 60)
    assert code == 130
    assert followed.startswith(out)
    assert followed.splitlines()[-1].startswith("stopped")
    step = newest_step(tmp_path)
    assert before < step < 100_000
    onward = [override for override in long if not override.startswith("train.steps=")]
    [run] = [path.name for path in tmp_path.glob("ws/runs/*")]
    code, out, _ = done(submit(cluster, [*onward, f"train.steps={step + 20}", f"init_from={run}"]))
    assert code == 0, out
    assert f"from step {step} of" in out


def test_search_places_its_trials_on_several_nodes(cluster: RayCluster, tmp_path: Path) -> None:
    space = [
        "tune.param_space.model.latent_dims=7/3,4/2,2,3",
        "tune.algorithm=grid",
        "tune.scheduler=none",
        "tune.trials=3",
    ]
    changes: dict[str, object] = {
        "train__num_workers": 1,
        "train__min_workers": 0,
        "train__steps": 400,
        "train__checkpoint_every": 50,
    }
    process = submit(cluster, [*overrides(tmp_path, stage="shard,tune,train,evaluate", **changes), *space])
    wait_for(lambda: len(set(cluster.nodes_of_actors("ImplicitFunc"))) >= 2, process, 300)
    code, out, err = done(process)
    assert code == 0, out + err
    result = json.loads(out.splitlines()[-1])
    assert [trial["status"] for trial in result["search"]["trials"]] == ["finished"] * 3
    assert result["stages"] == {"shard": "done", "tune": "done", "train": "skipped", "evaluate": "done"}
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    assert client.get_run(result["run_id"]).data.tags["mlflow.parentRunId"] == result["search"]["run_id"]
    assert client.get_model_version_by_alias("digits", "champion").run_id == result["run_id"]


def test_training_outlasts_the_loss_of_a_node(cluster: RayCluster, tmp_path: Path) -> None:
    secret = f"secret-{os.urandom(8).hex()}"
    # So many images that every node starts a process before the first node is done with all of them.
    steps = {"train__steps": 1500, "train__checkpoint_every": 100}
    job = overrides(tmp_path, stage="shard,train,evaluate", data__num_images=8000, **steps)
    process = submit(cluster, ["env=MY_SECRET", *job], MY_SECRET=secret)
    wait_for(lambda: newest_step(tmp_path) >= 200, process, 300)
    assert len(set(cluster.nodes_of_tasks("write_tasks"))) == 3
    workers = cluster.nodes_of_actors("RayTrainWorker")
    assert len(set(workers)) == 2
    victim = next(node for node in workers if node != HEAD)
    cluster.kill(victim)
    assert newest_step(tmp_path) < 1500
    code, out, err = done(process)
    assert code == 0, out + err
    result = json.loads(out.splitlines()[-1])
    assert result["stages"] == {"shard": "done", "train": "done", "evaluate": "done"}
    assert "elbo" in result["metrics"]
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    steps = [point.step for point in client.get_metric_history(result["run_id"], "train/loss")]
    assert steps == list(range(10, 1501, 10))
    assert "Traceback" not in out + err
    assert secret not in out + err + done(submit(cluster, ["list"]))[1]
    files = cluster.files_with(secret)
    assert {path.name for path in files} == {".job-environment.json"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_submit_to_a_cluster_with_a_token(tmp_path: Path) -> None:
    job = overrides(tmp_path, stage="shard")
    with RayCluster(1, token=os.urandom(32).hex()) as cluster:
        code, out, err = done(submit(cluster, job, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=os.devnull))
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert "requires its token" in err
        code, out, err = done(submit(cluster, job))
    assert code == 0, out + err
    assert "shard    done" in out
