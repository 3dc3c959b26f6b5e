"""Test the walk of a data folder: which files are taken, and that each other file is counted."""

import os
from pathlib import Path

import pytest
from helpers.datasets import unprivileged

from jobs.data.sources.listing import Listing, list_files
from jobs.errors import UserError


def listing(folder: Path, *exclude: Path) -> Listing:
    return list_files(folder, (".png", ".gif"), "images", exclude=exclude, uncounted=("factors.csv",))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_list_files_other_files_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.PNG", "a.gif", "factors.csv", "n.txt", "m.TXT", "README", "b/x.tar.gz")
    touch(tmp_path, "._a.gif", ".DS_Store", "b/Thumbs.db", "__MACOSX/._a.gif", ".thumbnails/1.png")
    os.mkfifo(tmp_path / "pipe.png")
    actual = listing(tmp_path)
    assert actual.files == ("a.gif", "b/1.PNG")
    assert actual.left_out == {"hidden or system files": 5, "other file types: .txt .gz .png": 5}


def test_list_files_links_inside_are_followed_once(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside"
    touch(folder, "a/1.png", ".versions/2/2.png", "blob", "z/3.png")
    touch(outside, "4.png")
    links = {
        "a/again.png": "1.png",
        "again": "a",
        "a/loop": "../..",
        "a/parent": "..",
        "current": ".versions/2",
        "current-too": ".versions",
        "named.png": "blob",
        "far": "../outside",
        "far.png": "../outside/4.png",
        "nowhere.png": "nothing",
        "itself.png": "itself.png",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (tmp_path / "linked").symlink_to(folder)
    for root in (folder, tmp_path / "linked"):
        actual = listing(root)
        assert actual.files == ("a/1.png", "current/2.png", "named.png", "z/3.png")
        assert actual.left_out == {
            "hidden or system files": 1,
            "links to files or folders that are read already": 3,
            "links out of the folder": 3,
            "broken links": 2,
        }


def test_list_files_excluded_folders_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "ws/runs/2.png", "in/ws/3.png")
    (tmp_path / "link").symlink_to("ws/runs")
    actual = listing(tmp_path, tmp_path / "ws")
    assert actual.files == ("1.png", "in/ws/3.png")
    assert actual.left_out == {"folders that commands write: ws": 1, "links out of the folder": 1}
    # A folder of data in the workspace, or the same folder, is read.
    assert listing(tmp_path / "in", tmp_path, tmp_path / "in").files == ("ws/3.png",)


def test_list_files_names_of_any_bytes(tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"a\x1b[31m.png", "\u00e9\u202e.png".encode(), b"new\nline.png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert sorted(map(os.fsencode, listing(tmp_path).files)) == sorted(names)


def test_list_files_none_error_counts_what_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.heic", "b.heic", "._c.png")
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}: .*system files \(1\).*\.heic \(2\)"):
        listing(tmp_path)


def test_list_files_without_permission_raises() -> None:
    """All files and folders that cannot be read are in one message, because fewer images would be a wrong input."""
    with unprivileged() as folder:
        touch(folder, "1.png", "2.png", "closed/3.png", "no-entry/4.png")
        for name, mode in (("2.png", 0), ("closed", 0), ("no-entry", 0o444)):
            (folder / name).chmod(mode)
        with pytest.raises(UserError, match=rf"{folder}: .*2\.png, closed/, no-entry/"):
            listing(folder)
        for name in ("2.png", "closed", "no-entry"):
            (folder / name).chmod(0o755)
        assert len(listing(folder).files) == 4


def test_list_files_link_into_a_closed_folder_is_left_out() -> None:
    """The target is outside, so it does not matter that it may not be read."""
    with unprivileged() as folder:
        touch(folder, "data/1.png", "private/in/2.png")
        (folder / "data/far.png").symlink_to(folder / "private/in/2.png")
        (folder / "private").chmod(0)
        assert listing(folder / "data").left_out == {"links out of the folder": 1}
        (folder / "private").chmod(0o755)


def test_list_files_other_workspaces_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "mlflow.db", "old/mlflow.db", "old/runs/2.png", "c/d/CACHEDIR.TAG", "c/d/3.png", "c/4.png")
    (tmp_path / "link").symlink_to("old/runs")
    actual = listing(tmp_path)
    assert actual.files == ("1.png", "c/4.png")
    reasons = {"folders that commands write: c/d old": 2, "links out of the folder": 1, "other file types: .db": 1}
    assert actual.left_out == reasons
