"""CPUs, GPUs and threads of each training worker."""

from dataclasses import dataclass

from jobs.cluster.ray_cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError


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


def gpus_per_worker(config: TrainConfig, resources: Resources) -> float:
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


def allocate(config: TrainConfig, resources: Resources) -> WorkerResources:
    """CPUs, threads and GPU of each worker. An elastic training needs room for its fewest workers only.

    Raises:
        UserError: the cluster is too small; Ray itself would wait for ever.
    """
    fewest = config.min_workers or config.num_workers
    num_gpus = gpus_per_worker(config, resources)
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


def max_worker_groups(resources: Resources, workers: int, num_cpus: float, num_gpus: float) -> int:
    """How many groups of workers, each with so many CPUs and GPUs, there is room for."""
    by_cpus = int(resources.num_cpus / (workers * num_cpus) + 1e-6)  # parts of a CPU are not exact
    return min(by_cpus, int(resources.num_gpus / (workers * num_gpus) + 1e-6)) if num_gpus else by_cpus
