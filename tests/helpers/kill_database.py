"""Kill or stop child processes at several instants of the creation of MLflow's database, and check what they leave.

python kill_database.py WORKSPACE NUM_KILLS SECONDS [OVERRIDE ...]

Kills are spread over the first SECONDS. A child runs the command with the overrides, or prepares the database alone.
"""

import os
import signal
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (because imports take longer than what is killed)
from servers.processes import descendants

from jobs.tracking.database import prepare_database
from pipeline.run import main as run_command

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


def work(workspace: Path, overrides: list[str]) -> None:
    """Run the command, or prepare the database alone, in the process that is killed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        if overrides:
            run_command(overrides)
        else:
            prepare_database(workspace, print)
    os._exit(0)


def main(workspace: Path, num_kills: int, seconds: float, overrides: list[str]) -> None:
    """Kill the children one after the other, each a little later."""
    if overrides:
        import pipeline.stages.evaluate  # noqa: F401
    for kill in range(num_kills):
        pid = os.fork()
        if pid == 0:
            work(workspace, overrides)
        time.sleep(kill * seconds / num_kills)
        signum = SIGNALS[kill % len(SIGNALS)]
        for member in descendants(pid) if signum == signal.SIGKILL else [pid]:
            with suppress(ProcessLookupError):
                os.kill(member, signum)
        os.waitpid(pid, 0)
        path = workspace / "mlflow.db"
        left = sorted(entry.name for entry in workspace.iterdir())
        print(kill, signum.name, left, flush=True)
        if "mlflow.db" in left:
            with closing(sqlite3.connect(path)) as connection:
                assert ("Default",) in connection.execute("SELECT name FROM experiments").fetchall()
            if "runs" not in left:
                path.unlink()  # because the next child is to create it


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
