"""What processes that are gone have left in a folder of spools, sent on its way by a later one."""

import threading
from pathlib import Path

from jobs.sender import deliver
from jobs.spool import Spool
from jobs.tracking import Tracker
from jobs.tracking_errors import TrackingError


class Leftovers:
    """Sends what belongs to this MLflow, in a thread of its own: nobody waits for a server that is away again.

    Args:
        tracker: where to.
        folder: of spools; it may be missing.
    """

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self._tracker, self._paths = tracker, sorted(folder.glob("*.jsonl"))
        self._news: list[str] = []
        self._thread = threading.Thread(target=self._send, name="leftovers", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> list[str]:
        """Wait for the end, so many seconds at most; what the person should know."""
        self._thread.join(timeout)
        return list(self._news)

    def _send(self) -> None:
        for path in self._paths:
            try:
                spool = Spool.claim(path)
            except OSError as error:
                self._news.append(f"{path} cannot be read: {error.strerror}")
                continue
            if spool is None:  # whose training is under way
                continue
            try:
                if spool.empty or spool.home.get("uri") != self._tracker.config.uri:
                    continue
                if deliver(self._tracker, spool):
                    self._news.append(f"the rest of an earlier curve has arrived in MLflow: run {spool.run_id}")
                else:
                    self._news.append(f"{path} is dropped: its run was deleted in MLflow")
            except TrackingError as error:
                self._news.append(f"earlier curves wait still in {path.parent}: {error.reason}")
                return
            finally:
                spool.close()
