"""The whole configuration: the sections of the two lower floors, and the run's own settings."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from jobs.config import EvaluateConfig, RayConfig, TrackingConfig, TrainConfig
from jobs.data.config import AbsolutePath
from jobs.data.sources.config import DataConfig, DigitsConfig
from jobs.search.config import TuneConfig
from vlae.config import ModelConfig, ObjectiveConfig, ProgressiveConfig, SettingsModel, VlaeConfig, split_commas
from vlae.schedule import added_rungs

Stage = Literal["shard", "tune", "train", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MAIN_STAGES: tuple[Stage, ...] = ("shard", "train", "evaluate")  # of one model, without a search


def _in_order(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(stage for stage in STAGES if stage in stages)


def _plain_for_sqlite(path: Path) -> Path:
    """Refuse folders that MLflow would look for elsewhere: it reads its SQLite file's path as part of an address."""
    if set(str(path)) & set("?%"):
        raise ValueError("must hold neither ? nor %, which MLflow cannot have in the path of its database")
    return path


def _store_address(value: str) -> str:
    """An absolute path, or an address on S3 without credentials."""
    if value.startswith("s3:"):
        if not _S3_ADDRESS.fullmatch(value):
            raise ValueError("must be s3://BUCKET or s3://BUCKET/PREFIX; credentials come from the environment")
        return value.rstrip("/")
    if "://" in value:
        raise ValueError("must be a folder or s3://BUCKET/PREFIX")
    return str(Path(value).expanduser().absolute()) if value else value


def _model_address(value: str) -> str:
    """An address of a model version, or nothing."""
    if value and not _MODEL_ADDRESS.fullmatch(value):
        raise ValueError("must be models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/digits@champion")
    return value


def _run_name(value: str) -> str:
    """The name of a folder, or nothing."""
    if value and not _RUN_NAME.fullmatch(value):
        raise ValueError("must be the name of a run's folder, such as vlae-digits-0123456789ab")
    return value


Stages = Annotated[tuple[Stage, ...], BeforeValidator(split_commas), AfterValidator(_in_order)]


_RUN_NAME = re.compile(r"\w[\w-]*-[0-9a-f]{12}")
_MODEL_ADDRESS = re.compile(r"models:/[\w.-]+(@[\w-]+|/[1-9]\d*)")
_S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.+(/|$))[\w.=-]+)*/?")


class Config(SettingsModel):
    """Everything that a command can set."""

    stage: Stages = Field(
        MAIN_STAGES, min_length=1, description="stages to run, in the pipeline's order however written"
    )
    workspace: Annotated[AbsolutePath, AfterValidator(_plain_for_sqlite)] = Field(
        "workspace", validate_default=True, description="folder for shards, runs, MLflow's database and artifacts"
    )
    storage_path: Annotated[str, AfterValidator(_store_address)] = Field(
        "", description="folder or s3://BUCKET/PREFIX for the shards; empty: the workspace"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the weights, the order and the noise")
    model_uri: Annotated[str, AfterValidator(_model_address)] = Field(
        "",
        description="models:/NAME@champion or models:/NAME/3, for stage=evaluate: the registered model to score",
    )
    resume: Annotated[str, AfterValidator(_run_name)] = Field(
        "", description="run to go on with, by the name of its folder in runs/; its settings are taken from its record"
    )
    init_from: Annotated[str, AfterValidator(_run_name)] = Field(
        "", description="run whose newest checkpoint a new run of other settings begins with, by its folder in runs/"
    )
    force: Stages = Field((), description="stages to run again although they are done")
    dry_run: bool = Field(False, description="print the plan and do nothing")
    output: Literal["text", "json"] = Field("text", description="json: the last line of stdout is one JSON object")
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
    def _forced_stages_run(self) -> "Config":
        idle = [stage for stage in self.force if stage not in self.stage]
        if idle:
            raise ValueError(f"force={idle[0]} has no effect without that stage: add it, stage={idle[0]},...")
        return self

    @model_validator(mode="after")
    def _registered_models_are_trained(self) -> "Config":
        if self.model_uri and {"tune", "train"} & set(self.stage):
            raise ValueError(f"model_uri={self.model_uri} is a trained model: set stage=evaluate, or shard,evaluate")
        return self

    @model_validator(mode="after")
    def _searches_have_a_space(self) -> "Config":
        if "tune" not in self.stage:
            return self
        if not self.tune.param_space:
            raise ValueError(
                "stage=tune needs a space to search, such as tune.param_space.model.latent_dims=18/9,9/6,6,6, or "
                "preset=digits-search, which has one"
            )
        for key in ("resume", "init_from"):
            if getattr(self, key):
                raise ValueError(f"{key}= is of one training, and stage=tune makes many: leave one of them out")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_model(self) -> "Config":
        rungs = len(self.model.latent_dims)
        for name in ("beta", "free_bits", "mmd"):
            values = getattr(self.objective, name)
            if len(values) not in (1, rungs):
                raise ValueError(
                    f"objective.{name} has {len(values)} numbers: give one, or one for each of the {rungs} rungs"
                )
        independent = self.model.name in ("vlae", "vae")
        for name, weights in (("total_correlation", (self.objective.total_correlation,)), ("mmd", self.objective.mmd)):
            if any(weights) and not independent:
                raise ValueError(
                    f"objective.{name} needs rungs that are independent given the image: model=vlae or vae, "
                    f"not {self.model.name}"
                )
        self._progress_fits()
        share = self.train.smallest_pass
        heads = getattr(self.model, "batch_norm_heads", False)
        if (heads or self.model.norm == "batch") and share < 2:
            key = "model.batch_norm_heads=true" if heads else "model.norm=batch"
            raise ValueError(f"{key} needs 2 images or more in each pass, and this run has {share}")
        return self

    def _progress_fits(self) -> None:
        stage, fade, rungs = self.progressive.stage_steps, self.progressive.fade_steps, len(self.model.latent_dims)
        if not stage:
            return
        if self.model.name != "vlae":
            raise ValueError(
                f"progressive.stage_steps adds the rungs of a ladder: it needs model=vlae, not {self.model.name}"
            )
        if fade > stage:
            raise ValueError(f"progressive.fade_steps={fade} is longer than a stage, progressive.stage_steps={stage}")
        later = len(added_rungs(self.progressive, rungs)) - 1
        if stage * later + max(fade, 1) > self.train.steps:
            raise ValueError(
                f"progressive.stage_steps={stage}: train.steps={self.train.steps} ends before all {rungs} rungs are in"
            )


# Sections that are chosen by name, as in `model=hvae`.
GROUPS: dict[str, dict[str, type[BaseModel]]] = {
    group: {member.model_fields["name"].default: member for member in get_args(get_args(union)[0])}
    for group, union in (("data", DataConfig), ("model", ModelConfig))
}


def section_of(field: FieldInfo) -> type[SettingsModel] | None:
    """The section that a field of `Config` holds, if it is one that is not chosen by name."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsModel) else None


def spell(value: Any) -> str:
    """A setting's value as the command line spells it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(f"{key}={spell(one)}" for key, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def identity(section: SettingsModel) -> dict[str, str]:
    """The settings of a section that change what is made, in command-line spelling, without the name."""
    return {name: spell(getattr(section, name)) for name in defining(type(section))}


def defining(section: type[BaseModel]) -> list[str]:
    """The names of the settings of a section that change what is made."""
    return [
        name
        for name, field in section.model_fields.items()
        if name != "name" and not (isinstance(field.json_schema_extra, dict) and "execution" in field.json_schema_extra)
    ]


def run_settings(config: Config) -> dict[str, str]:
    """The settings that define a training run; as `key=value` words they are a command that repeats it."""
    settings = {"seed": spell(config.seed), **({"init_from": config.init_from} if config.init_from else {})}
    for name in ("data", "model", "objective", "progressive", "train"):
        section = getattr(config, name)
        if name in GROUPS:
            settings[name] = section.name
        settings |= {f"{name}.{key}": value for key, value in identity(section).items()}
    return settings
