"""Submission without a cluster: words, refusals, the package, secrets, the log, how jobs end."""

import io
import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from servers.dashboard import Dashboard, described
from servers.processes import free_port

from jobs.cli import UsageError
from jobs.errors import UserError
from jobs.submit.__main__ import main
from jobs.submit.arguments import read_words
from jobs.submit.client import ENTRYPOINT, Log
from jobs.submit.package import packed

WORKSPACE = "workspace=/shared/ws"


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ([], "workspace= is missing"),
        (["workspace=ws"], "workspace=ws is relative"),
        (["workspace=~/ws"], "workspace=~/ws is relative"),
        ([WORKSPACE, "storage_path=shards"], "storage_path=shards is relative"),
        ([WORKSPACE, "data.root=pictures"], "data.root=pictures is relative"),
        ([WORKSPACE, "train"], "'train' is not key=value"),
        ([WORKSPACE, "seed=1", "seed=2"], "seed: given twice"),
        ([WORKSPACE, "ray.address=auto"], "address="),
        ([WORKSPACE, "address=10.0.0.1:8265"], "such as http://HEAD:8265"),
        ([WORKSPACE, "address=ray://head:10001"], "such as http://HEAD:8265"),
        ([WORKSPACE, "name=a/b"], "name=a/b must be"),
        ([WORKSPACE, "env=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set here"),
        ([WORKSPACE, "wait=no"], "wait=no must be true or false"),
        (["logs"], "logs needs the name of a job"),
        (["stop", "address=http://head:8265"], "stop needs the name of a job"),
        (["list", "seed=1"], "list has no use for seed=1"),
        (["logs", "job", "wait=false"], "logs has no use for wait=false"),
    ],
)
def test_wrong_words(words: list[str], culprit: str) -> None:
    with pytest.raises(UsageError) as error:
        read_words(words, {})
    assert culprit in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        [WORKSPACE, "tracking.uri=http://user:hunter2@mlflow"],
        [WORKSPACE, "address=http://user:hunter2@head:8265"],
        [WORKSPACE, "seed=http://user:hunter2@a", "seed=1"],
        [WORKSPACE, "env=MY_SECRET=hunter2"],
        ["list", "tracking.uri=http://user:hunter2@mlflow"],
    ],
)
def test_credentials_are_refused_and_not_repeated(words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        read_words(words, {})
    assert "hunter2" not in str(error.value)


def test_what_words_mean() -> None:
    words = ["seed=1", "address=http://head:8265/", "env=A,B", WORKSPACE, "wait=false", "name=mine"]
    command = read_words(words, {"A": "1", "B": "2"})
    assert (command.action, command.address, command.job) == ("submit", "http://head:8265", "mine")
    assert (command.env, command.wait, command.words) == (("A", "B"), False, ("seed=1", WORKSPACE))
    assert read_words(["list"], {}).address == "http://127.0.0.1:8265"
    assert read_words(["list"], {"RAY_API_SERVER_ADDRESS": "https://ray"}).address == "https://ray"
    assert read_words([WORKSPACE], {}).job != read_words([WORKSPACE], {}).job


def test_a_wrong_word_is_one_line_and_loads_nothing() -> None:
    program = (
        "import sys; from jobs.submit.__main__ import main; sys.exit(main(['seed']) + 10 * ('ray' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: 'seed' is not key=value. See --help.\n"


def test_the_package_runs_alone(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("train.steps: 7\nmodel: hvae\n")
    with packed([f"preset={preset}", WORKSPACE], {"MY_SECRET": "hunter2"}) as (folder, words):
        assert words == ["preset=submitted-preset.yaml", WORKSPACE]
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
        shown = [sys.executable, "-m", "jobs.submit.environment", "show", "a b", "c'd"]
        done = subprocess.run(shown, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"hunter2 {folder}/jobs/__init__.py a b c'd"
        planned = [sys.executable, "-m", "pipeline.run", words[0], f"workspace={tmp_path}/ws", "dry_run=true"]
        assert "train" in subprocess.run(planned, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert not folder.exists()


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"/nowhere/mine.yaml: No such file"), packed(["preset=/nowhere/mine.yaml"], {}):
        pass


def test_what_the_cluster_gets(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2")
    own = "data.root=/shared/my pictures; $(rm -rf x) 'y'"
    with Dashboard(log="a log\n") as dashboard:
        assert main([f"address={dashboard.address}", "name=mine", "env=MY_SECRET", WORKSPACE, own]) == 0
    [job] = dashboard.submitted
    assert job["submission_id"] == "mine"
    assert job["entrypoint"].startswith(f"{ENTRYPOINT} ")
    assert shlex.split(job["entrypoint"].removeprefix(ENTRYPOINT)) == [WORKSPACE, own, "ray.address=auto"]
    assert "hunter2" not in json.dumps(job)
    assert job["runtime_env"]["worker_process_setup_hook"] == "jobs.submit.environment.load"
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
    assert err == f"job mine submitted to {dashboard.address}\njob mine succeeded after 7 s\n"


def test_without_waiting(capfd: pytest.CaptureFixture[str]) -> None:
    with Dashboard() as dashboard:
        assert main([f"address={dashboard.address}", "name=mine", "wait=false", WORKSPACE]) == 0
    assert "worker_process_setup_hook" not in dashboard.submitted[0]["runtime_env"]
    assert f"python -m jobs.submit logs mine address={dashboard.address}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("job", "code", "said"),
    [
        (described("a", "SUCCEEDED", 0), 0, "succeeded after 7 s"),
        (described("a", "FAILED", 2), 2, "failed after 7 s with exit code 2"),
        (described("a", "FAILED", -9), 137, "failed after 7 s with exit code 137"),
        (described("a", "STOPPED", None), 130, "stopped after 7 s with exit code 130"),
        (described("a", "FAILED", None, message="node died\nand more"), 1, "error: job a died: node died"),
    ],
)
def test_the_exit_code_is_the_jobs(
    job: dict[str, object], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Dashboard(job) as dashboard:
        assert main(["logs", "a", f"address={dashboard.address}"]) == code
    assert capfd.readouterr().err.splitlines()[-1].endswith(said)


def test_a_log_whose_connection_breaks_is_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    log = "".join(f"line {number}\n" for number in range(20))
    with Dashboard(described("a"), log, drops=(73, 35, 120)) as dashboard:
        assert main(["logs", "a", f"address={dashboard.address}"]) == 0
    assert capfd.readouterr().out == log


def test_pieces_of_a_log_in_any_cut() -> None:
    shown: list[str] = []
    log = Log(shown.append)
    for stream in (["ab", "c"], ["a"], ["abcd", "", "e"], ["abcde"]):
        log.begin()
        for piece in stream:
            log.take(piece)
    assert "".join(shown) == "abcde"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"refuse": 401}, "set RAY_AUTH_TOKEN"),
        ({"refuse": 403}, "set RAY_AUTH_TOKEN"),
        ({"refuse": 500}, "does not answer as the dashboard"),
        ({"refuse": 200}, "is no Ray dashboard"),
        ({"refuse": 404}, "the cluster refused: Version check returned 404"),
        ({"version": "2.9.1"}, "runs Ray 2.9.1, and this project"),
    ],
)
def test_a_cluster_that_does_not_fit(settings: dict[str, object], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with Dashboard(**settings) as dashboard:  # type: ignore[arg-type]
        assert main([WORKSPACE, f"address={dashboard.address}"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert said in line


def test_a_cluster_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", f"address=http://127.0.0.1:{free_port()}"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "does not answer" in line


def test_unknown_jobs_and_taken_names(capfd: pytest.CaptureFixture[str]) -> None:
    with Dashboard(described("digits-1")) as dashboard:
        at = f"address={dashboard.address}"
        assert main(["logs", "digit-1", at]) == main(["stop", "digit-1", at]) == 1
        assert main([WORKSPACE, "name=digits-1", at]) == 1
        dashboard.jobs[0]["status"] = "RUNNING"
        assert main([WORKSPACE, "name=digits-1", at]) == 1
    logs, stop, ended, running = capfd.readouterr().err.splitlines()
    assert "did you mean digits-1?" in logs
    assert "did you mean digits-1?" in stop
    assert "name=digits-1 is taken by a job that has ended" in ended
    assert "a job with other words" in running
    assert dashboard.submitted == []


def test_the_same_words_again_follow_the_running_job(capfd: pytest.CaptureFixture[str]) -> None:
    entrypoint = f"{ENTRYPOINT} {WORKSPACE} ray.address=auto"
    with Dashboard(described("a", "RUNNING", None, entrypoint=entrypoint)) as dashboard:
        assert main([WORKSPACE, "name=a", "wait=false", f"address={dashboard.address}"]) == 0
        assert main(["stop", "a", f"address={dashboard.address}"]) == 0
        assert main(["stop", "a", f"address={dashboard.address}"]) == 0
    assert (dashboard.submitted, dashboard.stopped) == ([], ["a"])
    err = capfd.readouterr().err
    assert "job a runs already on" in err
    assert "job a has ended already: stopped" in err


def test_a_list_without_credentials(capfd: pytest.CaptureFixture[str]) -> None:
    entrypoint = f"{ENTRYPOINT} tracking.uri=http://user:hunter2@mlflow seed=3"
    with Dashboard(described("a", "RUNNING", None, entrypoint=entrypoint)) as dashboard:
        assert main(["list", f"address={dashboard.address}"]) == 0
    head, row = capfd.readouterr().out.splitlines()
    assert head.split() == ["name", "status", "started", "seconds", "words"]
    assert row.startswith("a     running")
    assert row.endswith("tracking.uri=http://***@mlflow seed=3")
