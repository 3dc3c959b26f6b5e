"""The search space as settings: the configuration of a point, of a trial, and whether a space is valid."""

from typing import Any

from jobs.cli import UsageError
from jobs.search.space import Choices, Values, parse_dimension, sample_points
from pipeline.settings.parse import SPACE_PREFIX, apply_overrides, read_preset, searchable_keys
from pipeline.settings.schema import GROUPS, Config

_NUM_POINTS = 500  # points of a space that are validated before anything runs


def point_config(config: Config, values: Values) -> Config:
    """Return the settings of a whole training at a point: those of the command, the point's preset and the point.

    If the point has another model than the command, the settings of the command's model that differ from their defaults
    are kept where the other model has them too, except for latent dimensions and units per rung.

    Raises:
        UsageError: The settings are invalid together, or the preset sets what a search cannot vary.
    """
    overrides: dict[str, Any] = dict(values)
    if "preset" in overrides:
        preset = read_preset(str(overrides.pop("preset")))
        for key in preset:
            if key not in searchable_keys():
                raise UsageError(
                    f"{SPACE_PREFIX}preset={values['preset']}: the preset sets {key}, which all trials of a "
                    "search share. Remove it from the preset."
                )
        overrides = preset | overrides
    model, kept = config.model, {}
    other = str(overrides.get("model", model.name))
    if other != model.name and other in GROUPS["model"]:
        own = {"name", "latent_dims", *(("hidden_dims",) if len(model.hidden_dims) > 1 else ())}
        common = GROUPS["model"][other].model_fields.keys() - own
        for name, field in type(model).model_fields.items():
            if name in common and (value := getattr(model, name)) != field.default:
                kept[f"model.{name}"] = value
    return apply_overrides(config, kept | overrides)


def trial_config(config: Config, values: Values) -> Config:
    """Return the settings of a trial, which has the values of a point and `tune.steps` steps.

    Raises:
        UsageError: The settings are invalid together.
    """
    tune, train = config.tune, config.train
    overrides = {"train.steps": tune.budget(train.steps)}
    if tune.scheduler == "asha":  # because trials report at checkpoints, and asha decides at reports
        grace = tune.grace(train.steps, train.lr_warmup_steps)
        overrides["train.checkpoint_every"] = min(train.checkpoint_every, grace)
    return apply_overrides(point_config(config, values), overrides)


def default_space(config: Config) -> dict[str, str]:
    """Return a space of depth and width around the settings, for a search without `tune.param_space`.

    Depths are 1 to 4 rungs with the total of `model.latent_dims`, of which the upper rungs get the remainder; the
    present depth keeps its latent dimensions. Widths are half, equal to and three halves of `model.width`. Values that
    are invalid with the other settings are left out.

    Example:
        >>> default_space(Config())
        {'model.latent_dims': '18/9,9/4,4,10/4,4,5,5', 'model.width': '12/24/36'}
    """
    model = config.model
    total = sum(model.latent_dims)
    even = {rungs: tuple((total + rung) // rungs for rung in range(rungs)) for rungs in range(1, 5)}
    depths = even | {len(model.latent_dims): model.latent_dims}
    widths = sorted({max(1, model.width // 2), model.width, model.width * 3 // 2})
    candidates = {
        "model.latent_dims": [",".join(map(str, depths[rungs])) for rungs in sorted(depths)],
        "model.width": [str(width) for width in widths],
    }

    def valid(key: str, value: str) -> bool:
        try:
            trial_config(config, {key: value})
        except UsageError:
            return False
        return True

    return {key: "/".join(value for value in values if valid(key, value)) for key, values in candidates.items()}


def resolve_space(config: Config) -> Config:
    """Return the settings; for stage=tune with a checked search space, which is `default_space` if none is set.

    Raises:
        UsageError: A value of the space is invalid with all values of the others that were tried. The message is that
            of the first try.
    """
    if "tune" not in config.stage:
        return config
    if not config.tune.param_space:
        config = apply_overrides(config, {f"{SPACE_PREFIX}{key}": text for key, text in default_space(config).items()})
    if config.tune.steps > config.train.steps:
        raise UsageError(f"tune.steps={config.tune.steps}: more than train.steps={config.train.steps}. Lower it.")
    if "model.likelihood" in config.tune.param_space and "elbo" in config.tune.objectives:
        raise UsageError(
            f"{SPACE_PREFIX}model.likelihood: ELBOs of different likelihoods cannot be compared. Search with one "
            "likelihood, or without elbo in tune.objectives."
        )
    space = {key: parse_dimension(text) for key, text in config.tune.param_space.items()}
    errors: dict[tuple[str, Any], str] = {}
    valid: set[tuple[str, Any]] = set()
    for values in sample_points(space, _NUM_POINTS):
        try:
            trial_config(config, values)
            valid |= set(values.items())
        except UsageError as error:
            errors = {**dict.fromkeys(values.items(), str(error)), **errors}
    for (key, value), reason in errors.items():
        if (key, value) not in valid:
            raise UsageError(f"{SPACE_PREFIX}{key}={value}: invalid with all other values of the space. {reason}")
    return config


def searched_presets(config: Config) -> dict[str, dict[str, Any]]:
    """Return the content of each preset in the space, because a search of other contents is another search."""
    text = config.tune.param_space.get("preset")
    dimension = parse_dimension(text) if text else None
    return {name: read_preset(name) for name in dimension.values} if isinstance(dimension, Choices) else {}
