"""Settings of the models and of the objective.

A section is a frozen pydantic model: unknown names and values out of range are errors.
Every field carries a description, which is what `--help` prints.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class SettingsModel(BaseModel):
    """Base of every settings section: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def split_commas(value: Any) -> Any:
    """Turn the command line's `3,3,4`, or a single number, into a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


LatentDims = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], ...],
    BeforeValidator(split_commas),
    Field(min_length=1, max_length=16),
]
_Split = BeforeValidator(split_commas)
_Rungs = Field(min_length=1, max_length=16)
PerRung = Annotated[tuple[Annotated[float, Field(ge=0, le=1e4)], ...], _Split, _Rungs]
MmdPerRung = Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], _Split, _Rungs]


def _scale(value: Any) -> Any:
    """A number, or a word that says where it comes from."""
    if value in ("learned", "optimal"):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError("must be a number above 0 and up to 1, or learned, or optimal")
    return number


class BaseModelConfig(SettingsModel):
    """What every model shares, so that a comparison changes the latent structure only."""

    network: Literal["pyramid", "mlp", "small", "medium", "large", "provlae"] = Field(
        "pyramid",
        description="trunk and decoder; small, medium, large: those of the VLAE's code, at width 64 and hidden 1024",
    )
    latent_dims: LatentDims = Field((4, 4, 10), description="latent dimensions per rung, bottom first")
    width: int = Field(24, ge=1, le=4096, description="channels at half resolution; deeper levels are multiples of it")
    hidden_dims: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65536)], ...], BeforeValidator(split_commas), Field(min_length=1)
    ] = Field((256,), description="units of the fully connected layers: one number, or one per rung")
    norm: Literal["group", "batch", "none"] = Field("group", description="normalization of the hidden layers")
    posterior_scale_link: Literal["exp", "sigmoid", "softplus"] = Field(
        "exp", description="from a head to sigma: exp of it, sigmoid (as in the VLAE's code), softplus for its square"
    )
    likelihood: Literal["logistic", "gaussian", "laplace", "bernoulli"] = Field(
        "logistic", description="p(x|z): discretized logistic, Gaussian, Laplace or Bernoulli"
    )
    likelihood_scale: Annotated[float | Literal["learned", "optimal"], BeforeValidator(_scale)] = Field(
        "learned", description="of p(x|z), per channel: a number (pixel range [0, 1]), learned, or each batch's optimum"
    )

    @property
    def units(self) -> tuple[int, ...]:
        """`hidden` for each rung, bottom first."""
        return self.hidden_dims if len(self.hidden_dims) > 1 else self.hidden_dims * len(self.latent_dims)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.hidden_dims) not in (1, len(self.latent_dims)):
            raise ValueError(
                f"model.hidden_dims has {len(self.hidden_dims)} numbers: give one, or one for each of the "
                f"{len(self.latent_dims)} rungs of model.latent_dims"
            )
        if self.likelihood == "bernoulli" and self.likelihood_scale != "learned":
            raise ValueError(
                f"model.likelihood_scale={self.likelihood_scale} has no effect with model.likelihood=bernoulli, which has none"
            )
        if self.likelihood_scale == "optimal" and self.likelihood not in ("gaussian", "laplace"):
            raise ValueError(
                f"model.likelihood_scale=optimal needs model.likelihood=gaussian or laplace, not {self.likelihood}"
            )
        return self


class VlaeConfig(BaseModelConfig):
    """Variational ladder autoencoder: each rung has its own noise and its own depth."""

    name: Literal["vlae"] = "vlae"
    prior_shape: int = Field(
        2,
        ge=2,
        le=8,
        multiple_of=2,
        description="p of the prior exp(-|z/a|^p): 2 is N(0, 1); above it rungs are turned to independent axes",
    )


class BaseStackedConfig(BaseModelConfig):
    """What the models share whose latents are a chain above the image."""

    batch_norm_heads: bool = Field(False, description="batch norm of the heads themselves (the LVAE's recipe)")
    match_params: bool = Field(
        False,
        description="size width and hidden to as many parameters as the vlae of match_latent_dims has, within 5 %",
    )
    match_latent_dims: LatentDims = Field((4, 4, 10), description="the ladder that match_params looks at, bottom first")


class HvaeConfig(BaseStackedConfig):
    """Stacked hierarchical VAE with a bottom-up posterior q(z1|x) q(z2|z1)..."""

    name: Literal["hvae"] = "hvae"
    latent_dims: LatentDims = Field((10, 5, 3), description="latent dimensions per rung, bottom first")


class LvaeConfig(BaseStackedConfig):
    """Ladder VAE: the same stack, with a top-down posterior that merges evidence and prior."""

    name: Literal["lvae"] = "lvae"
    latent_dims: LatentDims = Field((10, 5, 3), description="latent dimensions per rung, bottom first")


class VaeConfig(BaseStackedConfig):
    """Flat VAE: one layer of latents."""

    name: Literal["vae"] = "vae"
    latent_dims: Annotated[LatentDims, Field(max_length=1)] = Field((18,), description="latent dimensions: one number")


ModelConfig = Annotated[VlaeConfig | HvaeConfig | LvaeConfig | VaeConfig, Field(discriminator="name")]
AnyModelConfig = VlaeConfig | HvaeConfig | LvaeConfig | VaeConfig


class ObjectiveConfig(SettingsModel):
    """What is minimized: reconstruction + beta * warm-up * KL and the regularizers, in nats per image."""

    beta: PerRung = Field((1.0,), description="weight of the KL: one number, or one per rung")
    warmup: Literal["linear", "exponential"] = Field(
        "linear", description="how the KL's weight rises: step / warmup_steps, or 1 - exp(-step / warmup_steps)"
    )
    warmup_steps: int = Field(500, ge=0, description="steps of the KL's warm-up; 0: none")
    free_bits: PerRung = Field((0.0,), description="nats of a rung's mean KL that cost nothing; one, or one per rung")
    total_correlation: float = Field(
        0.0, ge=0, le=1e4, description="extra weight of the total correlation of all latents (beta-TCVAE: beta - 1)"
    )
    mmd: MmdPerRung = Field(
        (0.0,), description="weight of the MMD between a rung's posterior samples and its prior; one, or one per rung"
    )
    mmd_decay_steps: int = Field(0, ge=0, description="steps over which the MMD's weights fall to zero; 0: they stay")


class ProgressiveConfig(SettingsModel):
    """Progressive training of a ladder (proVLAE): the top rung first, the others one by one; or from the bottom."""

    stage_steps: int = Field(0, ge=0, description="steps before the next rung is added; 0: all rungs from the start")
    fade_steps: int = Field(5000, ge=0, description="steps over which a new rung is faded in; 0: at once")
    direction: Literal["top", "bottom"] = Field(
        "top",
        description="top: as in proVLAE; bottom: the bottom rung alone, then all, so that what is simple settles there",
    )
    inactive_kl_weight: float = Field(0.5, ge=0, le=1e4, description="weight of the KL of rungs that are not added yet")
