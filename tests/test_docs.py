"""docs/files.md has a line for every file, and what the pages link to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vlae", "jobs", "pipeline", "tests", "docs", "benchmarks", "infra")
OURS_NOT = {"__pycache__", ".env"}
LIST = (ROOT / "docs" / "files.md").read_text()


def test_every_file_has_its_line() -> None:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files = [path.relative_to(ROOT).as_posix() for path in found if path.is_file() and not OURS_NOT & set(path.parts)]
    listed = {line.split()[0] for line in LIST.splitlines() if line.startswith("    ") and line.split()}
    assert sorted(set(files) - listed) == []
    gone = [name for name in listed if name.partition("/")[0] in FOLDERS and name not in files]
    assert gone == []


def test_pictures_and_links_are_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).is_file(), f"{page.name} links to {target}"
