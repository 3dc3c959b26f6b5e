"""What MLflow keeps of a run besides its curves: the params to compare it by, the command that repeats it."""

import shlex
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from jobs.search.config import TuneConfig
from pipeline.settings.parse import SPACE
from pipeline.settings.schema import GROUPS, MAIN_STAGES, STAGES, Config, identity, run_settings, spell

# Shown for every run, whatever they are set to; other settings only where they are not the default.
_ALWAYS = (
    "seed",
    "data",
    "model",
    "model.latent_dims",
    "model.width",
    "objective.beta",
    "train.steps",
    "train.batch_size",
    "train.learning_rate",
)


def changed_settings(config: Config) -> dict[str, str]:
    """The settings that define a training and are not the default, in command-line spelling."""
    chosen = {group: {"name": getattr(config, group).name, **_required(getattr(config, group))} for group in GROUPS}
    default = run_settings(Config.model_validate(chosen)) | {group: getattr(Config(), group).name for group in GROUPS}
    required = {f"{group}.{name}" for group, values in chosen.items() for name in values}
    return {key: value for key, value in run_settings(config).items() if value != default.get(key) or key in required}


def _required(section: BaseModel) -> dict[str, Any]:
    """The settings of a section that have no default."""
    return {name: getattr(section, name) for name, field in type(section).model_fields.items() if field.is_required()}


def command_line(config: Config) -> str:
    """The command that repeats a training and its evaluation, with every setting that is not the default."""
    return _command(f"stage={','.join(MAIN_STAGES)}", changed_settings(config) | _surroundings(config))


def search_command(config: Config) -> str:
    """The command that repeats a search, and trains and evaluates its best."""
    fixed = {key: value for key, value in changed_settings(config).items() if key not in config.tune.param_space}
    return _command(f"stage={','.join(STAGES)}", fixed | _search(config) | _surroundings(config))


def _search(config: Config) -> dict[str, str]:
    """The settings of the search that are not the default."""
    plain, found = TuneConfig(), {f"{SPACE}{key}": text for key, text in config.tune.param_space.items()}
    for key in TuneConfig.model_fields:
        if key != "param_space" and getattr(config.tune, key) != getattr(plain, key):
            found[f"tune.{key}"] = spell(getattr(config.tune, key))
    return found


def search_params(config: Config) -> dict[str, str]:
    """What searches are compared by."""
    searched = {f"{SPACE}{key}": text for key, text in config.tune.param_space.items()}
    return {
        **{f"tune.{key}": value for key, value in identity(config.tune).items() if key != "param_space"},
        **searched,
    }


def evaluation_command(config: Config, model_uri: str) -> str:
    """The command that repeats the evaluation of a registered model on these data."""
    data = {key: value for key, value in changed_settings(config).items() if key.partition(".")[0] == "data"}
    return _command("stage=shard,evaluate", {"model_uri": model_uri, **data, **_surroundings(config)})


def _surroundings(config: Config) -> dict[str, str]:
    """How a model is evaluated, and where everything is kept, where that is not the default."""
    plain, found = Config(), {}
    for name in ("workspace", "storage_path"):
        if getattr(config, name) != getattr(plain, name):
            found[name] = spell(getattr(config, name))
    for name in ("evaluate", "tracking"):
        section, standard = getattr(config, name), getattr(plain, name)
        for key in type(section).model_fields:
            if getattr(section, key) != getattr(standard, key):
                found[f"{name}.{key}"] = spell(getattr(section, key))
    return found


def _command(stage: str, settings: Mapping[str, str]) -> str:
    words = [stage, *(f"{key}={value}" for key, value in settings.items())]
    return shlex.join(["python", "-m", "pipeline.run", *words])


def params(config: Config, num_parameters: int) -> dict[str, str]:
    """What runs are compared by: few and named well, depth and capacity as numbers.

    MLflow draws the first three, by name, as parallel coordinates.
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
    """`vlae-4-4-10-digits-seed0`: in MLflow, names of models can hold neither dots nor commas."""
    model = config.model
    return "-".join([model.name, *map(str, model.latent_dims), config.data.name, f"seed{config.seed}"])


def settings_file(settings: Mapping[str, str]) -> str:
    """All settings of a training as a preset: `preset=settings.yaml` repeats it, whatever later defaults are."""
    return yaml.safe_dump(dict(settings), sort_keys=False)
