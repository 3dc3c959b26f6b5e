"""Settings of the search."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jobs.config import EXECUTION
from jobs.evaluation.registry import ObjectiveMetric
from jobs.search.space import Range, parse_dimension
from vlae.config import SettingsModel, split_commas


def _format_space(value: Any) -> Any:
    """Return the lists of a preset as the command line spells them: [[18], [9, 9]] is 18/9,9."""
    if not isinstance(value, dict):
        return value

    def join(item: Any, separator: str) -> str:
        return separator.join(map(str, item)) if isinstance(item, list | tuple) else str(item)

    return {
        key: join([join(choice, ",") for choice in item] if isinstance(item, list | tuple) else item, "/")
        for key, item in sorted(value.items())
    }


def _check_space(space: dict[str, str]) -> dict[str, str]:
    """Validate a space and drop its empty dimensions, which take a setting of a preset out of it."""
    space = {key: text for key, text in space.items() if text}
    for key, text in space.items():
        try:
            parse_dimension(text)
        except ValueError as error:
            raise ValueError(f"tune.param_space.{key}={error}") from None
    return space


def _check_unique(objectives: tuple[ObjectiveMetric, ...]) -> tuple[ObjectiveMetric, ...]:
    if len(set(objectives)) < len(objectives):
        raise ValueError("names an objective twice")
    return objectives


class TuneConfig(SettingsModel):
    """The search (stage=tune): each trial is a training with other settings, compared on the validation split."""

    param_space: Annotated[dict[str, str], BeforeValidator(_format_space), AfterValidator(_check_space)] = Field(
        default_factory=dict,
        description="search space: tune.param_space.KEY=a/b/c, low..high or log:low..high for any KEY of a training",
    )
    trials: int = Field(
        12,
        ge=1,
        le=100_000,
        description="maximum number of trials; raising it continues a finished search",
        json_schema_extra=EXECUTION,
    )
    algorithm: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="search algorithm: Optuna's TPE, random sampling, or all points in order"
    )
    objectives: Annotated[
        tuple[ObjectiveMetric, ...], BeforeValidator(split_commas), AfterValidator(_check_unique), Field(min_length=1)
    ] = Field(("elbo",), description="metrics to maximize on validation images; several give a Pareto front")
    steps: int = Field(0, ge=0, description="steps of each trial; 0: train.steps, so the best trial is the final model")
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="early stopping: asha stops trials that are poor in the first objective"
    )
    grace_period: int = Field(
        0,
        ge=0,
        description="steps of each trial before it may be stopped; 0: a ninth of them, at least train.lr_warmup_steps",
    )
    reduction_factor: float = Field(
        3.0,
        gt=1,
        le=100,
        description="ASHA's eta: the best 1/eta of the trials continue at each milestone, grace_period * eta^k steps",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="random seed of the search algorithm")
    select: Literal["best", "all"] = Field(
        "best",
        description="finished trials that the later stages train in full and evaluate",
        json_schema_extra=EXECUTION,
    )
    max_concurrent: int = Field(
        0, ge=0, description="maximum number of concurrent trials; 0: as many as fit", json_schema_extra=EXECUTION
    )

    @model_validator(mode="after")
    def _grid_is_finite(self) -> "TuneConfig":
        for key, text in self.param_space.items():
            dimension = parse_dimension(text)
            if self.algorithm == "grid" and isinstance(dimension, Range) and not dimension.integer:
                raise ValueError(
                    f"tune.param_space.{key}={text}: tune.algorithm=grid needs a finite space. Write choices "
                    "between slashes."
                )
        return self

    def budget(self, steps: int) -> int:
        """Return the steps of each trial: `tune.steps`, or the `steps` of a whole training if that is 0."""
        return self.steps or steps

    def grace(self, steps: int, lr_warmup_steps: int) -> int:
        """Return the steps of each trial before it may be stopped, at most `budget(steps)`.

        The default is not below the warmup of the learning rate, because a small rate looks poor before its end.
        """
        budget = self.budget(steps)
        return min(budget, self.grace_period or max(1, budget // 9, lr_warmup_steps))
