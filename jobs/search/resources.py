"""How many trials of a search train at once, and what each of their workers gets."""

from dataclasses import dataclass

from jobs.cluster.ray_cluster import Resources
from jobs.cluster.resources import WorkerResources, allocate, gpus_per_worker, max_worker_groups
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.search.config import TuneConfig


@dataclass(frozen=True)
class TrialResources:
    """What the trials of a search get."""

    max_concurrent: int  # trials
    placement: WorkerResources  # of each of their workers


def allocate_trials(train: TrainConfig, tune: TuneConfig, resources: Resources) -> TrialResources:
    """Share the cluster out among trials: as many at once as there is room for, each with what is then left.

    Args:
        train: settings of every trial, `num_workers` of which are Ray Train's.
        tune: how many trials, and how many of them at once.
        resources: of the cluster.

    Raises:
        UserError: there is no room for one trial, or not for as many as `tune.max_concurrent`.
    """
    workers = train.num_workers
    most = max_worker_groups(resources, workers, 1, gpus_per_worker(train, resources))
    wanted = min(tune.trials, tune.max_concurrent or max(1, most))
    share = resources.num_cpus / (workers * wanted)
    if share < 1 and not tune.max_concurrent:  # parts of CPUs are for those who ask for so many trials
        share = 1.0
    num_cpus = train.cpus_per_worker or min(float(int(share)) or share, max(1, resources.node_cpus))
    placement = allocate(train.model_copy(update={"cpus_per_worker": num_cpus}), resources)
    max_concurrent = max_worker_groups(resources, workers, num_cpus, placement.num_gpus)
    if max_concurrent < (tune.max_concurrent and wanted):
        raise UserError(
            f"tune.max_concurrent={tune.max_concurrent}: there is room for {max_concurrent} trials of {workers} workers with "
            f"{num_cpus:g} CPU and {placement.num_gpus:g} GPU each; lower it, or train.cpus_per_worker or "
            "train.gpus_per_worker"
        )
    return TrialResources(max(1, min(wanted, max_concurrent)), placement)
