"""All settings of a command: those of vlae and jobs, and the command's own."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from jobs.config import AbsolutePath, RayConfig, TrackingConfig, TrainConfig
from jobs.data.sources import DataConfig
from jobs.data.sources.digits import DigitsConfig
from jobs.evaluation.config import EvaluateConfig
from jobs.search.config import TuneConfig
from vlae.config import ModelConfig, ObjectiveConfig, ProgressiveConfig, SettingsModel, VlaeConfig, split_commas
from vlae.schedule import added_rungs

Stage = Literal["shard", "tune", "train", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MAIN_STAGES: tuple[Stage, ...] = ("shard", "train", "evaluate")  # of one model, without a search

_S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.+(/|$))[\w.=-]+)*/?")


def _check_sqlite_path(path: Path) -> Path:
    # SQLAlchemy reads the path of MLflow's SQLite file as a part of a URL.
    if set(str(path)) & set("?%"):
        raise ValueError("must not contain ? or %, which MLflow cannot handle in the path of its database")
    return path


def _check_storage_path(value: str) -> str:
    if value.startswith("s3:"):
        if not _S3_ADDRESS.fullmatch(value):
            raise ValueError("must be s3://BUCKET or s3://BUCKET/PREFIX; credentials come from the environment")
        return value.rstrip("/")
    if "://" in value:
        raise ValueError("must be a folder or s3://BUCKET/PREFIX")
    return str(Path(value).expanduser().absolute()) if value else value


def _matches(pattern: str, requirement: str) -> AfterValidator:
    """Return a validator of a text that is empty or matches a pattern."""

    def check(value: str) -> str:
        if value and not re.fullmatch(pattern, value):
            raise ValueError(requirement)
        return value

    return AfterValidator(check)


_RunName = Annotated[
    str, _matches(r"\w[\w-]*-[0-9a-f]{12}", "must be the name of a run's folder, such as vlae-digits-0123456789ab")
]
_ModelUri = Annotated[
    str,
    _matches(
        r"models:/[\w.-]+(@[\w-]+|/[1-9]\d*)",
        "must be models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/digits@champion",
    ),
]
Stages = Annotated[
    tuple[Stage, ...],
    BeforeValidator(split_commas),
    AfterValidator(lambda stages: tuple(stage for stage in STAGES if stage in stages)),
]


class Config(SettingsModel):
    """All settings of a command."""

    stage: Stages = Field(
        MAIN_STAGES, min_length=1, description="stages to run, always in the order shard, tune, train, evaluate"
    )
    workspace: Annotated[AbsolutePath, AfterValidator(_check_sqlite_path)] = Field(
        "workspace", validate_default=True, description="folder for shards, runs, MLflow's database and artifacts"
    )
    storage_path: Annotated[str, AfterValidator(_check_storage_path)] = Field(
        "", description="folder or s3://BUCKET/PREFIX for shards and checkpoints; empty: the workspace"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="random seed for weights, data order and noise")
    model_uri: _ModelUri = Field(
        "", description="registered model to evaluate, models:/NAME@champion or models:/NAME/3; needs stage=evaluate"
    )
    resume: _RunName = Field(
        "", description="name of a run to continue, a folder in runs/; its settings come from its record"
    )
    init_from: _RunName = Field(
        "", description="name of a run whose newest checkpoint a new run with other settings starts from (warm start)"
    )
    force: Stages = Field((), description="stages to run again even if they are complete")
    dry_run: bool = Field(False, description="print the plan and write nothing")
    output: Literal["text", "json"] = Field(
        "text", description="format of stdout; json: its last line is one JSON object, and text goes to stderr"
    )
    data: DataConfig = Field(default_factory=DigitsConfig)
    model: ModelConfig = Field(default_factory=VlaeConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    progressive: ProgressiveConfig = Field(default_factory=ProgressiveConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    ray: RayConfig = Field(default_factory=RayConfig)

    @model_validator(mode="after")
    def _check_stages(self) -> "Config":
        for stage in self.force:
            if stage not in self.stage:
                raise ValueError(f"force={stage}: the stage is not run. Add it to stage=.")
        if self.model_uri and {"tune", "train"} & set(self.stage):
            raise ValueError(f"model_uri={self.model_uri}: the model is trained. Set stage=evaluate or shard,evaluate.")
        if "tune" not in self.stage:
            return self
        for key in ("resume", "init_from"):
            if name := getattr(self, key):
                raise ValueError(f"{key}={name}: applies to one training, and stage=tune runs many. Remove it.")
        return self

    @model_validator(mode="after")
    def _check_model(self) -> "Config":
        model, objective, rungs = self.model, self.objective, len(self.model.latent_dims)
        for name in ("beta", "free_bits", "mmd"):
            values = getattr(objective, name)
            if len(values) not in (1, rungs):
                raise ValueError(
                    f"objective.{name}: {len(values)} numbers for {rungs} rungs. Set one number, or one per rung."
                )
        for name, weights in (("total_correlation", (objective.total_correlation,)), ("mmd", objective.mmd)):
            if any(weights) and model.name not in ("vlae", "vae"):
                raise ValueError(
                    f"objective.{name}: needs rungs that are independent given the image, unlike those of "
                    f"model={model.name}. Set model=vlae or vae."
                )
        batch_norm_heads = getattr(model, "batch_norm_heads", False)
        if (batch_norm_heads or model.norm == "batch") and self.train.min_pass_size < 2:
            key = "model.batch_norm_heads=true" if batch_norm_heads else "model.norm=batch"
            raise ValueError(
                f"{key}: needs at least 2 images per forward pass, and this run has {self.train.min_pass_size}. "
                "Raise train.batch_size."
            )
        return self

    @model_validator(mode="after")
    def _check_progressive(self) -> "Config":
        stage, fade, rungs = self.progressive.stage_steps, self.progressive.fade_steps, len(self.model.latent_dims)
        if not stage:
            return self
        key = f"progressive.stage_steps={stage}"
        if self.model.name != "vlae":
            raise ValueError(f"{key}: adds the rungs of a ladder. Set model=vlae, not {self.model.name}.")
        if fade > stage:
            raise ValueError(f"progressive.fade_steps={fade}: longer than a stage, {key}. Set it to at most {stage}.")
        num_later = len(added_rungs(self.progressive, rungs)) - 1
        if stage * num_later + max(fade, 1) > self.train.steps:
            raise ValueError(
                f"{key}: train.steps={self.train.steps} ends before all {rungs} rungs are added. Raise train.steps."
            )
        return self


# Sections that are chosen by name, as in `model=hvae`.
GROUPS: dict[str, dict[str, type[BaseModel]]] = {
    group: {member.model_fields["name"].default: member for member in get_args(get_args(union)[0])}
    for group, union in (("data", DataConfig), ("model", ModelConfig))
}


def section_of(field: FieldInfo) -> type[SettingsModel] | None:
    """Return the section class of a field of `Config`; None for a single setting and for a section chosen by name."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsModel) else None


def format_value(value: Any) -> str:
    """Return the value of a setting as the command line spells it.

    Example:
        >>> format_value((3, 3, 4)), format_value(None), format_value(True)
        ('3,3,4', 'none', 'true')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(f"{key}={format_value(item)}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def defining_fields(section: type[BaseModel]) -> list[str]:
    """Return the settings of a section that change the output of a job: all but `name` and how and where a job runs."""
    return [
        name
        for name, field in section.model_fields.items()
        if name != "name" and not (isinstance(field.json_schema_extra, dict) and "execution" in field.json_schema_extra)
    ]


def defining_settings(section: SettingsModel) -> dict[str, str]:
    """Return the settings of a section that change the output of a job, by field name, in command-line spelling."""
    return {name: format_value(getattr(section, name)) for name in defining_fields(type(section))}


def run_settings(config: Config) -> dict[str, str]:
    """Return the settings that define a training, by key; as `key=value` overrides they repeat the training."""
    settings = {"seed": format_value(config.seed)}
    if config.init_from:
        settings["init_from"] = config.init_from
    for name in ("data", "model", "objective", "progressive", "train"):
        section = getattr(config, name)
        if name in GROUPS:
            settings[name] = section.name
        settings |= {f"{name}.{key}": value for key, value in defining_settings(section).items()}
    return settings
