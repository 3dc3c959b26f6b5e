"""Walk of a folder of the user's own files: the files to read, and the number of files left out by reason."""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.data.cache import MARKER
from jobs.errors import MissingSourceError, UserError, format_names, printable

_SYSTEM_NAMES = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found", "@eadir"}
_MARKERS = ("mlflow.db", MARKER)  # of folders that commands write, such as another workspace


@dataclass(frozen=True)
class Listing:
    """Result of a walk.

    Attributes:
        files: Sorted paths below the folder, with bytes that are not UTF-8 as surrogates (`os.fsdecode`).
        left_out: Number of files, links and folders that are not read, by reason.
    """

    files: tuple[str, ...]
    left_out: dict[str, int]


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return the numbers of files left out as text, empty if there are none.

    Example:
        >>> describe_left_out({"broken links": 2, "other file types: .md .txt": 1200})
        'left out: broken links (2), other file types: .md .txt (1,200)'
    """
    counts = ", ".join(f"{reason} ({count:,})" for reason, count in sorted(left_out.items()))
    return f"left out: {counts}" if counts else ""


def list_files(
    folder: Path,
    extensions: tuple[str, ...],
    kind: str,
    *,
    exclude: Collection[Path] = (),
    uncounted: Collection[str] = (),
) -> Listing:
    """Return the files with these endings at any depth, each once, even if several links lead to a file.

    A link is followed if its target is below the folder. Hidden files, and those of the system, are left out.

    Args:
        folder: Folder to walk.
        extensions: Endings in lower case; those of files are compared in any case.
        kind: Plural noun for the files, for messages.
        exclude: Folders that the command itself writes, which are not entered; nor are those of other commands.
        uncounted: Paths of files that are read for another purpose, so they do not count as left out.

    Raises:
        MissingSourceError: There is no such folder, or none of its files has these endings.
        UserError: Some of them may not be read.
    """
    if not folder.is_dir():
        raise MissingSourceError(f"data.root={folder}: not a folder. Set it to a folder with {kind}.")
    walk = _Walk(folder, extensions, exclude, uncounted)
    if walk.unreadable:
        raise UserError(
            f"data.root={folder}: permission denied for {format_names(sorted(walk.unreadable))}. "
            "Permit this user to read them, or move them elsewhere."
        )
    if not walk.files:
        note = describe_left_out(walk.left_out)
        raise MissingSourceError(
            f"data.root={folder}: no {kind} ({', '.join(extensions)}){f'; {note}' if note else ''}. "
            "Add some or set another folder."
        )
    return Listing(tuple(sorted(walk.files.values())), walk.left_out)


class _Walk:
    """Walk of a folder. Links are followed last, so that a file in the folder is listed by its own path."""

    def __init__(
        self, folder: Path, extensions: tuple[str, ...], exclude: Collection[Path], uncounted: Collection[str]
    ) -> None:
        self._root = os.path.realpath(folder)
        self._extensions, self._uncounted = extensions, uncounted
        below = (os.path.realpath(path) for path in exclude)
        self._exclude = {path for path in below if self._root in map(str, Path(path).parents)}
        self.files: dict[str, str] = {}  # real path -> path below the folder
        self.unreadable: list[str] = []
        self._counts: Counter[str] = Counter()
        self._other_types: dict[str, str] = {}  # real path -> ending
        self._excluded: list[str] = []
        self._entered: set[str] = set()
        self._links: list[str] = []
        self._enter("", self._root)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                try:
                    self._follow(link)
                except PermissionError:
                    self.unreadable.append(link)

    @property
    def left_out(self) -> dict[str, int]:
        """Counts by reason, with the folders or the most frequent endings of other file types in the reason."""
        counts = dict(self._counts)
        if self._other_types:
            endings = Counter(self._other_types.values())
            frequent = sorted(endings, key=lambda ending: (-endings[ending], ending))[:3]
            counts[f"other file types: {' '.join(map(printable, frequent))}"] = len(self._other_types)
        if self._excluded:
            reason = f"folders that commands write: {' '.join(map(printable, sorted(self._excluded)))}"
            counts[reason] = len(self._excluded)
        return counts

    def _enter(self, prefix: str, real: str) -> None:
        """Add the files of a folder and its sub-folders; `prefix` is its path below the root, ending with a slash."""
        pending = [(prefix, real)]
        while pending:
            prefix, real = pending.pop()
            if real in self._entered:
                continue
            self._entered.add(real)
            if prefix and any(os.path.lexists(f"{real}/{name}") for name in _MARKERS):
                self._exclude.add(real)  # for links into it, which are followed later
                self._excluded.append(prefix[:-1])
                continue
            try:
                with os.scandir(real) as entries:
                    for entry in entries:
                        path = prefix + entry.name
                        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
                            self._counts["hidden or system files"] += 1
                        elif entry.is_symlink():
                            self._links.append(path)
                        elif not entry.is_dir():
                            self._add(path, Path(entry.path))
                        elif entry.path in self._exclude:
                            self._excluded.append(path)
                        else:
                            pending.append((f"{path}/", entry.path))
            except PermissionError:
                self.unreadable.append(prefix or ".")

    def _follow(self, link: str) -> None:
        target = Path(os.path.realpath(f"{self._root}/{link}"))
        parents = {str(path) for path in (target, *target.parents)}
        # The first check, because a folder elsewhere may be closed to this user.
        if self._root not in parents or parents & self._exclude:
            self._counts["links out of the folder"] += 1
        elif not target.exists():
            self._counts["broken links"] += 1
        elif str(target) in self._entered or str(target) in self.files:
            self._counts["links to files or folders that are read already"] += 1
        elif target.is_dir():
            self._enter(f"{link}/", str(target))
        else:
            self._add(link, target)

    def _add(self, path: str, real: Path) -> None:
        if path in self._uncounted or str(real) in self.files:
            return
        if not path.lower().endswith(self._extensions) or not real.is_file():
            self._other_types[str(real)] = Path(path).suffix.lower() or "without ending"
        elif os.access(real, os.R_OK, effective_ids=True):
            self.files[str(real)] = path
            self._other_types.pop(str(real), None)  # a link with an ending led to a file without one
        else:
            self.unreadable.append(path)
