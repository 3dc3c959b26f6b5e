"""A fake dashboard of a Ray cluster, for answers that a real one gives rarely or late."""

import asyncio
import threading
from types import TracebackType
from typing import Any

import ray
from aiohttp import web
from servers.processes import free_port


class Dashboard:
    """Jobs API with at most one job, which accepts another.

    Args:
        job: Job in the form of the jobs API.
        log: Log of every job.
        version: Version of Ray.
        refuse: HTTP status of every answer; 0 answers normally.
        drops: Numbers of characters after which the first, the second, ... connection of a followed log breaks.

    Attributes:
        jobs: The jobs.
        submitted: Bodies of the submissions.
        packages: Uploaded working directories.
        stopped: Names of the jobs that were stopped.
        address: Address of the dashboard.
    """

    def __init__(
        self,
        job: dict[str, Any] | None = None,
        log: str = "",
        version: str = ray.__version__,
        refuse: int = 0,
        drops: tuple[int, ...] = (),
    ) -> None:
        self.jobs = [job] if job else []
        self.submitted: list[dict[str, Any]] = []
        self.packages: list[bytes] = []
        self.stopped: list[str] = []
        self._log, self._version, self._refuse, self._drops = log, version, refuse, list(drops)
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Dashboard":
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(middlewares=[self._refuse_all], client_max_size=100 * 2**20)  # Ray's own limit
        app.add_routes(
            [
                web.get("/api/version", self._get_version),
                web.get("/api/jobs/", self._list),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{job}", self._info),
                web.post("/api/jobs/{job}/stop", self._stop),
                web.get("/api/jobs/{job}/logs/tail", self._tail),
                web.get("/api/packages/gcs/{name}", self._no_package),
                web.put("/api/packages/gcs/{name}", self._package),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self._port).start())
        self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _refuse_all(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._refuse:
            return web.Response(status=self._refuse, text="<html>refused</html>", content_type="text/html")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _get_version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self._version})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs)

    async def _info(self, request: web.Request) -> web.Response:
        for job in self.jobs:
            if job["submission_id"] == request.match_info["job"]:
                return web.json_response(job)
        return web.Response(status=404, text="no such job")

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.submitted.append(body)
        self.jobs.append(job_details(body["submission_id"], entrypoint=body["entrypoint"]))
        return web.json_response({"submission_id": body["submission_id"], "job_id": body["submission_id"]})

    async def _stop(self, request: web.Request) -> web.Response:
        self.stopped.append(request.match_info["job"])
        self.jobs[0]["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        end = self._drops.pop(0) if self._drops else len(self._log)
        for start in range(0, end, 10):
            await socket.send_str(self._log[start : min(start + 10, end)])
        if end < len(self._log):
            assert request.transport is not None
            request.transport.abort()
        elif self.jobs[0]["status"] == "RUNNING":
            await asyncio.sleep(60)
        return socket

    async def _no_package(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _package(self, request: web.Request) -> web.Response:
        self.packages.append(await request.read())
        return web.Response()


def job_details(name: str, status: str = "SUCCEEDED", code: int | None = 0, **more: Any) -> dict[str, Any]:
    """Return a job in the form of the jobs API."""
    times = {"start_time": 1_700_000_000_000, "end_time": 1_700_000_007_000}
    job = {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": status,
        "entrypoint": "true",
        "driver_exit_code": code,
    }
    return {**job, **times, **more}
