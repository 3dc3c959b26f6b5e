"""Settings of the evaluation."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from jobs.evaluation.registry import ChampionMetric
from vlae.config import SettingsModel, split_commas


def _increasing(steps: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse steps that a chain does not reach in this order."""
    if list(steps) != sorted(set(steps)):
        raise ValueError("must be strictly increasing")
    return steps


class EvaluateConfig(SettingsModel):
    """Metrics and plots of a trained model on the test split."""

    num_images: int = Field(5_000, ge=10, description="maximum number of test images to evaluate")
    iwae_samples: int = Field(
        64, ge=0, description="samples per image of the importance-weighted bound; 0 disables the bound"
    )
    iwae_images: int = Field(64, ge=1, description="maximum number of test images of the importance-weighted bound")
    label_factor: str = Field(
        "",
        description="factor that the class metrics predict; empty: the first of digit, class, shape, ... that exists",
    )
    classifier_steps: int = Field(600, ge=1, description="training steps of the classifier behind the class-flip rates")
    gibbs_steps: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(split_commas), AfterValidator(_increasing)
    ] = Field((1, 5, 20), description="increasing numbers of Gibbs steps after which chains are compared with the data")
    seed: int = Field(0, ge=0, lt=2**63, description="random seed for the images, noise and samples of the evaluation")
    champion_metric: ChampionMetric = Field(
        "elbo", description="metric that selects the registered model with the alias champion; higher wins"
    )
    model_name: str = Field(
        "", pattern=r"^[\w.-]*$", description="name in the model registry; empty: name of the dataset"
    )
