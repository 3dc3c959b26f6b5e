"""Concurrent trials of a search and the resources of their workers."""

from dataclasses import dataclass

from jobs.cluster.ray_cluster import Resources
from jobs.cluster.resources import WorkerResources, allocate, gpus_per_worker, max_worker_groups
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.search.config import TuneConfig


@dataclass(frozen=True)
class TrialResources:
    """Number of trials that run at once, and resources of each worker of a trial."""

    max_concurrent: int
    worker: WorkerResources


def allocate_trials(train: TrainConfig, tune: TuneConfig, resources: Resources) -> TrialResources:
    """Return the resources of trials: as many at once as fit, and the CPUs shared equally among them.

    Raises:
        UserError: The cluster is too small for one trial, or for `tune.max_concurrent` trials.
    """
    workers = train.num_workers
    limit = max_worker_groups(resources, workers, 1, gpus_per_worker(train, resources))
    target = min(tune.trials, tune.max_concurrent or max(1, limit))
    cpus = resources.num_cpus / (workers * target)
    if cpus < 1 and not tune.max_concurrent:  # fractions of a CPU only where the user asks for that many trials
        cpus = 1.0
    num_cpus = train.cpus_per_worker or min(float(int(cpus)) or cpus, max(1, resources.node_cpus))
    worker = allocate(train.model_copy(update={"cpus_per_worker": num_cpus}), resources)
    max_concurrent = max_worker_groups(resources, workers, num_cpus, worker.num_gpus)
    if tune.max_concurrent and max_concurrent < target:
        raise UserError(
            f"tune.max_concurrent={tune.max_concurrent}: the cluster has resources for {max_concurrent} concurrent "
            f"trials of {workers} workers with {num_cpus:g} CPU and {worker.num_gpus:g} GPU each. Lower "
            "tune.max_concurrent, train.cpus_per_worker or train.gpus_per_worker."
        )
    return TrialResources(max(1, min(target, max_concurrent)), worker)
