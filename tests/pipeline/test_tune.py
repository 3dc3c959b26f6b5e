"""stage=tune as a user runs it: kills, early stops, failures, several objectives, several workers."""

import csv
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import command, environment, result_of, run, small, wait_for
from mlflow import MlflowClient
from mlflow.entities import Run

from jobs.search.trials import Trial, best_first, pareto_front
from pipeline.searches import TrialsRecord

pytestmark = pytest.mark.slow

LADDERS = "tune.param_space.model.latent_dims=7/3,4/2,2,3/2,2,2,1"
FIGURES = ["blocks", "gibbs", "manifolds", "reconstructions", "samples"]


def search(*overrides: str, **changes: object) -> list[str]:
    """Overrides of a search whose trials take seconds."""
    defaults = {"train__steps": 27, "train__log_every": 3, "train__checkpoint_every": 9, "tune__trials": 4}
    defaults["train__lr_warmup_steps"] = 2
    return [*small(**defaults | changes), *overrides]


def trials_of(folder: Path) -> list[Trial]:
    """Trials of the only search in the workspace."""
    for path in folder.glob("ws/searches/*/trials.json"):
        record = TrialsRecord.read(path)
        return record.trials if record else []
    return []


def mlflow_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'ws' / 'mlflow.db'}")


def trial_runs(client: MlflowClient, parent: str) -> dict[str, Run]:
    """MLflow runs below that of a search, by the number of the trial."""
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.data.tags["tune.trial"]: run for run in runs if "tune.trial" in run.data.tags}


def weight_files(folder: Path, trial: Trial) -> list[Path]:
    return sorted((folder / "ws" / "runs" / trial.run / "checkpoints").rglob("*.safetensors"))


def test_tune_killed_driver_resumes(tmp_path: Path) -> None:
    """After SIGKILL the same command repeats no trial that was done, and registers the best one."""
    rates = "tune.param_space.train.learning_rate=0.003/1e-6"
    overrides = search(LADDERS, rates, stage="shard,tune,train,evaluate", tune__trials=6)
    process = subprocess.Popen(
        command(overrides), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    wait_for(lambda: 0 < sum(trial.is_done for trial in trials_of(tmp_path)) < 6, process)
    process.kill()
    process.communicate()
    done = {trial.number: trial for trial in trials_of(tmp_path) if trial.is_done}
    weights = {path: path.stat().st_mtime_ns for trial in done.values() for path in weight_files(tmp_path, trial)}

    result = result_of(run(overrides, tmp_path))
    assert result["stages"]["shard"] == "skipped"
    assert result["stages"]["tune"] == "resumed"
    trials = trials_of(tmp_path)
    assert sorted(trial.number for trial in trials) == [0, 1, 2, 3, 4, 5]
    assert {trial.status for trial in trials} == {"finished", "stopped"}
    assert len({trial.key for trial in trials}) == 6
    for number, before in done.items():
        (after,) = (trial for trial in trials if trial.number == number)
        assert (after.status, after.reports, after.ended_ms) == (before.status, before.reports, before.ended_ms)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights

    check_mlflow(mlflow_client(tmp_path), result, trials)
    check_table(tmp_path, result)
    assert set(result_of(run(overrides, tmp_path))["stages"].values()) == {"skipped"}


def check_mlflow(client: MlflowClient, result: dict[str, Any], trials: list[Trial]) -> None:
    """Check that MLflow has each trial once and the best one as the registered champion."""
    parent = result["search"]["run_id"]
    runs = trial_runs(client, parent)
    assert set(runs) == {"0", "1", "2", "3", "4", "5"}
    assert len(client.search_runs([client.get_run(parent).info.experiment_id])) == 7
    for trial in trials:
        data, info = runs[str(trial.number)].data, runs[str(trial.number)].info
        assert info.status == "FINISHED"
        assert data.params["model.latent_dims"] == trial.values["model.latent_dims"]
        steps = [point.step for point in client.get_metric_history(info.run_id, "train/loss")]
        assert steps == list(range(3, 3 * len(steps) + 1, 3))  # each once
        assert steps[-1] >= trial.step  # a trial that is stopped may be at a later step by then
        curve = client.get_metric_history(info.run_id, "validation/elbo")
        assert {point.step: point.value for point in curve}[trial.step] == trial.metrics["elbo"]
        figures = [artifact.path for artifact in client.list_artifacts(info.run_id, "figures")]
        assert {f"figures/{name}.png" for name in FIGURES} <= set(figures)
    assert [artifact.path for artifact in client.list_artifacts(parent, "figures")] == [
        "figures/depth_and_capacity.png",
        "figures/parallel_coordinates.png",
    ]
    best = max((trial for trial in trials if trial.status == "finished"), key=lambda trial: trial.metrics["elbo"])
    assert client.get_metric_history(parent, "best/elbo")[-1].value == best.metrics["elbo"]
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == runs[str(best.number)].info.run_id == result["run_id"]
    assert result["stages"] == {"shard": "skipped", "tune": "resumed", "train": "skipped", "evaluate": "done"}


def check_table(folder: Path, result: dict[str, Any]) -> None:
    """Check that each command of the table names the run of its trial."""
    (table,) = folder.glob("ws/searches/*/trials.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [trial["number"] for trial in result["search"]["trials"]]
    overrides = shlex.split(rows[0]["command"])[4:]
    repeated = result_of(run(["stage=train", "output=json", *overrides], folder))
    assert (repeated["run_id"], repeated["stages"]) == (result["run_id"], {"train": "skipped"})


def test_tune_failed_trial_is_recorded(tmp_path: Path) -> None:
    """A trial that is not finite is recorded as FAILED, and raising tune.trials continues a finished search."""
    space = "tune.param_space.model.likelihood_scale=0.1/0.2/1e-30"  # the square of the last is zero
    objectives = "tune.objectives=elbo,mig_sup"
    overrides = search(space, objectives, "train.max_nonfinite_steps=2", "model.likelihood=gaussian")
    overrides += ["tune.algorithm=grid", "tune.scheduler=none", "stage=shard,tune"]
    two = [override for override in overrides if not override.startswith("tune.trials")]
    first = result_of(run([*two, "tune.trials=2"], tmp_path))
    assert {trial["number"] for trial in first["search"]["trials"]} == {0, 1}
    before = {trial.number: trial for trial in trials_of(tmp_path)}
    process = run(overrides, tmp_path)
    result = result_of(process)
    assert result["search"]["run_id"] == first["search"]["run_id"]
    trials = {trial.number: trial for trial in trials_of(tmp_path)}
    assert {0: trials[0], 1: trials[1]} == before
    assert [trials[number].status for number in (0, 1, 2)] == ["finished", "finished", "failed"]
    assert "not finite" in trials[2].reason
    assert set(trials[0].metrics) == {"elbo", "mig_sup"}
    assert len(trials) == 3  # of four that were allowed: the grid has no more
    front = pareto_front(best_first(list(trials.values()), ["elbo", "mig_sup"]), ["elbo", "mig_sup"])
    numbers = ", ".join(str(trial.number) for trial in front)
    assert f"Pareto front of elbo, mig_sup: trials {numbers}" in process.stderr
    failed = trial_runs(mlflow_client(tmp_path), result["search"]["run_id"])["2"]
    assert failed.info.status == "FAILED"
    assert "not finite" in failed.data.tags["tune.reason"]


def test_tune_ctrl_c_saves_checkpoints(tmp_path: Path) -> None:
    """Ctrl-C leaves a checkpoint of the running trials, and the same command continues them."""
    overrides = search(LADDERS, stage="shard,tune", tune__algorithm="grid", train__steps=900, tune__trials=2)
    process = subprocess.Popen(
        command(overrides), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    wait_for(lambda: any(trial.step for trial in trials_of(tmp_path)), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in errors
    interrupted = trials_of(tmp_path)
    assert not any(trial.is_done for trial in interrupted)
    assert any(weight_files(tmp_path, trial) for trial in interrupted)
    assert result_of(run([*overrides, "tune.scheduler=asha"], tmp_path))["stages"]["tune"] == "resumed"
    assert all(trial.is_done for trial in trials_of(tmp_path))


def test_tune_multi_worker_trials_and_longer_best(tmp_path: Path) -> None:
    """Trials of several workers are Ray Train jobs, and the best point is trained for all train.steps."""
    overrides = search(LADDERS, stage="shard,tune,train", tune__algorithm="grid", tune__steps=18, train__num_workers=2)
    result = result_of(run(overrides, tmp_path))
    trials = trials_of(tmp_path)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.status for trial in trials} <= {"finished", "stopped"}
    assert all(trial.step == 18 for trial in trials if trial.status == "finished")
    client = mlflow_client(tmp_path)
    best = client.get_run(result["run_id"])
    assert best.data.tags["mlflow.parentRunId"] == result["search"]["run_id"]
    assert best.data.params["train.steps"] == "27"
    assert best.data.params["model.latent_dims"] == result["search"]["trials"][0]["values"]["model.latent_dims"]
    assert len(trial_runs(client, result["search"]["run_id"])) >= 4


def test_tune_impossible_search_is_one_line(tmp_path: Path) -> None:
    """The message names the setting at fault, and nothing but the workspace is written."""
    for overrides, key in (
        (["data.validation_fraction=0"], "data.validation_fraction"),
        (["tune.max_concurrent=2", "train.cpus_per_worker=2"], "tune.max_concurrent=2"),
        (["train.num_workers=4", "train.cpus_per_worker=1"], "train.num_workers"),
    ):
        process = run(search(LADDERS, *overrides, stage="shard,tune"), tmp_path)
        assert process.returncode == 1
        assert key in process.stderr.splitlines()[-1]
        assert "Traceback" not in process.stderr
    process = run(search(LADDERS, stage="tune", data__scene_seed=9), tmp_path)
    assert process.returncode == 1
    assert "shard" in process.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["ws"]
