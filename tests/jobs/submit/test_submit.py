"""Submission without a cluster: arguments, the package, secrets, the log, exit codes."""

import io
import json
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from servers.dashboard import Dashboard, job_details
from servers.processes import free_port

from jobs.cli import UsageError
from jobs.errors import UnavailableError, UserError
from jobs.submit import client, environment
from jobs.submit.__main__ import main, parse_arguments
from jobs.submit.client import ENTRYPOINT, JobClient
from jobs.submit.package import job_package

WORKSPACE = "workspace=/shared/ws"


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ([], "workspace: "),
        (["workspace=ws"], "workspace=ws: "),
        (["workspace=~/ws"], "workspace=~/ws: "),
        ([WORKSPACE, "storage_path=shards"], "storage_path=shards: "),
        ([WORKSPACE, "data.root=pictures"], "data.root=pictures: "),
        ([WORKSPACE, "train"], "'train'"),
        ([WORKSPACE, "seed=1", "seed=2"], "seed: "),
        ([WORKSPACE, "ray.address=auto"], "ray.address: "),
        ([WORKSPACE, "address=10.0.0.1:8265"], "address=10.0.0.1:8265: "),
        ([WORKSPACE, "address=ray://head:10001"], "address=ray://head:10001: "),
        ([WORKSPACE, "name=a/b"], "name=a/b: "),
        ([WORKSPACE, "env=NOT_SET_ANYWHERE"], "env=NOT_SET_ANYWHERE: "),
        ([WORKSPACE, "wait=no"], "wait=no: "),
        (["logs"], "logs: "),
        (["stop", "address=http://head:8265"], "stop: "),
        (["list", "seed=1"], "seed=1: "),
        (["logs", "job", "wait=false"], "wait=false: "),
    ],
)
def test_parse_arguments_names_the_invalid_one(arguments: list[str], culprit: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(culprit)}"):
        parse_arguments(arguments, {})


@pytest.mark.parametrize(
    "arguments",
    [
        [WORKSPACE, "tracking.uri=http://user:hunter2@mlflow"],
        [WORKSPACE, "address=http://user:hunter2@head:8265"],
        [WORKSPACE, "seed=http://user:hunter2@a", "seed=1"],
        [WORKSPACE, "env=MY_SECRET=hunter2"],
        ["list", "tracking.uri=http://user:hunter2@mlflow"],
    ],
)
def test_parse_arguments_masks_refused_credentials(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse_arguments(arguments, {})
    assert "hunter2" not in str(error.value)


def test_parse_arguments_refuses_credentials_of_the_variable() -> None:
    with pytest.raises(UsageError, match=r"^address: ") as error:
        parse_arguments([WORKSPACE], {"RAY_API_SERVER_ADDRESS": "http://user:hunter2@head:8265"})
    assert "hunter2" not in str(error.value)


def test_parse_arguments_separates_options_and_overrides() -> None:
    arguments = ["seed=1", "address=http://head:8265/", "env=A,B", WORKSPACE, "wait=false", "name=job-1"]
    command = parse_arguments(arguments, {"A": "1", "B": "2"})
    assert (command.action, command.address, command.job) == ("submit", "http://head:8265", "job-1")
    assert (command.env, command.wait, command.overrides) == (("A", "B"), False, ("seed=1", WORKSPACE))
    assert parse_arguments(["list"], {}).address == "http://127.0.0.1:8265"
    assert parse_arguments(["list"], {"RAY_API_SERVER_ADDRESS": "https://ray"}).address == "https://ray"
    assert parse_arguments([WORKSPACE], {}).job != parse_arguments([WORKSPACE], {}).job


def test_main_with_an_invalid_argument_loads_no_ray() -> None:
    program = (
        "import sys; from jobs.submit.__main__ import main; sys.exit(main(['seed']) + 10 * ('ray' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: 'seed'")


def test_job_package_runs_by_itself(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("train.steps: 7\nmodel: hvae\n")
    with job_package([f"preset={preset}", WORKSPACE], {"MY_SECRET": "hunter2"}) as (folder, overrides):
        assert overrides == ["preset=submitted-preset.yaml", WORKSPACE]
        assert sorted(path.name for path in folder.iterdir()) == [
            ".job-environment.json",
            "jobs",
            "pipeline",
            "submitted-preset.yaml",
            "vlae",
        ]
        assert (folder / ".job-environment.json").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "show.py").write_text(
            "import os, sys, jobs; print(os.environ['MY_SECRET'], jobs.__file__, *sys.argv[1:])"
        )
        command = [sys.executable, "-m", "jobs.submit.environment", "show", "a b", "c'd"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"hunter2 {folder}/jobs/__init__.py a b c'd"
        command = [sys.executable, "-m", "pipeline.run", overrides[0], f"workspace={tmp_path}/ws", "dry_run=true"]
        assert "train" in subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert not folder.exists()


def test_job_package_with_credentials_in_the_preset_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("# a preset\ntracking.uri: http://user:hunter2@mlflow\n")
    with pytest.raises(UserError, match="preset=") as error, job_package([f"preset={preset}"], {}):
        pass
    assert "hunter2" not in str(error.value)


def test_job_package_without_the_preset_names_its_path() -> None:
    with pytest.raises(UserError, match=r"^/nowhere/a.yaml: "), job_package(["preset=/nowhere/a.yaml"], {}):
        pass


def test_main_submits_the_package_and_masks_secrets(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2")
    root = "data.root=/shared/my pictures; $(rm -rf x) 'y'"
    with Dashboard(log="a log\n") as dashboard:
        assert main([f"address={dashboard.address}", "name=a", "env=MY_SECRET", WORKSPACE, root]) == 0
    [job] = dashboard.submitted
    assert job["submission_id"] == "a"
    assert job["entrypoint"].startswith(f"{ENTRYPOINT} ")
    assert shlex.split(job["entrypoint"].removeprefix(ENTRYPOINT)) == [WORKSPACE, root, "ray.address=auto"]
    assert "hunter2" not in json.dumps(job)
    assert job["runtime_env"]["worker_process_setup_hook"] == "jobs.submit.environment.load"
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # for a last checkpoint
    with zipfile.ZipFile(io.BytesIO(dashboard.packages[0])) as package:
        names = package.namelist()
        assert b"hunter2" in package.read(".job-environment.json")
    assert {
        "jobs/evaluation/explorer.html",
        "pipeline/settings/presets/digits.yaml",
        "jobs/data/sources/glyphs.png",
    } <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.split("/")[0] in ("tests", "docs", ".git")]
    out, err = capfd.readouterr()
    assert out == "a log\n"
    assert err == f"job a submitted to {dashboard.address}\njob a succeeded after 7 s\n"


def test_main_with_wait_false_shows_how_to_follow(capfd: pytest.CaptureFixture[str]) -> None:
    with Dashboard() as dashboard:
        assert main([f"address={dashboard.address}", "name=a", "wait=false", WORKSPACE]) == 0
    assert "worker_process_setup_hook" not in dashboard.submitted[0]["runtime_env"]
    assert f"python -m jobs.submit logs a address={dashboard.address}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("job", "code", "message"),
    [
        (job_details("a", "SUCCEEDED", 0), 0, "succeeded after 7 s"),
        (job_details("a", "FAILED", 2), 2, "failed after 7 s with exit code 2"),
        (job_details("a", "FAILED", -9), 137, "failed after 7 s with exit code 137"),
        (job_details("a", "STOPPED", None), 130, "stopped after 7 s with exit code 130"),
        (
            job_details("a", "FAILED", None, message="node died\nand more"),
            1,
            "error: a: the job failed (node died). See its log and the dashboard.",
        ),
    ],
)
def test_main_returns_the_exit_code_of_the_job(
    job: dict[str, object], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Dashboard(job) as dashboard:
        assert main(["logs", "a", f"address={dashboard.address}"]) == code
    assert capfd.readouterr().err.splitlines()[-1].endswith(message)


def test_follow_through_lost_connections_repeats_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    log = "".join(f"line {index}\n" for index in range(20))
    with Dashboard(job_details("a"), log, drops=(73, 0, 35, 73, 120)) as dashboard:
        assert main(["logs", "a", f"address={dashboard.address}"]) == 0
    assert capfd.readouterr().out == log


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refuse": 401}, "Set RAY_AUTH_TOKEN"),
        ({"refuse": 403}, "Set RAY_AUTH_TOKEN"),
        ({"refuse": 500}, "does not answer"),
        ({"refuse": 200}, "not a Ray dashboard"),
        ({"refuse": 404}, "Version check returned 404"),
        ({"version": "2.9.1"}, "runs Ray 2.9.1"),
    ],
)
def test_main_with_an_unsuitable_cluster_names_the_cause(
    settings: dict[str, object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Dashboard(**settings) as dashboard:  # type: ignore[arg-type]
        assert main([WORKSPACE, f"address={dashboard.address}"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: address={dashboard.address}: ")
    assert message in line


def test_list_without_a_cluster_names_its_address(capfd: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert main(["list", f"address={address}"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: address={address}: the dashboard does not answer")


def test_main_with_an_unknown_job_or_a_taken_name_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with Dashboard(job_details("digits-1")) as dashboard:
        at = f"address={dashboard.address}"
        assert main(["logs", "digit-1", at]) == main(["stop", "digit-1", at]) == 1
        assert main([WORKSPACE, "name=digits-1", at]) == 1
        dashboard.jobs[0]["status"] = "RUNNING"
        assert main([WORKSPACE, "name=digits-1", at]) == 1
    logs, stop, ended, running = capfd.readouterr().err.splitlines()
    assert "Did you mean digits-1?" in logs
    assert "Did you mean digits-1?" in stop
    assert "name=digits-1: taken by a job that has ended" in ended
    assert "name=digits-1: taken by a job with other overrides" in running
    assert dashboard.submitted == []


def test_main_with_the_name_of_its_running_job_follows_it(capfd: pytest.CaptureFixture[str]) -> None:
    entrypoint = f"{ENTRYPOINT} {WORKSPACE} ray.address=auto"
    with Dashboard(job_details("a", "RUNNING", None, entrypoint=entrypoint)) as dashboard:
        assert main([WORKSPACE, "name=a", "wait=false", f"address={dashboard.address}"]) == 0
        assert main(["stop", "a", f"address={dashboard.address}"]) == 0
        assert main(["stop", "a", f"address={dashboard.address}"]) == 0
    assert (dashboard.submitted, dashboard.stopped) == ([], ["a"])
    err = capfd.readouterr().err
    assert "job a runs already on" in err
    assert "job a has ended already: stopped" in err


def test_list_masks_credentials(capfd: pytest.CaptureFixture[str]) -> None:
    entrypoint = f"{ENTRYPOINT} tracking.uri=http://user:hunter2@mlflow seed=3"
    with Dashboard(job_details("a", "RUNNING", None, entrypoint=entrypoint)) as dashboard:
        assert main(["list", f"address={dashboard.address}"]) == 0
    head, row = capfd.readouterr().out.splitlines()
    assert head.split() == ["name", "status", "started", "seconds", "overrides"]
    assert row.startswith("a     running")
    assert row.endswith("tracking.uri=http://***@mlflow seed=3")


def test_packages_of_equal_secrets_differ(tmp_path: Path) -> None:
    """Ray logs a hash of the package, by which the secrets could be guessed otherwise."""
    contents = []
    for name in "ab":
        (tmp_path / name).mkdir()
        environment.write(tmp_path / name, {"PIN": "1234"})
        contents += [path.read_bytes() for path in (tmp_path / name).iterdir()]
    assert len(set(contents)) == 2


def test_logs_of_an_unreachable_cluster_end(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The connection breaks, and no time is left for another one."""
    monkeypatch.setattr(client, "_OUTAGE_SECONDS", -1)
    with Dashboard(job_details("a"), "a log", drops=(0,)) as dashboard:
        assert main(["logs", "a", f"address={dashboard.address}"]) == 1
    assert "the dashboard does not answer" in capfd.readouterr().err


@pytest.mark.timeout(60)
def test_job_client_gives_up_a_silent_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnavailableError, match="does not answer"):
        JobClient(f"http://127.0.0.1:{silent.getsockname()[1]}")
