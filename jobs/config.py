"""Settings of the jobs: training, tracking and the Ray cluster."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.config import JsonDict

from vlae.config import SettingsModel

# Marks a setting of how and where a job runs. Commands that differ in such settings only make the same dataset or run.
EXECUTION: JsonDict = {"execution": True}

# Absolute, because Ray workers run in other working directories.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: Path(path).expanduser().absolute())]


class TrainConfig(SettingsModel):
    """The training loop. A step is one update of the weights from one global batch."""

    steps: int = Field(1500, ge=1, description="number of updates of the weights")
    batch_size: int = Field(96, ge=1, description="images per step, over all workers")
    num_microbatches: int = Field(
        8, ge=1, description="number of equal parts of the global batch; at least num_workers, as parts are never split"
    )
    deterministic: bool = Field(
        False, description="bit-identical weights for any number of workers and restarts; gradients per microbatch"
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="forward passes per worker and step; more need less memory; deterministic: one per microbatch",
        json_schema_extra=EXECUTION,
    )
    shuffle_block_shards: int = Field(
        0, ge=0, description="shards that are shuffled together, for data larger than the local disk; 0: all"
    )
    preload: Literal["auto", "off", "ram", "device"] = Field(
        "auto",
        description="keep training images in RAM or on the GPU; auto: GPU if within 1/4 of its free memory, else off",
        json_schema_extra=EXECUTION,
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="peak learning rate of AdamW")
    lr_warmup_steps: int = Field(100, ge=0, description="steps of linear learning-rate warm-up")
    lr_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up: cosine decay to zero, or constant"
    )
    adam_beta2: float = Field(0.99, ge=0, lt=1, description="decay of AdamW's second moment")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(1000.0, gt=0, description="gradient norm above which gradients are scaled down")
    ema_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, the weights to evaluate; 0: no average",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="autocast precision of the networks; auto: bf16 where the device computes it natively"
    )
    compile: bool = Field(False, description="compile the model with torch.compile; needs a C++ compiler on CPU")
    num_workers: int = Field(
        1, ge=1, le=4096, description="number of data-parallel workers", json_schema_extra=EXECUTION
    )
    min_workers: int = Field(
        0,
        ge=0,
        description="minimum number of workers in elastic training, at most num_workers; 0: fixed at num_workers",
        json_schema_extra=EXECUTION,
    )
    cpus_per_worker: float = Field(
        0, ge=0, description="CPUs per worker; 0: an equal fraction of the cluster's", json_schema_extra=EXECUTION
    )
    gpus_per_worker: float = Field(
        1,
        gt=0,
        le=1,
        description="GPUs per worker where workers have one; 0.5: two share one",
        json_schema_extra=EXECUTION,
    )
    threads_per_worker: int = Field(
        0,
        ge=0,
        description="CPU threads per worker; 0: one per CPU, or 1 if deterministic",
        json_schema_extra=EXECUTION,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="device of the workers; auto: GPUs if there are enough, else CPUs",
        json_schema_extra=EXECUTION,
    )
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints", json_schema_extra=EXECUTION)
    keep_checkpoints: int = Field(
        2, ge=1, description="number of newest checkpoints to keep, besides the best", json_schema_extra=EXECUTION
    )
    validate_every: int = Field(
        0, ge=0, description="steps between extra validations; 0: at checkpoints only", json_schema_extra=EXECUTION
    )
    log_every: int = Field(
        25, ge=1, description="steps between points of the learning curve", json_schema_extra=EXECUTION
    )
    max_failures: int = Field(
        3, ge=0, description="restarts after lost workers without a checkpoint in between", json_schema_extra=EXECUTION
    )
    max_nonfinite_steps: int = Field(
        100, ge=1, description="nonfinite steps in a row after which training fails", json_schema_extra=EXECUTION
    )

    @model_validator(mode="after")
    def _check_divisibility(self) -> "TrainConfig":
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"train.batch_size={self.batch_size}: not a multiple of train.num_microbatches={self.num_microbatches}"
            )
        if self.num_workers > self.num_microbatches:
            raise ValueError(
                f"train.num_workers={self.num_workers}: more than train.num_microbatches={self.num_microbatches}"
            )
        if self.min_workers > self.num_workers:
            raise ValueError(f"train.min_workers={self.min_workers}: more than train.num_workers={self.num_workers}")
        return self

    @property
    def min_pass_size(self) -> int:
        """Images of the smallest forward pass: of a worker with the fewest microbatches, in its shortest pass."""
        microbatches = self.num_microbatches // self.num_workers
        passes = microbatches if self.deterministic else min(self.gradient_accumulation_steps, microbatches)
        return microbatches // passes * (self.batch_size // self.num_microbatches)


def _check_uri(uri: str) -> str:
    if uri and not uri.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://, or be empty for a SQLite file in the workspace")
    return uri


class TrackingConfig(SettingsModel):
    """The MLflow server that records runs and models."""

    uri: Annotated[str, AfterValidator(_check_uri)] = Field(
        "", description="address of the MLflow server, http(s)://...; empty: SQLite file and artifacts in the workspace"
    )
    experiment: str = Field("vlae", min_length=1, description="name of the MLflow experiment")


class RayConfig(SettingsModel):
    """The Ray cluster that runs the jobs."""

    address: str = Field("local", description="local: start a cluster here; auto or HOST:PORT: join a running one")
    num_cpus: int = Field(0, ge=0, description="CPUs of a local cluster; 0: all of this machine")
