"""Test that a fingerprint follows the content of files, and that unchanged files are not read again."""

import os
import time
from pathlib import Path

import pytest

from jobs.data.formats.fingerprint import content_fingerprint
from jobs.errors import UserError

DAY = 86_400


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A day later, because hashes of files that were just written are not kept.
    now = time.time_ns()
    monkeypatch.setattr("jobs.data.formats.fingerprint.time.time_ns", lambda: now + DAY * 10**9)
    return tmp_path / "cache/vlae-pipeline/sha256.json"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "0.tar"
    path.write_bytes(bytes(10**6))
    return path


def correct(path: Path) -> None:
    """Change one byte in place, which neither the first nor the last bytes nor the size show."""
    with path.open("r+b") as file:
        file.seek(300_001)
        file.write(b"1")


def test_fingerprint_follows_one_byte_corrected_in_place(table: Path, tar: Path) -> None:
    before = content_fingerprint([tar])
    correct(tar)
    os.utime(tar, (DAY, DAY))
    after = content_fingerprint([tar])
    assert before != after
    os.utime(tar, (2 * DAY, 2 * DAY))
    assert content_fingerprint([tar]) == after  # the times are not part of it


def test_fingerprint_is_equal_for_equal_files(table: Path, tar: Path, tmp_path: Path) -> None:
    before = content_fingerprint([tar])
    copy = tmp_path / "elsewhere" / tar.name
    copy.parent.mkdir()
    copy.write_bytes(tar.read_bytes())
    assert content_fingerprint([copy]) == before
    assert content_fingerprint([copy.rename(copy.with_name("1.tar"))]) != before


def test_fingerprint_of_unchanged_files_is_remembered(table: Path, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_fingerprint([tar])
    monkeypatch.setattr("jobs.data.formats.fingerprint.file_sha256", lambda path: pytest.fail("file is read"))
    assert content_fingerprint([tar]) == before


def test_fingerprint_of_a_file_just_written_is_not_remembered(
    table: Path, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the step of the file system's clock would leave the times as they are."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(table.parents[1]))
    content_fingerprint([tar])
    assert not table.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"PATH": 1}', '{"PATH": []}', '{"PATH": ["a", 1, 1, 1, 1]}'])
def test_fingerprint_ignores_a_damaged_table(table: Path, tar: Path, content: str) -> None:
    before = content_fingerprint([tar])
    table.write_text(content.replace("PATH", str(tar)))
    assert content_fingerprint([tar]) == before


def test_fingerprint_without_a_writable_table_is_the_same(
    table: Path, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content_fingerprint([tar])
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert content_fingerprint([tar]) == before


def test_fingerprint_without_a_home_folder_is_the_same(table: Path, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_fingerprint([tar])
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    # As for a user id that is not in /etc/passwd, where Path.expanduser raises.
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert content_fingerprint([tar]) == before


def test_fingerprint_of_a_missing_file_raises(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tar: "):
        content_fingerprint([tmp_path / "none.tar"])
