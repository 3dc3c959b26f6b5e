"""CPUs, GPUs and threads of each training worker."""

from dataclasses import dataclass

from jobs.cluster.ray_cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError


@dataclass(frozen=True)
class WorkerResources:
    """CPUs, GPUs and threads of torch of one worker; a fraction lets workers share a CPU or GPU."""

    num_cpus: float
    num_gpus: float
    threads: int

    @property
    def resources(self) -> dict[str, float]:
        """The resources in Ray's format."""
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {})}


def gpus_per_worker(config: TrainConfig, resources: Resources) -> float:
    """Return `train.gpus_per_worker`, 0 for workers on CPUs; raise UserError if `train.device=cuda` needs more GPUs."""
    num_workers = config.min_workers or config.num_workers
    required = config.gpus_per_worker * num_workers
    use_gpu = config.device == "cuda" or (config.device == "auto" and 0 < required <= resources.num_gpus)
    if use_gpu and required > resources.num_gpus:
        raise UserError(
            f"train.device=cuda: {num_workers} workers with {config.gpus_per_worker:g} GPU each need {required:g}, and "
            f"the cluster has {resources.num_gpus}. Set train.device=cpu, a smaller train.gpus_per_worker or fewer "
            "train.num_workers."
        )
    return config.gpus_per_worker if use_gpu else 0


def allocate(config: TrainConfig, resources: Resources) -> WorkerResources:
    """Divide the cluster among the workers; an elastic training needs resources for `train.min_workers` only.

    Returns:
        Resources of each worker.

    Raises:
        UserError: The cluster is too small. Ray itself would wait forever.
    """
    num_workers = config.min_workers or config.num_workers
    num_gpus = gpus_per_worker(config, resources)
    num_cpus = config.cpus_per_worker or max(1, min(resources.num_cpus // config.num_workers, resources.node_cpus))
    if num_cpus > max(1, resources.node_cpus):
        raise UserError(
            f"train.cpus_per_worker={num_cpus:g}: the largest node of the cluster has {resources.node_cpus}. "
            "Set a smaller value."
        )
    if num_cpus * num_workers > resources.num_cpus:
        raise UserError(
            f"train.num_workers: {num_workers} workers with {num_cpus:g} CPU each need {num_cpus * num_workers:g}, and "
            f"the cluster has {resources.num_cpus}. Use fewer workers, train.cpus_per_worker below 1, or set "
            "ray.num_cpus so that workers share CPUs."
        )
    threads = config.threads_per_worker or (1 if config.deterministic else max(1, int(num_cpus)))
    return WorkerResources(num_cpus, num_gpus, threads)


def max_worker_groups(resources: Resources, workers: int, num_cpus: float, num_gpus: float) -> int:
    """Return how many groups of `workers`, with `num_cpus` and `num_gpus` each, the cluster holds at once (>= 0)."""
    by_cpus = int(resources.num_cpus / (workers * num_cpus) + 1e-6)  # fractions of a CPU are rounded floats
    return min(by_cpus, int(resources.num_gpus / (workers * num_gpus) + 1e-6)) if num_gpus else by_cpus
