"""Run the pipeline on a Ray cluster: python -m jobs.submit address=http://HEAD:8265 stage=... key=value ..."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobs.cli import UsageError, mask_credentials, run_cli
from jobs.errors import UnavailableError, UserError
from jobs.submit.arguments import Command, read_words
from jobs.submit.package import packed

if TYPE_CHECKING:
    from jobs.submit.client import Jobs, Log

_INTERRUPTED = 130
_HELP = """\
usage: python -m jobs.submit [address=URL] [name=NAME] [env=NAME,...] [wait=false] key=value ...
       python -m jobs.submit list [address=URL]
       python -m jobs.submit logs NAME [address=URL]
       python -m jobs.submit stop NAME [address=URL]

Submits `python -m pipeline.run key=value ...` to a Ray cluster with this project's code, shows its log and ends with
its exit code. workspace= must be the absolute path of a folder that every node sees.

  address    the cluster's dashboard, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265
  name       of the job; default: one made of the date. That of a running job follows it
  env        environment variables that the job needs, by name: secrets, AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD ...
  wait       false: do not follow the job

  list       all jobs
  logs       a job's log, from its beginning, followed to its end
  stop       a last checkpoint and the end; the same words go on later

Ctrl-C leaves the job running, or stops it if you say so. A cluster with a token: RAY_AUTH_TOKEN, or
RAY_AUTH_TOKEN_PATH. `python -m pipeline.run --help` lists the other keys.

exit code: the job's own (0 well, 1 failed, 2 a wrong word, 130 stopped); 130 too if it was left running by Ctrl-C
"""


def main(words: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    if not words or any(word in ("--help", "-h", "help") for word in words):
        print(_HELP, end="")
        return 0 if words else 2
    try:
        command = read_words(words, os.environ)
    except UsageError as error:
        return _fail(error, 2)
    code = 1
    try:
        if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray, which looks as it is loaded, would not send it
        # Loads Ray: seconds that a wrong word need not pay.
        from jobs.submit.client import Jobs

        jobs = Jobs(command.address)
        code = {"submit": _submit, "list": _list, "logs": _follow, "stop": _stop}[command.action](jobs, command)
    except UserError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _tell("interrupted; `python -m jobs.submit list` shows what runs")
        code = _INTERRUPTED
    return code


def _fail(error: Exception, code: int) -> int:
    _tell(f"error: {' '.join(mask_credentials(str(error)).split())}")
    return code


def _tell(text: str) -> None:
    """To the person, who is not to be mixed up with the job's log."""
    print(text, file=sys.stderr, flush=True)


def _how(command: Command, action: str) -> str:
    return f"python -m jobs.submit {action} {command.job} address={command.address}"


def _submit(jobs: "Jobs", command: Command) -> int:
    from jobs.submit.client import ENTRYPOINT

    values = {name: os.environ[name] for name in command.env}
    with packed([*command.words, "ray.address=auto"], values) as (folder, words):
        entrypoint = f"{ENTRYPOINT} {shlex.join(words)}"
        known = {str(job.submission_id): job for job in jobs.all()}.get(command.job)
        if known is None:
            jobs.submit(command.job, entrypoint, folder, with_secrets=bool(values))
        elif known.status.is_terminal():
            raise UserError(f"name={command.job} is taken by a job that has ended: choose another name")
        elif known.entrypoint != entrypoint:
            raise UserError(f"name={command.job} is taken by a job with other words: choose another name, or stop it")
    _tell(f"job {command.job} {'submitted to' if known is None else 'runs already on'} {command.address}")
    if command.wait:
        return _follow(jobs, command)
    _tell(f"  to follow it: {_how(command, 'logs')}\n  to stop it:   {_how(command, 'stop')}")
    return 0


def _follow(jobs: "Jobs", command: Command) -> int:
    from jobs.submit.client import Log

    log = Log(_show)
    try:
        job = jobs.follow(command.job, log)
    except KeyboardInterrupt:
        return _interrupted(jobs, command, log)
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}. The job may still run; to follow it again: {_how(command, 'logs')}"
        ) from error
    return _end(command, job)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _interrupted(jobs: "Jobs", command: Command, log: "Log") -> int:
    """After Ctrl-C: on a terminal the person says what is to become of the job."""
    stop = False
    if sys.stdin.isatty() and sys.stderr.isatty():
        print("\nstop the job, or leave it running? [s/L] ", end="", file=sys.stderr, flush=True)
        try:
            stop = sys.stdin.readline().strip().lower() in ("s", "stop")
            if stop:
                _tell("stopping; it makes a last checkpoint first ...")
                job = jobs.stop(command.job)
                jobs.follow(command.job, log)
                return _end(command, job)
        except KeyboardInterrupt:
            _tell("")
    _tell(f"job {command.job} {'is being stopped' if stop else 'is left running'}")
    _tell(f"  to follow it: {_how(command, 'logs')}\n  to stop it:   {_how(command, 'stop')}")
    return _INTERRUPTED


def _end(command: Command, job: Any) -> int:
    """Say how a job ended; its exit code."""
    took = ((job.end_time or 0) - (job.start_time or 0)) / 1000
    status = str(job.status.value).lower()
    code = job.driver_exit_code
    if status == "succeeded":
        code = 0
    elif status == "stopped":
        code = _INTERRUPTED
    elif code is None:
        raise UserError(f"job {command.job} died: {(job.message or 'Ray does not say why').strip().splitlines()[0]}")
    elif code < 0:
        code = 128 - code  # a signal, as shells have it
    _tell(f"job {command.job} {status} after {took:.0f} s" + (f" with exit code {code}" if code else ""))
    return int(code)


def _stop(jobs: "Jobs", command: Command) -> int:
    job = jobs.info(command.job)
    if job.status.is_terminal():
        _tell(f"job {command.job} has ended already: {job.status.value.lower()}")
        return 0
    job = jobs.stop(command.job)
    _tell(f"job {command.job} {job.status.value.lower()}")
    return 0


def _list(jobs: "Jobs", command: Command) -> int:  # noqa: ARG001  (actions look alike)
    from jobs.submit.client import ENTRYPOINT

    rows = [("name", "status", "started", "seconds", "words")]
    for job in jobs.all():
        begun = (job.start_time or 0) / 1000
        ended = job.end_time / 1000 if job.end_time else time.time()
        words = mask_credentials(job.entrypoint.removeprefix(ENTRYPOINT).strip())
        when = f"{datetime.fromtimestamp(begun).astimezone():%Y-%m-%d %H:%M:%S}"
        rows.append((str(job.submission_id), job.status.value.lower(), when, f"{ended - begun:.0f}", words))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]))
    return 0


if __name__ == "__main__":
    run_cli(main)
