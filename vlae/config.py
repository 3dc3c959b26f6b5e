"""Settings of the models and of the objective.

A section is a frozen pydantic model: unknown names and values out of range are errors.
Every field carries a description, which is what `--help` prints.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Base of every settings section: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def split_commas(value: Any) -> Any:
    """Turn the command line's `3,3,4`, or a single number, into a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def none_word(value: Any) -> Any:
    """Turn the command line's `none` into None."""
    return None if value == "none" else value


LatentDims = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], ...],
    BeforeValidator(split_commas),
    Field(min_length=1, max_length=16),
]


class _ModelSection(Section):
    """What every model shares, so that a comparison changes the latent structure only."""

    width: int = Field(24, ge=1, le=4096, description="channels at half resolution; doubled at each halving")
    hidden: int = Field(256, ge=1, le=65536, description="units of each fully connected layer")
    norm: Literal["group", "none"] = Field("group", description="normalisation after each hidden layer")
    likelihood: Literal["logistic", "gaussian", "bernoulli"] = Field(
        "logistic", description="p(x|z): discretised logistic, Gaussian or Bernoulli"
    )
    scale: Annotated[float | None, BeforeValidator(none_word)] = Field(
        None, gt=0, le=1, description="fixed scale of p(x|z), pixel range [0, 1]; none: one per channel is learned"
    )


class VlaeConfig(_ModelSection):
    """Variational ladder autoencoder: each rung has its own noise and its own depth."""

    name: Literal["vlae"] = "vlae"
    latent_dims: LatentDims = Field((4, 4, 10), description="latent dimensions per rung, bottom first")


class HvaeConfig(_ModelSection):
    """Stacked hierarchical VAE with a bottom-up posterior q(z1|x) q(z2|z1)..."""

    name: Literal["hvae"] = "hvae"
    latent_dims: LatentDims = Field((10, 5, 3), description="latent dimensions per rung, bottom first")


ModelConfig = Annotated[VlaeConfig | HvaeConfig, Field(discriminator="name")]


class ObjectiveConfig(Section):
    """What is minimised: reconstruction + beta * warm-up * KL, in nats per image."""

    beta: float = Field(1.0, ge=0, le=1e4, description="weight of the KL term")
    warmup_steps: int = Field(500, ge=0, description="steps over which the KL weight rises linearly from 0 to beta")
