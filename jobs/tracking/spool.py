"""What MLflow is still to get of one run: a queue on disk, which outlives the process that fills it.

A file `RUN_ID.jsonl`: a first line that says where the run is, then a line for each point of the curve or warning,
oldest first. Each metric's steps rise in it, whatever is appended. Whoever has the file open holds its lock (flock),
which ends with the process, however that ends.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from jobs.events import MetricPoint, TrainingWarning

Entry = MetricPoint | TrainingWarning


def missing(points: Iterable[MetricPoint], steps: Mapping[str, int]) -> list[MetricPoint]:
    """What of a curve lies beyond the last step of each metric, where `steps` has one."""
    found = []
    for point in points:
        metrics = {key: value for key, value in point.metrics.items() if point.step > steps.get(key, -1)}
        if metrics:
            found.append(MetricPoint(point.step, point.time_ms, metrics))
    return found


class Spool:
    """The queue of one run, open. Any thread may call any method.

    Attributes:
        path: the file.
        run_id: MLflow's.
        home: what the first line says.
    """

    @classmethod
    def claim(cls, path: Path, home: Mapping[str, str] | None = None) -> Self | None:
        """Open a spool, unless a process that lives has it.

        Args:
            path: FOLDER/RUN_ID.jsonl.
            home: makes one if there is none: where the run is, without secrets.

        Returns:
            None if another has it, or if there is none and `home` is not given.

        Raises:
            OSError: it cannot be read or made.
        """
        if home is not None:
            path.parent.mkdir(exist_ok=True)
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if home is not None else 0), 0o644)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_open(path, descriptor):  # else the owner before has just removed it
                    return cls(path, descriptor, home)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def __init__(self, path: Path, descriptor: int, home: Mapping[str, str] | None) -> None:
        self.path, self.run_id = path, path.stem
        self._file, self._lock = descriptor, threading.Lock()
        self._last: dict[str, int] = {}  # the last step of each metric
        self.home, self._first = self._read_home(home)
        self._sent = self._end = self._first
        for entry, end in self._entries(self._first):
            self._note(entry)
            self._end = end
        os.ftruncate(descriptor, self._end)  # a line that a kill has cut

    def append(self, entries: Iterable[Entry]) -> None:
        """Keep entries: they are on the disk when this returns. What of a metric does not lie beyond it is left out.

        Raises:
            OSError: there is no room; nothing of them is kept.
        """
        with self._lock:
            known, lines = dict(self._last), []
            for entry in entries:
                for new in missing([entry], self._last) if isinstance(entry, MetricPoint) else [entry]:
                    self._note(new)
                    lines.append(json.dumps(vars(new)).encode() + b"\n")
            try:
                if lines:
                    self._write(b"".join(lines))
            except BaseException:
                self._last = known
                raise

    def pending(self, most: int) -> tuple[list[Entry], int]:
        """The oldest entries that were not acknowledged, at most so many, and where they end."""
        with self._lock:
            found, end = [], self._sent
            for entry, end in self._entries(self._sent):  # noqa: B007
                found.append(entry)
                if len(found) == most:
                    break
            return found, end

    def acknowledge(self, end: int) -> None:
        """Forget what `pending` gave with this end; the file is as short as it was once all is acknowledged."""
        with self._lock:
            self._sent = end
            if self.empty:
                os.ftruncate(self._file, self._first)
                self._sent = self._end = self._first

    def clear(self) -> None:
        """Forget all that is there now."""
        self.acknowledge(self._end)

    @property
    def empty(self) -> bool:
        """Whether all is acknowledged."""
        return self._sent == self._end

    def close(self) -> None:
        """Let others have it; if all is acknowledged, there is no file any more."""
        if self.empty:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _read_home(self, home: Mapping[str, str] | None) -> tuple[dict[str, str], int]:
        """The first line and its length; it is written anew where a kill has cut it, and then nothing comes after."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            line = file.readline()
        try:
            return {str(key): str(value) for key, value in _decode(line).items()}, len(line)
        except ValueError:
            os.ftruncate(self._file, 0)
        self._end = 0
        if home is not None:
            self._write(json.dumps(dict(home)).encode() + b"\n")
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        return dict(home or {}), self._end

    def _entries(self, start: int) -> Iterator[tuple[Entry, int]]:
        """Each entry from `start` on with its end, up to the first line that is not whole."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(start)
            for line in file:
                try:
                    values = _decode(line)
                    entry: Entry = MetricPoint(**values) if "metrics" in values else TrainingWarning(**values)
                except (ValueError, TypeError):
                    return
                start += len(line)
                yield entry, start

    def _note(self, entry: Entry) -> None:
        if isinstance(entry, MetricPoint):
            self._last |= dict.fromkeys(entry.metrics, entry.step)

    def _write(self, data: bytes) -> None:
        """Append bytes, all of them or none."""
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, self._end)
            raise
        self._end += written


def _decode(line: bytes) -> dict[str, Any]:
    """The object of a whole line.

    Raises:
        ValueError: it is none.
    """
    if not line.endswith(b"\n"):
        raise ValueError("cut")
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("no object")
    return values


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether the name still means this file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
