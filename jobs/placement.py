"""What each training worker gets of the cluster."""

from dataclasses import dataclass

from jobs.cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError


@dataclass(frozen=True)
class Placement:
    """What each worker gets."""

    num_cpus: float
    num_gpus: float
    threads: int  # of torch

    @property
    def resources(self) -> dict[str, float]:
        """As Ray wants it."""
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {})}


def place(config: TrainConfig, resources: Resources) -> Placement:
    """CPUs, threads and GPU of each worker. An elastic training needs room for its fewest workers only.

    Raises:
        UserError: the cluster is too small; Ray itself would wait for ever.
    """
    fewest = config.min_workers or config.num_workers
    wanted_gpus = config.gpus_per_worker * fewest
    use_gpu = config.device == "cuda" or (config.device == "auto" and 0 < wanted_gpus <= resources.num_gpus)
    if use_gpu and wanted_gpus > resources.num_gpus:
        raise UserError(
            f"{fewest} workers with train.device=cuda and {config.gpus_per_worker:g} GPU each need {wanted_gpus:g}, "
            f"and the cluster has {resources.num_gpus}: set train.device=cpu, train.gpus_per_worker, or fewer workers"
        )
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
    threads = config.threads_per_worker or (1 if config.exact else max(1, int(num_cpus)))
    return Placement(num_cpus, config.gpus_per_worker if use_gpu else 0, threads)
