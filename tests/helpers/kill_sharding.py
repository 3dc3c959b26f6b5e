"""Shard a dataset in child processes that are killed at random instants.

python kill_sharding.py URL NUM_KILLS SEED
"""

import os
import random
import signal
import sys
import time

from jobs.data.manifest import MANIFEST, finished_tasks
from jobs.data.shard_writer import write_tasks
from jobs.data.sources.digits import DigitsConfig
from jobs.shard import plan_tasks, publish
from jobs.storage import open_storage

CONFIG = DigitsConfig(num_images=600, image_size=16, samples_per_task=50)
SOURCE = CONFIG.open()


def shard(url: str) -> None:
    """Write the remaining tasks and the manifest as one command does, without the seconds that Ray needs."""
    tasks = plan_tasks(SOURCE, CONFIG)
    done = finished_tasks(open_storage(url))
    for task in tasks:
        if task[0] not in done:
            list(write_tasks(SOURCE, url, [task], CONFIG))
    publish(SOURCE, CONFIG, url, tasks)


def main(url: str, num_kills: int, seed: int) -> None:
    rng, kills, published = random.Random(seed), 0, 0
    while kills < num_kills:
        pid = os.fork()
        if pid == 0:
            shard(url)
            os._exit(0)
        time.sleep(rng.random() ** 2 * 0.25)  # often early, sometimes past the end
        os.kill(pid, signal.SIGKILL)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
        if kills < num_kills and open_storage(url).read(MANIFEST) is not None:
            published += 1
            open_storage(url).clear(MANIFEST)
    shard(url)
    print(f"{kills} kills, published {published + 1} times")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
