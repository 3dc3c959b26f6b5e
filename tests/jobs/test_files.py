"""Test local files: atomic replacement, locks and clean-up, beside the files and links of others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.files import (
    create_partial,
    file_lock,
    open_nofollow,
    parse_json_object,
    remove_folder,
    replace_file,
    write_json,
)


def partial(name: str, digit: str = "0") -> str:
    return f"{name}.{digit * 32}.partial"


def test_write_json_failed_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_write_json_killed_leftover_is_removed_later(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from jobs.files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as file:\n    file.write(b'half'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "run.json"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    write_json(path, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_replace_file_foreign_and_open_files_stay(tmp_path: Path) -> None:
    """Files of others, links, folders, and a partial file of another writer at work are not removed."""
    victim = tmp_path / "victim"
    victim.write_text("victim")
    stay = {"victim", "run.json.1234.partial", "my.partial", partial("other.json"), partial("xrun.json")}
    for name in stay:
        (tmp_path / name).write_text("victim")
    (tmp_path / partial("run.json", "1")).symlink_to(victim)
    (tmp_path / partial("run.json", "2")).mkdir()
    stay |= {partial("run.json", "1"), partial("run.json", "2"), "run.json"}
    (tmp_path / partial("run.json", "3")).touch()
    with create_partial(tmp_path / "run.json") as file:
        write_json(tmp_path / "run.json", 1)
        assert {entry.name for entry in tmp_path.iterdir()} == {*stay, Path(file.name).name}
    assert victim.read_text() == "victim"


def test_replace_file_link_at_name_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("victim")
    (tmp_path / "run.json").symlink_to(victim)
    with replace_file(tmp_path / "run.json") as file:
        file.write(b"new")
    assert (victim.read_text(), (tmp_path / "run.json").read_text()) == ("victim", "new")
    assert not (tmp_path / "run.json").is_symlink()


@pytest.mark.parametrize("exists", [False, True])
def test_file_lock_link_is_refused(tmp_path: Path, exists: bool) -> None:
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("victim")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock"), file_lock(tmp_path / "lock"):
        pass
    assert victim.exists() == exists
    with pytest.raises(OSError, match="lock"):
        open_nofollow(tmp_path / "lock", "rb")


def test_file_lock_held_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        file_lock(path, shared=True),
        file_lock(path, shared=True, wait=False),
        pytest.raises(BlockingIOError),
        file_lock(path, wait=False),
    ):
        pass
    with file_lock(path, wait=False):
        pass


def test_remove_folder_foreign_names_stay(tmp_path: Path) -> None:
    """The leftover of a killed call goes; folders of others with similar names stay."""
    own, foreign = f".removed-run[1]-{'0' * 32}", [".removed-run[1]-mine", f".removed-run1-{'0' * 32}"]
    for name in (own, *foreign, "run[1]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_folder(tmp_path / "run[1]")
    assert {path.name for path in tmp_path.iterdir()} == set(foreign)
    remove_folder(tmp_path / "missing" / "run")


def test_write_json_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, a name of a file that was not synchronized may be that of an empty file."""
    path, synced = tmp_path / "a.json", []

    def fsync(descriptor: int) -> None:
        synced.append((json.loads(Path(f"/proc/self/fd/{descriptor}").read_text()), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(path, {"new": 1})
    assert synced == [({"new": 1}, False)]
    assert json.loads(path.read_text()) == {"new": 1}


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_parse_json_object_of_other_content_is_empty(content: bytes) -> None:
    assert parse_json_object(content) == {}
