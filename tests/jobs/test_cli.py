"""The command line: overrides, deferred signals, numbers as text."""

import os
import re
import signal
import threading

import pytest

from jobs.cli import (
    UsageError,
    defer_signals,
    format_duration,
    format_number,
    ignore_environment,
    mask_credentials,
    parse_overrides,
)


def test_parse_overrides_splits_at_the_first_equals_sign() -> None:
    assert list(parse_overrides(["b=1=2", "a="]).items()) == [("b", "1=2"), ("a", "")]


@pytest.mark.parametrize("arguments", [["--steps"], ["=3"], ["a=1", "a=1"]])
def test_parse_overrides_invalid_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=arguments[0].strip("=") or "=3"):
        parse_overrides(arguments)


@pytest.mark.parametrize(
    "argument",
    [
        "tracking.uri=http://me:hun/ter2@host",
        "tracking.uri=http://me:22/hunter2@host",
        "tracking.uri=http://me:hun@ter2@host",
        "tracking.uri=http://me:hun ter2@host",
        "tracking.uri=http:/me:hunter2@host",
        "tracking.uri=me:hunter2@host",
        "tracking.uri=http://hunter2@host",
        "ray.address=me:hunter2@host:6379",
        "storage_path=s3://KEY:hunter2@bucket",
        "tune.param_space.tracking.uri=http://a,me:hunter2@host",
        "misspelled=me:hunter2@host",
        "http://me:hunter2@host",
        "http://me:hunter2=@host",
        "me:hunter2@host",
    ],
)
def test_parse_overrides_with_credentials_names_the_key(argument: str) -> None:
    """Also where the key is given twice. No part of a password is shown."""
    key = argument.partition("=")[0] if "=" in argument and "//" not in argument.partition("=")[0] else "argument"
    for arguments in ([argument], [f"{key}=1", argument]):
        with pytest.raises(UsageError, match=f"^{re.escape(key)}: credentials") as caught:
            parse_overrides(arguments)
        assert not re.findall("hun|ter2", str(caught.value))
    if " " not in argument:
        assert not re.findall("hun|ter2", str(UsageError(argument)))


@pytest.mark.parametrize(
    "argument",
    [
        "storage_path=s3://bucket/a@b",
        "model_uri=models:/digits@champion",
        "tracking.experiment=me@example.org",
        "tracking.uri=https://host:5000/mlflow",
        "ray.address=10.0.0.1:6379",
        "data.root=/data/a:b@c",
    ],
)
def test_parse_overrides_accepts_addresses(argument: str) -> None:
    key, _, value = argument.partition("=")
    assert parse_overrides([argument]) == {key: value}
    assert mask_credentials(argument) == argument


def test_ignore_environment_removes_destinations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("MLFLOW_REGISTRY_URI", "x"), ("RAY_TRAIN_V2_ENABLED", "0"), ("RAY_ADDRESS", "h:1")):
        monkeypatch.setenv(name, value)
    ignore_environment()
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    assert (os.environ["RAY_TRAIN_V2_ENABLED"], os.environ["RAY_ADDRESS"]) == ("1", "h:1")
    assert "MLFLOW_REGISTRY_URI" in capsys.readouterr().err


def test_defer_signals_raises_after_the_block() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), defer_signals():  # noqa: PT012  (the signal is raised after the block)
        signal.raise_signal(signal.SIGINT)
        steps.append("end of block")
    assert steps == ["end of block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_defer_signals_in_another_thread_does_nothing() -> None:
    handlers = []

    def work() -> None:
        with defer_signals():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize(
    ("value", "text"), [(-14428.4, "-14,428"), (0.029137, "0.02914"), (999.96, "1000"), (float("inf"), "inf")]
)
def test_format_number_keeps_four_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (185, "3:05 min"), (7800, "2:10:00 h"), (59.96, "60.0 s"), (119.6, "2:00 min")],
)
def test_format_duration_chooses_the_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
