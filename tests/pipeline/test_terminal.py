"""The terminal: a progress bar; in a pipe and in the log a line when it is due."""

import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.errors import UserError
from pipeline import terminal
from pipeline.plan import Step
from pipeline.settings.parse import read_config
from pipeline.terminal import Progress, Reporter, summary_lines, training_line

METRICS = {
    "train/images_per_second": 843.21,
    "train/loss": 14321.06,
    "train/kl_rung_0": 15.64,
    "train/kl_rung_1": 3.04,
    "train/kl": 18.7,
}


def test_training_line_has_speed_loss_and_kl() -> None:
    line = training_line(300, 1500, METRICS)
    assert line == "train    300/1500  843 images/s  loss 14321.1 nats  KL 15.6 3.0"


def test_progress_estimates_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the work since the start: 100 of 400 steps in 50 s after a resumption at step 600."""
    monkeypatch.setattr(time, "monotonic", lambda: 1050.0)
    assert Progress("train", 700, 1000, first=600, start=1000.0).describe() == "train  50.0 s, 2:30 min left"
    assert Progress("train", 600, 1000, first=600, start=1000.0).describe() == "train  50.0 s"
    assert Progress("reading", start=980.0).describe() == "reading  1:10 min"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the progress be due at once."""
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)


def test_reporter_in_a_pipe_prints_the_progress_when_due(fast: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(json_output=False) as report:
        report.step(Step("train", "resume", "an earlier command was interrupted"))
        report.progress("half way", 1, 2)
        out = ""
        while "half way" not in out:
            time.sleep(0.05)
            out += capsys.readouterr().out
        report.done("train", "all well")
    out += capsys.readouterr().out
    assert out.startswith("train    resuming")
    assert out.splitlines()[-1].startswith("train    done in")


def test_reporter_in_a_pipe_prints_no_progress_before(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(json_output=False) as report:
        report.progress("half way")
        report.done("train", "all well")
    assert capsys.readouterr() == ("train    done in 0.0 s: all well\n", "")


def test_progress_continues_after_a_line(fast: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(json_output=False) as report:
        report.progress("half way", 1, 2)
        report.line("a note")
        out = ""
        while "half way" not in out.partition("a note")[2]:
            time.sleep(0.05)
            out += capsys.readouterr().out


def test_log_on_a_full_disk_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with Reporter(json_output=False) as report:
        report.log_to(tmp_path / "log.txt")
        report.line("one")
    assert capsys.readouterr().out == "one\n"


def test_interrupt_while_the_bar_is_drawn_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm keeps its lock if an interrupt ends its drawing, and then the next line would wait for ever."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    display = terminal.tqdm.display

    def interrupted(bar: object, *arguments: object, **options: object) -> object:
        monkeypatch.setattr(terminal.tqdm, "display", display)
        signal.raise_signal(signal.SIGINT)
        return display(bar, *arguments, **options)

    with Reporter(json_output=False) as report:
        report.progress("first", 1, 2)
        monkeypatch.setattr(terminal.tqdm, "display", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report.progress("second", 2, 2)
        thread = threading.Thread(target=report.line, args=("a line",))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


def test_log_has_the_printed_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the lines from before the folder existed, and the error that ended the command."""
    log = tmp_path / "run" / "log.txt"

    def command() -> None:
        with Reporter(json_output=False) as report:
            report.line("one")
            report.log_to(log)
            report.line("two")
            log.parent.mkdir()
            report.line("three")
            raise UserError("x: broken. Fix it.")

    with pytest.raises(UserError):
        command()
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    assert log.read_text() == "one\ntwo\nthree\nstopped by UserError: x: broken. Fix it.\n"


def test_reporter_with_json_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(json_output=True).line("text")
    assert capsys.readouterr() == ("", "text\n")


def test_reporter_on_a_terminal_shows_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Reporter(json_output=False) as report:
        report.progress("train    300/1500", 300, 1500)
        report.line("done")
    out, err = capsys.readouterr()
    assert out == "done\n"
    shown = [text for text in err.split("\r") if "300/1500" in text]
    assert re.fullmatch(r" 20% \|.{20}\| train    300/1500  0\.\d s *", shown[-1])


def test_summary_has_metrics_model_and_mlflow(tmp_path: Path) -> None:
    config = read_config([f"workspace={tmp_path}"])
    result = {"metrics": {"elbo": -14590.6, "other": 1.0}, "model_uri": "models:/digits/3", "run_id": "abc"}
    assert [line.split() for line in summary_lines(config, result)] == [
        ["elbo", "-14,591"],
        ["model", "models:/digits/3"],
        ["MLflow", "vlae", "ui", f"workspace={tmp_path}", "run", "abc"],
    ]
    assert summary_lines(config, {"metrics": None, "model_uri": None, "run_id": None}) == []


def test_reporter_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(json_output=False).line("a\x1b[31m.png caf\udce9.png \u00e9.png")
    assert capsys.readouterr().out == "a\\x1b[31m.png caf\\xe9.png \u00e9.png\n"
