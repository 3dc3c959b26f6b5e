"""Test an MLflow server that never ends an answer or asks for an hour's pause: the call ends with one line."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers.http import Request, reply, serve

from jobs import http_limits
from jobs.config import TrackingConfig
from jobs.tracking import client as client_module
from jobs.tracking.client import Tracker, TrackingError, TrackingUnavailableError

pytestmark = pytest.mark.timeout(60)  # because without the limits the calls take hours


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "_WINDOW_SECONDS", 0.3)
    monkeypatch.setattr(http_limits, "_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(http_limits, "_MAX_BYTES", 20 * 2**20)
    monkeypatch.setattr(client_module, "_MAX_RESPONSE_BYTES", 10 * 2**20)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


def later(request: Request) -> None:
    reply(request, 429, b"{}", Retry_After="3600")


def huge(request: Request) -> None:
    reply(request, content=b"{", Content_Length=str(10**15))


def endless(request: Request) -> None:
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    while True:
        request.wfile.write(b" " * 2**20)


def trickle(request: Request) -> None:
    reply(request, Content_Length="5000")
    while True:
        request.wfile.write(b" ")
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [(later, "429"), (huge, "more than"), (endless, "more than"), (trickle, r"bytes in 0 s")],
)
def test_tracker_endless_answer_raises(
    tmp_path: Path, respond: Callable[[Request], None], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(respond) as url:
        tracker = Tracker(TrackingConfig(uri=url), tmp_path)
        with pytest.raises(TrackingUnavailableError, match=rf"MLflow at {url}.*{expected}") as caught:
            tracker.get_run("0" * 32)
        assert caught.value.retry
        if respond is trickle:
            assert f"waiting for MLflow at {url}" in capsys.readouterr().err


@pytest.mark.parametrize("respond", [huge, endless, trickle])
def test_tracker_endless_artifact_raises(tmp_path: Path, respond: Callable[[Request], None]) -> None:
    """Artifacts are downloaded in threads of MLflow."""

    def artifacts(request: Request) -> None:
        if "/api/2.0/mlflow-artifacts/artifacts?" in request.path:
            reply(request, content=b'{"files": [{"path": "a.bin", "is_dir": false, "file_size": 5}]}')
        elif "/api/2.0/mlflow-artifacts/artifacts/" in request.path:
            respond(request)
        else:
            run = f'{{"run_id": "r", "artifact_uri": "mlflow-artifacts:/{0}/r/artifacts"}}'
            reply(request, content=f'{{"run": {{"info": {run}, "data": {{}}}}}}'.encode())

    with serve(artifacts) as url:
        tracker = Tracker(TrackingConfig(uri=url), tmp_path)
        with pytest.raises(TrackingError, match=f"MLflow at {url}"), tracker.errors():
            tracker.client.download_artifacts("r", "folder", str(tmp_path))
