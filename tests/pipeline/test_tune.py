"""stage=tune as a user runs it: kills, early stops, failures, several objectives, several workers."""

import csv
import json
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

pytestmark = pytest.mark.slow

LADDERS = "tune.param_space.model.latent_dims=7/3,4/2,2,3/2,2,2,1"
PICTURES = ["blocks", "gibbs", "manifolds", "reconstructions", "samples"]


def search(*words: str, **changes: object) -> list[str]:
    """The words of a search whose trials take seconds."""
    brief = {"train__steps": 27, "train__log_every": 3, "train__checkpoint_every": 9, "tune__trials": 4}
    brief["train__lr_warmup_steps"] = 2
    return [*small(**brief | changes), *words]


def trials_of(folder: Path) -> list[Trial]:
    found = list(folder.glob("ws/searches/*/trials.json"))
    return [Trial.load(record) for record in json.loads(found[0].read_text())] if found else []


def tracked(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'ws' / 'mlflow.db'}")


def children(client: MlflowClient, parent: str) -> dict[str, Run]:
    """The runs below another, by the number of the trial."""
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {one.data.tags["tune.trial"]: one for one in found if "tune.trial" in one.data.tags}


def test_a_search_whose_driver_is_killed_goes_on_and_its_best_is_registered(tmp_path: Path) -> None:
    rates = "tune.param_space.train.learning_rate=0.003/1e-6"
    words = search(LADDERS, rates, stage="shard,tune,train,evaluate", tune__trials=6)
    process = subprocess.Popen(
        command(words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )

    def half_way() -> bool:
        return 0 < sum(bool(one.ended) for one in trials_of(tmp_path)) < 6

    wait_for(half_way, process)
    process.kill()
    process.communicate()
    done = {one.number: one for one in trials_of(tmp_path) if one.ended}
    weights = {path: path.stat().st_mtime_ns for one in done.values() for path in saved(tmp_path, one)}

    result = result_of(run(words, tmp_path))
    assert result["stages"]["shard"] == "skipped"
    assert result["stages"]["tune"] == "resumed"
    trials = trials_of(tmp_path)
    assert sorted(one.number for one in trials) == [0, 1, 2, 3, 4, 5]
    assert {one.status for one in trials} == {"finished", "stopped"}
    assert len({one.key for one in trials}) == 6
    for number, before in done.items():  # no trial that had ended was repeated
        (after,) = (one for one in trials if one.number == number)
        assert (after.status, after.reports, after.ended_ms) == (before.status, before.reports, before.ended_ms)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights

    the_best_of_the_runs_is_registered(tracked(tmp_path), result, trials)
    the_table_names_the_runs(tmp_path, result)
    assert set(result_of(run(words, tmp_path))["stages"].values()) == {"skipped"}


def the_best_of_the_runs_is_registered(client: MlflowClient, result: dict[str, Any], trials: list[Trial]) -> None:
    parent = result["search"]["run_id"]
    runs = children(client, parent)
    assert set(runs) == {"0", "1", "2", "3", "4", "5"}
    assert len(client.search_runs([client.get_run(parent).info.experiment_id])) == 7
    for one in trials:
        found = runs[str(one.number)]
        assert found.info.status == "FINISHED"
        assert found.data.params["model.latent_dims"] == one.values["model.latent_dims"]
        steps = [point.step for point in client.get_metric_history(found.info.run_id, "train/loss")]
        assert steps == list(range(3, 3 * len(steps) + 1, 3))  # each once
        assert steps[-1] >= one.step  # a trial that is stopped may be at a later one by then
        curve = client.get_metric_history(found.info.run_id, "validation/elbo")
        assert {point.step: point.value for point in curve}[one.step] == one.scores["elbo"]
        drawn = [artifact.path for artifact in client.list_artifacts(found.info.run_id, "figures")]
        assert {f"figures/{name}.png" for name in PICTURES} <= set(drawn)
    assert [artifact.path for artifact in client.list_artifacts(parent, "figures")] == [
        "figures/depth_and_capacity.png",
        "figures/parallel_coordinates.png",
    ]
    best = max((one for one in trials if one.status == "finished"), key=lambda one: one.scores["elbo"])
    assert client.get_metric_history(parent, "best/elbo")[-1].value == best.scores["elbo"]
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == runs[str(best.number)].info.run_id == result["run_id"]
    assert result["stages"] == {"shard": "skipped", "tune": "resumed", "train": "skipped", "evaluate": "done"}


def the_table_names_the_runs(folder: Path, result: dict[str, Any]) -> None:
    """Each command of the table names the run of its trial."""
    (table,) = folder.glob("ws/searches/*/trials.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [one["number"] for one in result["search"]["trials"]]
    repeated = shlex.split(rows[0]["command"])[4:]
    again = result_of(run(["stage=train", "output=json", *repeated], folder))
    assert (again["run_id"], again["stages"]) == (result["run_id"], {"train": "skipped"})


def saved(folder: Path, trial: Trial) -> list[Path]:
    return sorted((folder / "ws" / "runs" / trial.run / "checkpoints").rglob("*.safetensors"))


def test_a_broken_trial_is_recorded_and_more_trials_go_on_with_a_search(tmp_path: Path) -> None:
    space = "tune.param_space.model.likelihood_scale=0.1/0.2/1e-30"  # whose square is zero
    objectives = "tune.objectives=elbo,mig_sup"
    words = search(space, objectives, "train.max_nonfinite_steps=2", "model.likelihood=gaussian")
    words += ["tune.algorithm=grid", "tune.scheduler=none", "stage=shard,tune"]
    two = result_of(run([*(word for word in words if not word.startswith("tune.trials")), "tune.trials=2"], tmp_path))
    assert {one["number"] for one in two["search"]["trials"]} == {0, 1}
    before = {one.number: one for one in trials_of(tmp_path)}
    done = run(words, tmp_path)
    result = result_of(done)
    assert result["search"]["run_id"] == two["search"]["run_id"]
    trials = {one.number: one for one in trials_of(tmp_path)}
    assert {0: trials[0], 1: trials[1]} == before
    assert [trials[number].status for number in (0, 1, 2)] == ["finished", "finished", "failed"]
    assert "not finite" in trials[2].reason
    assert set(trials[0].scores) == {"elbo", "mig_sup"}
    assert len(trials) == 3  # of four that were allowed: the grid has no more
    front = pareto_front(best_first(list(trials.values()), ["elbo", "mig_sup"]), ["elbo", "mig_sup"])
    assert f"Pareto front of elbo, mig_sup: trials {', '.join(str(one.number) for one in front)}" in (done.stderr)
    client = tracked(tmp_path)
    broken = children(client, result["search"]["run_id"])["2"]
    assert broken.info.status == "FAILED"
    assert "not finite" in broken.data.tags["tune.reason"]


def test_ctrl_c_leaves_checkpoints_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = search(LADDERS, stage="shard,tune", tune__algorithm="grid", train__steps=900, tune__trials=2)
    process = subprocess.Popen(
        command(words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    wait_for(lambda: any(one.step for one in trials_of(tmp_path)), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped; the same command goes on where this one was"
    assert "Traceback" not in errors
    left = trials_of(tmp_path)
    assert not any(one.ended for one in left)
    assert any(list((tmp_path / "ws" / "runs" / one.run / "checkpoints").glob("step-*")) for one in left)
    brief = [*words, "tune.scheduler=asha"]
    assert result_of(run(brief, tmp_path))["stages"]["tune"] == "resumed"
    assert all(one.ended for one in trials_of(tmp_path))


def test_trials_of_several_workers_and_a_best_that_is_trained_longer(tmp_path: Path) -> None:
    words = search(LADDERS, stage="shard,tune,train", tune__algorithm="grid", tune__steps=18, train__num_workers=2)
    result = result_of(run(words, tmp_path))
    trials = trials_of(tmp_path)
    assert [one.number for one in trials] == [0, 1, 2, 3]
    assert {one.status for one in trials} <= {"finished", "stopped"}
    assert all(one.step == 18 for one in trials if one.status == "finished")
    client = tracked(tmp_path)
    best = client.get_run(result["run_id"])
    assert best.data.tags["mlflow.parentRunId"] == result["search"]["run_id"]
    assert best.data.params["train.steps"] == "27"
    assert best.data.params["model.latent_dims"] == result["search"]["trials"][0]["values"]["model.latent_dims"]
    assert len(children(client, result["search"]["run_id"])) >= 4


def test_what_cannot_be_searched_is_said_in_one_line(tmp_path: Path) -> None:
    for words, culprit in (
        (["data.validation_fraction=0"], "set data.validation_fraction"),
        (["tune.max_concurrent=2", "train.cpus_per_worker=2"], "tune.max_concurrent=2: there is room for 1 trials"),
        (["train.num_workers=4", "train.cpus_per_worker=1"], "4 workers with 1 CPU each need 4"),
    ):
        done = run(search(LADDERS, *words, stage="shard,tune"), tmp_path)
        assert done.returncode == 1
        assert culprit in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    missing = run(search(LADDERS, stage="tune", data__scene_seed=9), tmp_path)
    assert "tune needs the output of shard" in missing.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ws"]
