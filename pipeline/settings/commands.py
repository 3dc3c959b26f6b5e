"""Commands and params that MLflow keeps of a run: the command repeats it, the params compare it with others."""

import shlex
from collections.abc import Iterable, Mapping

import yaml
from pydantic import BaseModel

from jobs.search.config import TuneConfig
from pipeline.settings.parse import SPACE_PREFIX
from pipeline.settings.schema import (
    GROUPS,
    MAIN_STAGES,
    STAGES,
    Config,
    Stage,
    defining_settings,
    format_value,
    run_settings,
)

# Params of every run; other settings are params only where they are not the default.
_ALWAYS = {"seed", "data", "model", "model.latent_dims", "model.width", "objective.beta"}
_ALWAYS |= {"train.steps", "train.batch_size", "train.learning_rate"}


def changed_settings(config: Config) -> dict[str, str]:
    """Return the settings that define a training and are not the default, by key, in command-line spelling.

    Settings without a default are always included.
    """
    required = {}
    for group in GROUPS:
        section = getattr(config, group)
        fields = type(section).model_fields
        required[group] = {name: getattr(section, name) for name in fields if fields[name].is_required()}
    base = Config.model_validate({group: {"name": getattr(config, group).name, **required[group]} for group in GROUPS})
    default = run_settings(base) | {group: getattr(Config(), group).name for group in GROUPS}
    always = {f"{group}.{name}" for group in GROUPS for name in required[group]}
    return {key: value for key, value in run_settings(config).items() if value != default.get(key) or key in always}


def training_command(config: Config) -> str:
    """Return the shell command that repeats a training and its evaluation, with every setting that is not a default."""
    return _command(MAIN_STAGES, changed_settings(config) | _shared_settings(config))


def search_command(config: Config) -> str:
    """Return the shell command that repeats a search, and trains and evaluates its best trial; without defaults."""
    fixed = {key: value for key, value in changed_settings(config).items() if key not in config.tune.param_space}
    tune = _changed_fields("tune", config.tune, TuneConfig())
    tune.pop("tune.param_space", None)
    return _command(STAGES, fixed | _space(config) | tune | _shared_settings(config))


def search_params(config: Config) -> dict[str, str]:
    """Return the MLflow params of a search by key."""
    tune = {f"tune.{key}": value for key, value in defining_settings(config.tune).items() if key != "param_space"}
    return tune | _space(config)


def evaluation_command(config: Config, model_uri: str) -> str:
    """Return the shell command that repeats the evaluation of a registered `models:/NAME/VERSION` on the same data."""
    data = {key: value for key, value in changed_settings(config).items() if key.partition(".")[0] == "data"}
    return _command(("shard", "evaluate"), {"model_uri": model_uri, **data, **_shared_settings(config)})


def _space(config: Config) -> dict[str, str]:
    return {f"{SPACE_PREFIX}{key}": text for key, text in config.tune.param_space.items()}


def _changed_fields(name: str, section: BaseModel, default: BaseModel) -> dict[str, str]:
    """Return the settings of a section that are not the default, by key."""
    return {
        f"{name}.{key}": format_value(getattr(section, key))
        for key in type(section).model_fields
        if getattr(section, key) != getattr(default, key)
    }


def _shared_settings(config: Config) -> dict[str, str]:
    """Return the settings of evaluation, its factors, undecodable images, tracking and storage, without defaults."""
    default = Config()
    settings = {
        name: format_value(getattr(config, name))
        for name in ("workspace", "storage_path")
        if getattr(config, name) != getattr(default, name)
    }
    if config.data.on_error != "error":
        settings["data.on_error"] = config.data.on_error
    if config.data.factors:
        settings["data.factors"] = format_value(config.data.factors)
    for name in ("evaluate", "tracking"):
        settings |= _changed_fields(name, getattr(config, name), getattr(default, name))
    return settings


def _command(stages: Iterable[Stage], settings: Mapping[str, str]) -> str:
    overrides = [f"stage={','.join(stages)}", *(f"{key}={value}" for key, value in settings.items())]
    return shlex.join(["python", "-m", "pipeline.run", *overrides])


def run_params(config: Config, num_parameters: int) -> dict[str, str]:
    """Return the MLflow params of a training by key, with depth and capacity as numbers.

    MLflow's comparison page draws the first three params, ordered by name, as parallel coordinates.
    """
    dims = config.model.latent_dims
    settings, changed = run_settings(config), changed_settings(config)
    return {
        "capacity.depth": str(len(dims)),
        "capacity.latents": str(sum(dims)),
        "capacity.parameters": str(num_parameters),
        **{key: value for key, value in settings.items() if key in _ALWAYS or key in changed},
    }


def run_name(config: Config) -> str:
    """Return the name of a training in MLflow, such as `vlae-4-4-10-digits-seed0`.

    MLflow permits neither dots nor commas in the names of models.
    """
    model = config.model
    return "-".join([model.name, *map(str, model.latent_dims), config.data.name, f"seed{config.seed}"])


def settings_yaml(settings: Mapping[str, str]) -> str:
    """Return all settings of a training as a YAML preset, which repeats the training even if later defaults differ."""
    return yaml.safe_dump(dict(settings), sort_keys=False)
