"""Settings of the jobs: training, evaluation, tracking and the cluster; those of the data are in jobs/data."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jobs.data.config import EXECUTION
from vlae.config import SettingsModel, split_commas


class TrainConfig(SettingsModel):
    """The training loop. A step is one update of the weights by one global batch."""

    steps: int = Field(1500, ge=1, description="updates of the weights")
    batch_size: int = Field(96, ge=1, description="images per step, over all workers")
    num_microbatches: int = Field(
        8, ge=1, description="fixed slices of the global batch; workers take whole slices, so it bounds their number"
    )
    deterministic: bool = Field(
        False, description="bit-identical weights for any number of workers, and any kills: sums over slices in a tree"
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="passes of a worker per step, whose gradients add up; more take less memory; exact: one per slice",
        json_schema_extra=EXECUTION,
    )
    shuffle_block_shards: int = Field(
        0, ge=0, description="shards that are shuffled together, for data larger than the local disk; 0: all"
    )
    preload: Literal["auto", "off", "ram", "device"] = Field(
        "auto",
        description="keep all training images in RAM or on the GPU; auto: on the GPU if they fit well, else off",
        json_schema_extra=EXECUTION,
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="peak learning rate of AdamW")
    lr_warmup_steps: int = Field(100, ge=0, description="steps of linear rise to the peak")
    lr_schedule: Literal["cosine", "constant"] = Field("cosine", description="after the peak: down to zero, or level")
    adam_beta2: float = Field(0.99, ge=0, lt=1, description="AdamW's decay of the second moment")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(1000.0, gt=0, description="largest gradient norm, nats per unit of weight")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="moving average of the weights, which is what is scored and registered; 0: none"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="autocast of the networks; auto is bf16 where the device computes it natively"
    )
    compile: bool = Field(False, description="torch.compile the model (needs a C++ compiler on CPU)")
    num_workers: int = Field(1, ge=1, le=4096, description="data-parallel workers", json_schema_extra=EXECUTION)
    min_workers: int = Field(
        0,
        ge=0,
        description="elastic: train with as many workers as there is room for, from this to num_workers; 0: with all",
        json_schema_extra=EXECUTION,
    )
    cpus_per_worker: float = Field(
        0, ge=0, description="CPUs per worker; 0 shares out the cluster's CPUs", json_schema_extra=EXECUTION
    )
    gpus_per_worker: float = Field(
        1, gt=0, le=1, description="GPU per worker, where they have one; .5: two share one", json_schema_extra=EXECUTION
    )
    threads_per_worker: int = Field(
        0,
        ge=0,
        description="CPU threads per worker; 0: as many as its CPUs, or 1 if exact, where they enter the result",
        json_schema_extra=EXECUTION,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes a GPU per worker if there are enough", json_schema_extra=EXECUTION
    )
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints", json_schema_extra=EXECUTION)
    keep_checkpoints: int = Field(
        2, ge=1, description="newest checkpoints to keep, beside the best", json_schema_extra=EXECUTION
    )
    validate_every: int = Field(
        0,
        ge=0,
        description="steps between validations, beside those at checkpoints; 0: none beside",
        json_schema_extra=EXECUTION,
    )
    log_every: int = Field(25, ge=1, description="steps between points of the curves", json_schema_extra=EXECUTION)
    max_failures: int = Field(
        3,
        ge=0,
        description="restarts after the loss of a worker without a checkpoint between",
        json_schema_extra=EXECUTION,
    )
    max_nonfinite_steps: int = Field(
        100,
        ge=1,
        description="steps in a row without a finite loss and gradient, after which training ends",
        json_schema_extra=EXECUTION,
    )

    @model_validator(mode="after")
    def _slices_divide(self) -> "TrainConfig":
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"train.batch_size={self.batch_size} is no multiple of train.num_microbatches={self.num_microbatches}"
            )
        if self.num_workers > self.num_microbatches:
            raise ValueError(
                f"train.num_workers={self.num_workers} is more than train.num_microbatches={self.num_microbatches}"
            )
        if self.min_workers > self.num_workers:
            raise ValueError(f"train.min_workers={self.min_workers} is more than train.num_workers={self.num_workers}")
        return self

    @property
    def smallest_pass(self) -> int:
        """Images that are looked at together, at least: of a worker with the fewest slices, in its shortest pass."""
        slices = self.num_microbatches // self.num_workers
        passes = slices if self.deterministic else min(self.gradient_accumulation_steps, slices)
        return slices // passes * (self.batch_size // self.num_microbatches)


def _rising(steps: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse steps that a chain does not meet in that order."""
    if list(steps) != sorted(set(steps)):
        raise ValueError("must rise from one to the next")
    return steps


class EvaluateConfig(SettingsModel):
    """Scores and pictures of a trained model on the test split."""

    num_images: int = Field(5_000, ge=10, description="test images to score, at most")
    iwae_samples: int = Field(64, ge=0, description="samples of the importance-weighted bound; 0: leave it out")
    iwae_images: int = Field(64, ge=1, description="test images of the importance-weighted bound, at most")
    label_factor: str = Field(
        "", description="factor of the class-flip rates; empty: digit, class, shape, ... if there is one"
    )
    classifier_steps: int = Field(600, ge=1, description="updates of the classifier behind the class-flip rates")
    gibbs_steps: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(split_commas), AfterValidator(_rising)
    ] = Field((1, 5, 20), description="steps after which the Gibbs chains are compared with the data, rising")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the samples behind scores and pictures")
    champion_metric: Literal["elbo", "mig", "mig_sup"] = Field(
        "elbo", description="score by which the registered model with alias champion is chosen; higher wins"
    )
    model_name: str = Field(
        "", pattern=r"^[\w.-]*$", description="name in the model registry; empty: the name of the dataset"
    )


def _without_secrets(uri: str) -> str:
    """Refuse addresses that MLflow's clients cannot use, and credentials, which would end up in logs."""
    if uri and not uri.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://, or be empty for a SQLite file in the workspace")
    if "@" in uri:
        raise ValueError("must hold no credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
    return uri


class TrackingConfig(SettingsModel):
    """MLflow."""

    uri: Annotated[str, AfterValidator(_without_secrets)] = Field(
        "", description="MLflow server, http(s)://...; empty: SQLite file and artifacts in the workspace"
    )
    experiment: str = Field("vlae", min_length=1, description="name of the MLflow experiment")


class RayConfig(SettingsModel):
    """The Ray cluster that the jobs run on."""

    address: str = Field("local", description="local starts one here; auto or HOST:PORT joins a running cluster")
    num_cpus: int = Field(0, ge=0, description="CPUs that a local cluster uses; 0: all there are")
