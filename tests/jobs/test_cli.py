"""The command line: overrides, deferred signals, numbers as text."""

import signal
import threading

import pytest

from jobs.cli import UsageError, defer_signals, format_duration, format_number, parse_overrides


def test_parse_overrides_splits_at_the_first_equals_sign() -> None:
    assert list(parse_overrides(["b=1=2", "a="]).items()) == [("b", "1=2"), ("a", "")]


@pytest.mark.parametrize("arguments", [["--steps"], ["=3"], ["a=1", "a=1"]])
def test_parse_overrides_invalid_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=arguments[0].strip("=") or "=3"):
        parse_overrides(arguments)


def test_usage_error_masks_credentials() -> None:
    """A password may contain a slash."""
    assert "cret" not in str(UsageError("x=http://me:se/cret@host"))


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
    ("seconds", "text"), [(4.21, "4.2 s"), (185, "3:05 min"), (7800, "2:10:00 h"), (59.96, "60.0 s")]
)
def test_format_duration_chooses_the_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
