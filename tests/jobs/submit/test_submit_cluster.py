"""Submission to a real cluster of three nodes, one of which loses its power in mid-training."""

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

from jobs.submit.client import Jobs, Log
from jobs.submit.package import packed

pytestmark = pytest.mark.slow

SMALL: dict[str, object] = TINY | {
    "train.num_workers": 2,
    "train.min_workers": 2,  # two nodes at once, and when one is lost the third takes its place
    "train.log_every": 10,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(3) as started:
        yield started


def submit(cluster: RayCluster, words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *words, f"address={cluster.address}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**cluster.environment(), **environment},
    )


def done(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def words(folder: Path, **changes: object) -> list[str]:
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()] + [f"workspace={folder}/ws"]


def newest_step(folder: Path) -> int:
    steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("ws/runs/*/checkpoints/step-*")]
    return max(steps, default=0)


def test_wrong_words_end_with_two(cluster: RayCluster, tmp_path: Path) -> None:
    code, out, err = done(submit(cluster, ["name=wrong", f"workspace={tmp_path}/ws", "train.stepz=4"]))
    assert code == 2
    assert out.splitlines()[-1] == "error: unknown key 'train.stepz'; did you mean 'train.steps'?"
    assert err.splitlines()[-1].endswith("with exit code 2")
    assert done(submit(cluster, ["logs", "wrong"]))[:2] == (2, out)
    listed = done(submit(cluster, ["list"]))[1]
    assert "wrong" in listed
    assert "failed" in listed
    again = done(submit(cluster, ["name=wrong", f"workspace={tmp_path}/ws"]))
    assert again[0] == 1
    assert "choose another name" in again[2]


PROBE = """
import os, sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def seen():
    return len(os.environ.get("MY_SECRET", ""))

ray.init(address="auto", log_to_driver=False)
task = ray.remote(seen)
own = task.options(runtime_env={"env_vars": {"OTHER": "1"}})
run = RunConfig(storage_path=sys.argv[1])
trained = TorchTrainer(seen, scaling_config=ScalingConfig(num_workers=1), run_config=run).fit()
print("seen", seen(), ray.get(task.remote()), ray.get(own.remote()), trained.return_value)
"""


def test_every_process_of_a_job_has_its_secrets(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    jobs, shown = Jobs(cluster.address), list[str]()
    with packed([], {"MY_SECRET": "x" * 17}) as (folder, _):
        (folder / "probe.py").write_text(PROBE)
        jobs.submit("probe", f"exec python -m jobs.submit.environment probe {tmp_path}", folder, with_secrets=True)
    with ThreadPoolExecutor(1) as pool:  # where a test with a browser ran before, this thread has an event loop
        job = pool.submit(jobs.follow, "probe", Log(shown.append)).result()
    assert job.driver_exit_code == 0, shown
    assert "seen 17 17 17 17" in "".join(shown)


def test_left_running_stopped_and_gone_on_with(cluster: RayCluster, tmp_path: Path) -> None:
    long = words(tmp_path, stage="shard,train", train__steps=100_000, train__checkpoint_every=100)
    process = submit(cluster, ["name=long", *long])
    wait_for(lambda: len(cluster.where_actors_live("RayTrainWorker")) == 2, process)
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
    assert followed.splitlines()[-1] == "stopped; the same command goes on where this one was"
    step = newest_step(tmp_path)
    assert before < step < 100_000
    onward = [word for word in long if not word.startswith("train.steps=")]  # a run of its own, begun with that one
    [run] = [path.name for path in tmp_path.glob("ws/runs/*")]
    code, out, _ = done(submit(cluster, [*onward, f"train.steps={step + 20}", f"init_from={run}"]))
    assert code == 0, out
    assert f"from step {step} of" in out


def test_a_search_has_its_trials_on_several_nodes(cluster: RayCluster, tmp_path: Path) -> None:
    space = [
        "tune.param_space.model.latent_dims=7/3,4/2,2,3",
        "tune.algorithm=grid",
        "tune.scheduler=none",
        "tune.trials=3",
    ]
    one = {"train__num_workers": 1, "train__min_workers": 0, "train__steps": 400, "train__checkpoint_every": 50}
    process = submit(cluster, [*words(tmp_path, stage="shard,tune,train,evaluate", **one), *space])
    wait_for(lambda: len(set(cluster.where_actors_live("ImplicitFunc"))) >= 2, process, 200)
    code, out, err = done(process)
    assert code == 0, out + err
    result = json.loads(out.splitlines()[-1])
    assert [trial["status"] for trial in result["search"]["trials"]] == ["finished"] * 3
    assert result["stages"] == {"shard": "done", "tune": "done", "train": "skipped", "evaluate": "done"}
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    assert client.get_run(result["run_id"]).data.tags["mlflow.parentRunId"] == result["search"]["run_id"]
    assert client.get_model_version_by_alias("digits", "champion").run_id == result["run_id"]


def test_a_node_loses_its_power_in_mid_training(cluster: RayCluster, tmp_path: Path) -> None:
    secret = f"secret-{os.urandom(8).hex()}"
    # As many images as it takes for all nodes to have their first process before one node has done all of them.
    steps = {"train__steps": 1500, "train__checkpoint_every": 100}
    job = words(tmp_path, stage="shard,train,evaluate", data__num_images=8000, **steps)
    process = submit(cluster, ["env=MY_SECRET", *job], MY_SECRET=secret)
    wait_for(lambda: newest_step(tmp_path) >= 200, process, 200)
    assert len(set(cluster.where_tasks_ran("write_parts"))) == 3
    workers = cluster.where_actors_live("RayTrainWorker")
    assert len(set(workers)) == 2
    victim = next(node for node in workers if node != HEAD)
    cluster.kill(victim)
    assert newest_step(tmp_path) < 1500
    code, out, err = done(process)
    assert code == 0, out + err
    result = json.loads(out.splitlines()[-1])
    assert result["stages"] == {"shard": "done", "train": "done", "evaluate": "done"}
    assert "elbo" in result["scores"]
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    steps = [point.step for point in client.get_metric_history(result["run_id"], "train/loss")]
    assert steps == list(range(10, 1501, 10))
    assert "Traceback" not in out + err
    assert secret not in out + err + done(submit(cluster, ["list"]))[1]
    found = cluster.files_with(secret)
    assert {path.name for path in found} == {".job-environment.json"}
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_a_cluster_with_a_token(tmp_path: Path) -> None:
    job = words(tmp_path, stage="shard")
    with RayCluster(1, token=os.urandom(32).hex()) as cluster:
        code, out, err = done(submit(cluster, job, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=os.devnull))
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert "lets nobody in without its token" in err
        code, out, err = done(submit(cluster, job))
    assert code == 0, out + err
    assert "shard    done" in out
