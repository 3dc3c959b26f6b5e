"""The jobs of a running cluster, through Ray's Jobs API: submitted, followed, stopped."""

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

from jobs.errors import UnavailableError, UserError
from jobs.submit import environment

ENTRYPOINT = "exec python -m jobs.submit.environment pipeline.run"  # exec: Ray's SIGTERM is for Python, not for a shell
_TIMEOUT = (10.0, 30.0)  # seconds to connect and to read
_SILENCE = 15.0  # seconds without a line after which the cluster is asked whether it is there
_AWAY_SECONDS = 120.0  # that a cluster may be away while a job is followed
_STOP_SECONDS = 60  # from SIGTERM to SIGKILL; Ray's own three are too few for a last checkpoint
_LATE_SECONDS = 30.0  # that a stop may take beyond them
_TALKATIVE = ("dashboard_sdk", "job.sdk")


class _Client(JobSubmissionClient):
    """With a limit to every request: a head that has lost its power does not answer at all."""

    def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_TIMEOUT, **arguments)

    @property
    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._server_ray_version)


class Log:
    """A job's log as it comes. A stream of it that begins anew repeats nothing.

    Args:
        show: called with each new piece of text.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.heard = time.monotonic()  # when the cluster was there last
        self._shown = self._place = 0  # characters

    def begin(self) -> None:
        """The next piece is the log's first."""
        self._place = 0

    def take(self, text: str) -> None:
        """The next piece."""
        self.heard = time.monotonic()
        new = text[max(0, self._shown - self._place) :]
        self._place += len(text)
        self._shown = max(self._shown, self._place)
        if new:
            self._show(new)


class Jobs:
    """The jobs of the cluster whose dashboard is at an address.

    Raises:
        AwayError: it does not answer.
        UserError: it lets nobody in without a token, is no Ray dashboard, or of another version of Ray.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        for name in _TALKATIVE:
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)
        with self._told():
            self._client = _Client(address)
        here, there = ray.__version__, self._client.ray_version
        if here.split(".")[:2] != there.split(".")[:2]:
            raise UserError(f"address={address} runs Ray {there}, and this project {here}: use the same on both")

    @contextmanager
    def _told(self, job: str = "") -> Iterator[None]:
        """Errors of the server as one line."""
        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"address={self._address} lets nobody in without its token: set RAY_AUTH_TOKEN, "
                "or RAY_AUTH_TOKEN_PATH, to that of the cluster, and RAY_AUTH_MODE=token if it is set otherwise"
            ) from error
        except (requests.exceptions.JSONDecodeError, KeyError) as error:
            raise UserError(f"address={self._address} is no Ray dashboard: it is http://HEAD:8265 mostly") from error
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(
                f"address={self._address} does not answer as the dashboard of a Ray cluster ({type(error).__name__}): "
                "see that the cluster runs and that this machine reaches it"
            ) from error
        except RuntimeError as error:
            if job and "status code 404" in str(error):
                raise UserError(self._unknown(job)) from error
            reason = str(error).strip().split("\n")[-1]
            raise UserError(f"address={self._address}: the cluster refused: {reason}") from error

    def _unknown(self, job: str) -> str:
        near = difflib.get_close_matches(job, [str(known.submission_id) for known in self.all()], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"no job {job} at {self._address}; {hint}`list` shows all"

    def all(self) -> list[JobDetails]:
        """Those that were submitted, the oldest first."""
        with self._told():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def info(self, job: str) -> JobDetails:
        """What is known of a job.

        Raises:
            UserError: there is none of that name.
        """
        with self._told(job):
            return self._client.get_job_info(job)

    def submit(self, job: str, entrypoint: str, package: Path, *, with_secrets: bool) -> None:
        """Send a package and have a command run in it, on the head.

        Raises:
            UserError: there is a job of that name, or the cluster refused it.
        """
        settings: dict[str, Any] = {
            "working_dir": str(package),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
        }
        if with_secrets:
            settings["worker_process_setup_hook"] = environment.HOOK
        with self._told():
            self._client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=settings)

    def follow(self, job: str, log: Log) -> JobDetails:
        """Follow a job's log to its end, through losses of the connection.

        Raises:
            UserError: there is no such job, or the cluster was away too long.
        """
        self.info(job)
        log.heard = time.monotonic()
        while True:
            try:
                asyncio.run(self._stream(job, log))
                found = self.info(job)
                if found.status.is_terminal():
                    return found
            except UnavailableError:
                if time.monotonic() - log.heard > _AWAY_SECONDS:
                    raise
            time.sleep(1)

    async def _stream(self, job: str, log: Log) -> None:
        """Show the log until its stream ends or fails."""

        async def read() -> None:
            log.begin()
            try:
                async for text in self._client.tail_job_logs(job):
                    log.take(text)
            except RuntimeError as error:  # its word for a connection that broke
                raise ConnectionError(str(error)) from error

        reader = asyncio.ensure_future(read())
        try:
            with self._told(job):
                while not (await asyncio.wait({reader}, timeout=_SILENCE))[0]:
                    # A connection that is cut off without a word looks like a job without one.
                    await asyncio.to_thread(self.info, job)
                    log.heard = time.monotonic()
                reader.result()
        finally:
            reader.cancel()

    def stop(self, job: str) -> JobDetails:
        """Ask a job to make a last checkpoint and end, and wait for it.

        Raises:
            UserError: there is no such job, or it goes on.
        """
        with self._told(job):
            self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_SECONDS + _LATE_SECONDS
        while not (found := self.info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                raise UserError(f"job {job} has not stopped yet: `list` shows when it has")
            time.sleep(0.5)
        return found
