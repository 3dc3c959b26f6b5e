"""Settings of the search."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jobs.data.config import EXECUTION
from jobs.search.space import Range, parse_dimension
from vlae.config import SettingsModel, split_commas

Objective = Literal["elbo", "mig", "mig_sup", "modularity", "rung_compactness", "rung_modularity", "mean_color_gap"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def _spelled(value: Any) -> Any:
    """A preset's lists as the command line spells them: [[18], [9, 9]] is 18/9,9."""
    if not isinstance(value, dict):
        return value
    found = {}
    for key, one in value.items():
        choices = one if isinstance(one, list | tuple) else [one]
        found[key] = "/".join(
            ",".join(map(str, part)) if isinstance(part, list | tuple) else str(part) for part in choices
        )
    return dict(sorted(found.items()))


def _readable(space: dict[str, str]) -> dict[str, str]:
    """Refuse what is no dimension; an empty word takes a setting out of the space."""
    kept = {key: text for key, text in space.items() if text}
    for key, text in kept.items():
        try:
            parse_dimension(text)
        except ValueError as error:
            raise ValueError(f"tune.param_space.{key}={error}") from None
    return kept


def _once(objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
    if len(set(objectives)) < len(objectives):
        raise ValueError("names an objective twice")
    return objectives


class TuneConfig(SettingsModel):
    """The search: trials are trainings of other settings, judged on the validation split; stage=tune."""

    param_space: Annotated[dict[str, str], BeforeValidator(_spelled), AfterValidator(_readable)] = Field(
        default_factory=dict,
        description="tune.param_space.KEY=a/b/c or low..high or log:low..high for any KEY of a model or its training",
    )
    trials: int = Field(
        12,
        ge=1,
        le=100_000,
        description="of the search, at most; more of them go on with it",
        json_schema_extra=EXECUTION,
    )
    algorithm: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="who proposes: Optuna's TPE, chance, or all points one by one"
    )
    objectives: Annotated[
        tuple[Objective, ...], BeforeValidator(split_commas), AfterValidator(_once), Field(min_length=1)
    ] = Field(("elbo",), description="scores to maximize; of several, the Pareto front is reported")
    steps: int = Field(0, ge=0, description="of each trial; 0: train.steps, and the best trial is the finished model")
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha stops early the trials that the first objective is poor in"
    )
    grace_period: int = Field(
        0,
        ge=0,
        description="of each trial before it may be stopped; 0: a ninth of its steps, or the rise of the learning rate",
    )
    reduction_factor: float = Field(
        3.0, gt=1, le=100, description="one in so many goes on at each look, and the looks are so many times apart"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the proposals")
    select: Literal["best", "all"] = Field(
        "best",
        description="finished trials that later stages train in full and evaluate",
        json_schema_extra=EXECUTION,
    )
    max_concurrent: int = Field(
        0, ge=0, description="trials at once; 0: as many as there is room for", json_schema_extra=EXECUTION
    )

    @model_validator(mode="after")
    def _grid_is_finite(self) -> "TuneConfig":
        for key, text in self.param_space.items():
            dimension = parse_dimension(text)
            if self.algorithm == "grid" and isinstance(dimension, Range) and not dimension.integer:
                raise ValueError(
                    f"tune.algorithm=grid needs choices: tune.param_space.{key}={text} is a range, write values between slashes"
                )
        return self

    def budget(self, steps: int) -> int:
        """Steps of each trial, where a whole training has so many."""
        return self.steps or steps

    def grace(self, steps: int, lr_warmup_steps: int) -> int:
        """Steps of each trial before it may be stopped, where a whole training has `steps`.

        Before the end of the learning rate's rise a small rate looks worse than it is.
        """
        budget = self.budget(steps)
        return min(budget, self.grace_period or max(1, budget // 9, lr_warmup_steps))
