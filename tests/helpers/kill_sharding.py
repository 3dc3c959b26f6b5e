"""Shard a dataset in child processes that are killed at random instants, as often as asked for.

python kill_sharding.py URL NUM_KILLS SEED
"""

import os
import random
import signal
import sys
import time

from jobs.data.manifest import MANIFEST, finished_tasks
from jobs.data.shard_writer import write_parts
from jobs.data.sources.config import DigitsConfig
from jobs.data.sources.digits import DigitScenes
from jobs.shard import plan_parts, publish
from jobs.storage import open_store

CONFIG = DigitsConfig(num_images=600, image_size=16, samples_per_task=50)
SOURCE = DigitScenes(600, 16, 3, 0)


def shard(url: str) -> None:
    """What one command does, without Ray's seconds: what is left, then the manifest."""
    parts = plan_parts(SOURCE, CONFIG)
    done = finished_tasks(open_store(url))
    for part in parts:
        if part[0] not in done:
            list(write_parts(SOURCE, url, [part], CONFIG))
    publish(SOURCE, CONFIG, url, parts)


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
        if kills < num_kills and open_store(url).read(MANIFEST) is not None:
            published += 1
            open_store(url).clear(MANIFEST)
    shard(url)
    print(f"{kills} kills, published {published + 1} times")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
