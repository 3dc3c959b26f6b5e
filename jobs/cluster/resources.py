"""What each training worker gets of the cluster, and how many trials of a search train at once."""

from dataclasses import dataclass

from jobs.cluster.ray_cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.search.config import TuneConfig


@dataclass(frozen=True)
class WorkerResources:
    """What each worker gets."""

    num_cpus: float
    num_gpus: float
    threads: int  # of torch

    @property
    def resources(self) -> dict[str, float]:
        """As Ray wants it."""
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {})}


def _gpus_each(config: TrainConfig, resources: Resources) -> float:
    """GPU that each worker gets; 0: none.

    Raises:
        UserError: it is to have one, and there are not enough.
    """
    fewest = config.min_workers or config.num_workers
    wanted = config.gpus_per_worker * fewest
    use_gpu = config.device == "cuda" or (config.device == "auto" and 0 < wanted <= resources.num_gpus)
    if use_gpu and wanted > resources.num_gpus:
        raise UserError(
            f"{fewest} workers with train.device=cuda and {config.gpus_per_worker:g} GPU each need {wanted:g}, "
            f"and the cluster has {resources.num_gpus}: set train.device=cpu, train.gpus_per_worker, or fewer workers"
        )
    return config.gpus_per_worker if use_gpu else 0


def place(config: TrainConfig, resources: Resources) -> WorkerResources:
    """CPUs, threads and GPU of each worker. An elastic training needs room for its fewest workers only.

    Raises:
        UserError: the cluster is too small; Ray itself would wait for ever.
    """
    fewest = config.min_workers or config.num_workers
    num_gpus = _gpus_each(config, resources)
    num_cpus = config.cpus_per_worker or max(1, min(resources.num_cpus // config.num_workers, resources.node_cpus))
    if num_cpus > max(1, resources.node_cpus):
        raise UserError(
            f"train.cpus_per_worker={num_cpus:g} is more than the largest node of the cluster has, "
            f"{resources.node_cpus}"
        )
    if num_cpus * fewest > resources.num_cpus:
        raise UserError(
            f"{fewest} workers with {num_cpus:g} CPU each need {num_cpus * fewest:g}, and the cluster has "
            f"{resources.num_cpus}: use fewer train.num_workers, train.cpus_per_worker below 1, or set ray.num_cpus to "
            "share the CPUs"
        )
    threads = config.threads_per_worker or (1 if config.deterministic else max(1, int(num_cpus)))
    return WorkerResources(num_cpus, num_gpus, threads)


def _groups(resources: Resources, workers: int, num_cpus: float, num_gpus: float) -> int:
    """How many groups of workers, each with so many CPUs and GPUs, there is room for."""
    by_cpus = int(resources.num_cpus / (workers * num_cpus) + 1e-6)  # parts of a CPU are not exact
    return min(by_cpus, int(resources.num_gpus / (workers * num_gpus) + 1e-6)) if num_gpus else by_cpus


@dataclass(frozen=True)
class TrialResources:
    """What the trials of a search get."""

    at_once: int  # trials
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
    most = _groups(resources, workers, 1, _gpus_each(train, resources))
    wanted = min(tune.trials, tune.max_concurrent or max(1, most))
    share = resources.num_cpus / (workers * wanted)
    if share < 1 and not tune.max_concurrent:  # parts of CPUs are for those who ask for so many trials
        share = 1.0
    num_cpus = train.cpus_per_worker or min(float(int(share)) or share, max(1, resources.node_cpus))
    placement = place(train.model_copy(update={"cpus_per_worker": num_cpus}), resources)
    at_once = _groups(resources, workers, num_cpus, placement.num_gpus)
    if at_once < (tune.max_concurrent and wanted):
        raise UserError(
            f"tune.max_concurrent={tune.max_concurrent}: there is room for {at_once} trials of {workers} workers with "
            f"{num_cpus:g} CPU and {placement.num_gpus:g} GPU each; lower it, or train.cpus_per_worker or "
            "train.gpus_per_worker"
        )
    return TrialResources(max(1, min(wanted, at_once)), placement)
