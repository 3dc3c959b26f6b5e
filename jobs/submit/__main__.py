"""Run the pipeline on a Ray cluster: python -m jobs.submit address=http://HEAD:8265 stage=... key=value ..."""

import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobs.cli import HELP_FLAGS, UsageError, fail, mask_credentials, parse_overrides, refuse_credentials, run_cli
from jobs.errors import UnavailableError, UserError
from jobs.submit.package import job_package

if TYPE_CHECKING:
    from jobs.submit.client import JobClient

_HELP = """\
usage: python -m jobs.submit [address=URL] [name=NAME] [env=NAME,...] [wait=false] key=value ...
       python -m jobs.submit list [address=URL]
       python -m jobs.submit logs NAME [address=URL]
       python -m jobs.submit stop NAME [address=URL]

Submits `python -m pipeline.run key=value ...` to a Ray cluster with this project's code, shows its log and ends with
its exit code. workspace= must be the absolute path of a folder that every node can access.

  address    dashboard of the cluster, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265
  name       name of the job; default: made of the date. The name of a running job with the same overrides follows it
  env        names of environment variables that the job needs: AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD, ...
  wait       false: do not follow the job

  list       list all jobs
  logs       show a job's log from its beginning and follow it to its end
  stop       write a last checkpoint and end the job; submitting the same overrides resumes it

Ctrl-C leaves the job running, or stops it on request. For a cluster with a token set RAY_AUTH_TOKEN or
RAY_AUTH_TOKEN_PATH. `python -m pipeline.run --help` lists the other keys.

exit code: the job's own (0 success, 1 failure, 2 invalid argument, 130 stopped); 130 also after Ctrl-C
"""
_ACTIONS = ("list", "logs", "stop")
_OPTIONS = ("address", "name", "env", "wait")
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_INTERRUPTED = 130  # exit code
_HTTP = re.compile(r"https?://[^/\s]+/*")
_JOB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")  # because Ray uses the name in file names
_PATHS = ("workspace", "storage_path", "data.root", "data.cache_dir")


@dataclass(frozen=True)
class Command:
    """Parsed command line; `job` is empty for `list`, and `env` names the environment variables that the job needs."""

    action: str
    address: str
    job: str = ""
    env: tuple[str, ...] = ()
    wait: bool = True
    overrides: tuple[str, ...] = ()


def parse_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> Command:
    """Parse the command line; raise UsageError for what cannot work, before anything is sent."""
    action = arguments[0] if arguments and arguments[0] in _ACTIONS else "submit"
    rest = list(arguments[action != "submit" :])
    job = ""
    if action in ("logs", "stop"):
        if not rest or "=" in rest[0]:
            raise UsageError(f"{action}: the name of a job is missing. `list` shows the names.")
        job = rest.pop(0)
    overrides = parse_overrides(rest)
    options = {key: overrides.pop(key) for key in _OPTIONS if key in overrides}
    address = options.get("address") or environment.get("RAY_API_SERVER_ADDRESS") or _DEFAULT_ADDRESS
    refuse_credentials("address", address)
    if not _HTTP.fullmatch(address):
        raise UsageError(f"address={address}: not the address of a dashboard. Use http(s)://HOST:PORT.")
    address = address.rstrip("/")
    if action != "submit":
        for key, value in {**options, **overrides}.items():
            if key != "address":
                raise UsageError(f"{key}={value}: invalid with {action}. It takes address= only.")
        return Command(action, address, job)
    _check_overrides(overrides)
    wait = options.get("wait", "true")
    if wait not in ("true", "false"):
        raise UsageError(f"wait={wait}: invalid. Use true or false.")
    name = options.get("name", f"vlae-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
    if not _JOB_NAME.fullmatch(name):
        raise UsageError(f"name={name}: invalid. Use at most 100 letters, digits, '.', '_' and '-'.")
    env = tuple(variable for variable in options.get("env", "").split(",") if variable)
    for variable in env:
        if not variable.isidentifier():  # only what comes before "=" is shown, because the rest may be a secret
            raise UsageError(f"env={variable.partition('=')[0]}...: invalid. Give names only, env=NAME,NAME.")
        if variable not in environment:
            raise UsageError(f"env={variable}: not set in this environment. Export {variable} first.")
    return Command(action, address, name, env, wait == "true", tuple(f"{k}={v}" for k, v in overrides.items()))


def _check_overrides(overrides: Mapping[str, str]) -> None:
    for key, value in overrides.items():
        if key in _PATHS and value not in ("", "none") and not value.startswith(("/", "s3://")):
            raise UsageError(
                f"{key}={value}: relative to a folder that the cluster removes. Use an absolute path that every node "
                "can access."
            )
    if "ray.address" in overrides:
        raise UsageError("ray.address: invalid for a submitted job. Name the cluster's dashboard with address=.")
    if not overrides.get("workspace"):
        raise UsageError("workspace: missing. Set the absolute path of a folder that every node can access.")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    if not arguments or HELP_FLAGS & set(arguments):
        print(_HELP, end="")
        return 0 if arguments else 2
    try:
        command = parse_arguments(arguments, os.environ)
    except UsageError as error:
        return _fail(error, 2)
    try:
        if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # because Ray reads it as it is imported
        from jobs.submit.client import JobClient  # deferred, because it imports Ray, which takes seconds

        run = {"submit": _submit, "list": _list, "logs": _follow, "stop": _stop}[command.action]
        return run(JobClient(command.address), command)
    except UserError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        _print("interrupted; `python -m jobs.submit list` shows the running jobs")
        return _INTERRUPTED


def _fail(error: Exception, code: int) -> int:
    return fail(f"error: {mask_credentials(str(error))}", code)


def _print(text: str) -> None:
    """Print to standard error, because standard output is the job's log."""
    print(text, file=sys.stderr, flush=True)


def _hints(command: Command) -> str:
    """Return the commands that follow and stop the job."""
    arguments = f"{command.job} address={command.address}"
    return f"  follow: python -m jobs.submit logs {arguments}\n  stop:   python -m jobs.submit stop {arguments}"


def _submit(client: "JobClient", command: Command) -> int:
    from jobs.submit.client import ENTRYPOINT

    values = {name: os.environ[name] for name in command.env}
    with job_package([*command.overrides, "ray.address=auto"], values) as (folder, overrides):
        entrypoint = f"{ENTRYPOINT} {shlex.join(overrides)}"
        job = {str(job.submission_id): job for job in client.list_jobs()}.get(command.job)
        if job is None:
            client.submit(command.job, entrypoint, folder, with_secrets=bool(values))
        elif job.status.is_terminal():
            raise UserError(f"name={command.job}: taken by a job that has ended. Choose another name.")
        elif job.entrypoint != entrypoint:
            raise UserError(
                f"name={command.job}: taken by a job with other overrides. Choose another name, or stop that job."
            )
    _print(f"job {command.job} {'submitted to' if job is None else 'runs already on'} {command.address}")
    if command.wait:
        return _follow(client, command)
    _print(_hints(command))
    return 0


def _follow(client: "JobClient", command: Command) -> int:
    try:
        return _report_end(command, client.follow(command.job, _show))
    except KeyboardInterrupt:
        return _interrupted(client, command)
    except UnavailableError as error:
        again = f"python -m jobs.submit logs {command.job} address={command.address}"
        raise UnavailableError(f"{error} The job may still run; follow it with: {again}") from error


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _interrupted(client: "JobClient", command: Command) -> int:
    """Leave the job running after Ctrl-C, or stop it if the user says so on a terminal, and return the exit code."""
    stop = False
    if sys.stdin.isatty() and sys.stderr.isatty():
        try:
            print("\nstop the job, or leave it running? [s/L] ", end="", file=sys.stderr, flush=True)
            stop = sys.stdin.readline().strip().lower() in ("s", "stop")
            if stop:
                _print("stopping after a last checkpoint ...")
                job = client.stop(command.job)
                client.follow(command.job, _show)
                return _report_end(command, job)
        except KeyboardInterrupt:
            _print("")
    _print(f"job {command.job} {'is being stopped' if stop else 'is left running'}\n{_hints(command)}")
    return _INTERRUPTED


def _report_end(command: Command, job: Any) -> int:
    """Print how a job ended and return its exit code as a shell reports it; raise UserError if its process was lost."""
    seconds = ((job.end_time or 0) - (job.start_time or 0)) / 1000
    status, code = str(job.status.value).lower(), job.driver_exit_code
    if status == "succeeded":
        code = 0
    elif status == "stopped":
        code = _INTERRUPTED
    elif code is None:
        reason = (job.message or "Ray gives no reason").strip().splitlines()[0]
        raise UserError(f"{command.job}: the job failed ({reason}). See its log and the dashboard.")
    elif code < 0:
        code = 128 - code  # a signal, as shells report it
    _print(f"job {command.job} {status} after {seconds:.0f} s" + (f" with exit code {code}" if code else ""))
    return int(code)


def _stop(client: "JobClient", command: Command) -> int:
    job = client.info(command.job)
    if job.status.is_terminal():
        _print(f"job {command.job} has ended already: {job.status.value.lower()}")
    else:
        _print(f"job {command.job} {client.stop(command.job).status.value.lower()}")
    return 0


def _list(client: "JobClient", command: Command) -> int:  # noqa: ARG001  (all actions have one signature)
    from jobs.submit.client import ENTRYPOINT

    rows = [("name", "status", "started", "seconds", "overrides")]
    for job in client.list_jobs():
        start = (job.start_time or 0) / 1000
        end = job.end_time / 1000 if job.end_time else time.time()
        overrides = mask_credentials(job.entrypoint.removeprefix(ENTRYPOINT).strip())
        started = f"{datetime.fromtimestamp(start).astimezone():%Y-%m-%d %H:%M:%S}"
        rows.append((str(job.submission_id), job.status.value.lower(), started, f"{end - start:.0f}", overrides))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]))
    return 0


if __name__ == "__main__":
    run_cli(main)
