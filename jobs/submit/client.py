"""Jobs of a running cluster through Ray's Jobs API: listed, submitted, followed, stopped."""

import asyncio
import difflib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from jobs.errors import UnavailableError, UserError, first_line
from jobs.submit import environment

# `exec`, because Ray's SIGTERM must reach Python and not a shell.
ENTRYPOINT = "exec python -m jobs.submit.environment pipeline.run"
_TIMEOUT = (10.0, 30.0)  # seconds to connect and to read
_SILENCE_SECONDS = 15.0  # without log output, after which the cluster is asked whether it runs
_OUTAGE_SECONDS = 120.0  # how long a cluster may be unreachable while a job is followed
_STOP_SECONDS = 60  # from SIGTERM to SIGKILL, because Ray's default of 3 is too short for a last checkpoint
_STOP_MARGIN_SECONDS = 30.0


class _TimeoutClient(JobSubmissionClient):
    """Client whose requests time out, because Ray's wait forever for a head node that lost its power."""

    def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_TIMEOUT, **arguments)


class JobClient:
    """Client of the cluster whose dashboard is at `http(s)://HOST:PORT`.

    Raises:
        UnavailableError: The dashboard does not answer.
        UserError: The cluster requires a token, is not a Ray dashboard, or runs another version of Ray.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._shown = 0  # characters of the followed log
        self._last_contact = time.monotonic()
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # because they log every step of a submission
        with self._errors():
            self._client = _TimeoutClient(address)
        cluster_version = str(self._client._server_ray_version)
        if ray.__version__.split(".")[:2] != cluster_version.split(".")[:2]:
            raise UserError(
                f"address={address}: the cluster runs Ray {cluster_version}, this project Ray {ray.__version__}. "
                "Use the same version on both."
            )

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        """Translate the errors of Ray's client in a `with` block; `name` is the job that a 404 is about."""
        prefix = f"address={self._address}"
        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"{prefix}: the cluster requires its token. Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, and "
                "RAY_AUTH_MODE=token if it has another value."
            ) from error
        except (requests.exceptions.JSONDecodeError, KeyError) as error:
            raise UserError(f"{prefix}: not a Ray dashboard. Its address is usually http://HEAD:8265.") from error
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(
                f"{prefix}: the dashboard does not answer ({type(error).__name__}). Check that the cluster runs and "
                "that this machine reaches it."
            ) from error
        except RuntimeError as error:
            if name and "status code 404" in str(error):
                names = [str(job.submission_id) for job in self.list_jobs()]
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
                hint = f"Did you mean {near[0]}?" if near else "`list` shows all jobs."
                raise UserError(f"{name}: job not found at {self._address}. {hint}") from error
            reason = str(error).strip().rpartition("\n")[2]  # the last line, because a traceback may come before
            raise UserError(f"{prefix}: the cluster refused the request ({reason}). See its dashboard.") from error

    def list_jobs(self) -> list[JobDetails]:
        """Return the submitted jobs, the oldest first."""
        with self._errors():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def info(self, name: str) -> JobDetails:
        """Return Ray's record of a job; raise UserError if there is no such job."""
        with self._errors(name):
            return self._client.get_job_info(name)

    def submit(self, name: str, entrypoint: str, package: Path, *, with_secrets: bool) -> None:
        """Upload a package as the working directory and run a shell command in it on the head node.

        Args:
            name: Name of the job.
            entrypoint: Command for a shell.
            package: Folder that becomes the working directory.
            with_secrets: Whether the package holds environment variables for the workers.

        Raises:
            UserError: The name is taken, or the cluster failed.
        """
        runtime_env: dict[str, Any] = {
            "working_dir": str(package),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
        }
        if with_secrets:
            runtime_env["worker_process_setup_hook"] = environment.HOOK
        with self._errors():
            self._client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env)

    def follow(self, name: str, show: Callable[[str], None]) -> JobDetails:
        """Return Ray's record of a job after its end, and until then show its log, through losses of the connection.

        A second call continues where an interrupted one stopped. `show` is called with each new piece of the log.

        Raises:
            UnavailableError: The cluster did not answer for two minutes.
            UserError: There is no such job.
        """
        self.info(name)
        self._last_contact = time.monotonic()
        while True:
            try:
                asyncio.run(self._stream(name, show))
                job = self.info(name)
                if job.status.is_terminal():
                    return job
            except UnavailableError:
                if time.monotonic() - self._last_contact > _OUTAGE_SECONDS:
                    raise
            time.sleep(1)

    async def _stream(self, name: str, show: Callable[[str], None]) -> None:
        """Show what is new in the log, which each stream sends from its beginning, until the stream ends or fails."""

        async def read() -> None:
            position = 0
            try:
                async for text in self._client.tail_job_logs(name):
                    self._last_contact = time.monotonic()
                    new = text[max(0, self._shown - position) :]
                    position += len(text)
                    self._shown = max(self._shown, position)
                    if new:
                        show(new)
            except RuntimeError as error:  # what Ray raises when the connection breaks
                raise ConnectionError(first_line(error)) from error

        reader = asyncio.ensure_future(read())
        try:
            with self._errors(name):
                while not (await asyncio.wait({reader}, timeout=_SILENCE_SECONDS))[0]:
                    # Because a connection that is cut silently looks like a job that prints nothing.
                    await asyncio.to_thread(self.info, name)
                    self._last_contact = time.monotonic()
                reader.result()
        finally:
            reader.cancel()

    def stop(self, name: str) -> JobDetails:
        """Return Ray's record of a job after asking it to write a last checkpoint and waiting for its end.

        Raises:
            UserError: There is no such job, or it did not end in time.
        """
        with self._errors(name):
            self._client.stop_job(name)
        deadline = time.monotonic() + _STOP_SECONDS + _STOP_MARGIN_SECONDS
        while not (job := self.info(name)).status.is_terminal():
            if time.monotonic() > deadline:
                raise UserError(f"{name}: the job has not stopped yet. `list` shows its status.")
            time.sleep(0.5)
        return job
