"""Settings of the models and of the objective.

Every section is a frozen pydantic model: an unknown name or a value out of range is an error. The description of a
field is its line in `--help`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class SettingsModel(BaseModel):
    """Base class of every settings section: immutable, no unknown names, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def split_commas(value: Any) -> Any:
    """Return the items of `3,3,4`, or a single number, as a list; any other value is returned unchanged.

    Example:
        >>> split_commas("3, 3,4"), split_commas(7)
        (['3', '3', '4'], [7])
    """
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    return [value] if isinstance(value, int | float) else value


_Split = BeforeValidator(split_commas)
_Rungs = Field(min_length=1, max_length=16)
LatentDims = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], _Split, _Rungs]
PerRung = Annotated[tuple[Annotated[float, Field(ge=0, le=1e4)], ...], _Split, _Rungs]
MmdPerRung = Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], _Split, _Rungs]


def _parse_scale(value: Any) -> Any:
    """Return a scale in (0, 1] as a float, or the name of the rule that sets the scale."""
    if value in ("learned", "optimal"):
        return value
    try:
        scale = float(value)
    except (TypeError, ValueError):
        scale = 0.0
    if not 0 < scale <= 1:
        raise ValueError("must be a number above 0 and up to 1, or learned, or optimal")
    return scale


class BaseModelConfig(SettingsModel):
    """Settings that every model has, so that a comparison changes only the latent structure."""

    network: Literal["pyramid", "mlp", "small", "medium", "large", "provlae"] = Field(
        "pyramid",
        description="Encoder and decoder; small, medium and large are the VLAE paper's at width=64, hidden_dims=1024",
    )
    latent_dims: LatentDims = Field((4, 4, 10), description="Latent dimensions of each rung, bottom first")
    width: int = Field(24, ge=1, le=4096, description="Channels at half resolution; deeper levels have multiples")
    hidden_dims: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], _Split, Field(min_length=1)] = Field(
        (256,), description="Units of the fully connected layers: one value, or one per rung"
    )
    norm: Literal["group", "batch", "none"] = Field("group", description="Normalization of the hidden layers")
    posterior_scale_link: Literal["exp", "sigmoid", "softplus"] = Field(
        "exp", description="Sigma from a head's output h: exp(h), sigmoid(h) (VLAE's code), sqrt(softplus(h)) (LVAE)"
    )
    likelihood: Literal["logistic", "gaussian", "laplace", "bernoulli"] = Field(
        "logistic", description="Distribution p(x|z) of a pixel: discretized logistic, Gaussian, Laplace or Bernoulli"
    )
    likelihood_scale: Annotated[float | Literal["learned", "optimal"], BeforeValidator(_parse_scale)] = Field(
        "learned",
        description="Scale of p(x|z) per channel, in pixel range [0, 1]: a number, learned, or optimal per batch",
    )

    @property
    def hidden_dims_per_rung(self) -> tuple[int, ...]:
        """Units of the fully connected layers of each rung, bottom first."""
        return self.hidden_dims if len(self.hidden_dims) > 1 else self.hidden_dims * len(self.latent_dims)

    @model_validator(mode="after")
    def _validate_combination(self) -> Self:
        if len(self.hidden_dims) not in (1, len(self.latent_dims)):
            raise ValueError(
                f"model.hidden_dims: {len(self.hidden_dims)} values for {len(self.latent_dims)} rungs. "
                "Set one value, or one per rung of model.latent_dims."
            )
        if self.likelihood == "bernoulli" and self.likelihood_scale != "learned":
            raise ValueError(
                f"model.likelihood_scale={self.likelihood_scale}: model.likelihood=bernoulli has no scale. "
                "Remove model.likelihood_scale."
            )
        if self.likelihood_scale == "optimal" and self.likelihood not in ("gaussian", "laplace"):
            raise ValueError(
                f"model.likelihood_scale=optimal: not available for model.likelihood={self.likelihood}. "
                "Set model.likelihood=gaussian or model.likelihood=laplace."
            )
        return self


class VlaeConfig(BaseModelConfig):
    """Variational ladder autoencoder: each rung has its own depth, and rungs are independent given the image."""

    name: Literal["vlae"] = "vlae"
    prior_shape: int = Field(
        2,
        ge=2,
        le=8,
        multiple_of=2,
        description="Exponent p of the prior exp(-|z/a|^p): 2 is N(0, 1); with p > 2 each rung learns a rotation",
    )


class BaseStackedConfig(BaseModelConfig):
    """Settings of the stacked VAEs, whose latents form a chain above the image."""

    batch_norm_heads: bool = Field(False, description="Batch norm of the heads' outputs, as in the LVAE's recipe")
    match_params: bool = Field(
        False, description="Resize width and hidden_dims to the number of parameters of a vlae, within 5 %"
    )
    match_latent_dims: LatentDims = Field(
        (4, 4, 10), description="Latent dimensions of the vlae of match_params, bottom first"
    )


class HvaeConfig(BaseStackedConfig):
    """Stacked hierarchical VAE with a bottom-up posterior q(z_0|x) q(z_1|z_0)..."""

    name: Literal["hvae"] = "hvae"
    latent_dims: LatentDims = Field((10, 5, 3), description="Latent dimensions of each rung, bottom first")


class LvaeConfig(BaseStackedConfig):
    """Ladder VAE: a stacked VAE with a top-down posterior that merges evidence and prior."""

    name: Literal["lvae"] = "lvae"
    latent_dims: LatentDims = Field((10, 5, 3), description="Latent dimensions of each rung, bottom first")


class VaeConfig(BaseStackedConfig):
    """Flat VAE: one layer of latents."""

    name: Literal["vae"] = "vae"
    latent_dims: Annotated[LatentDims, Field(max_length=1)] = Field((18,), description="Number of latent dimensions")


AnyModelConfig = VlaeConfig | HvaeConfig | LvaeConfig | VaeConfig
ModelConfig = Annotated[AnyModelConfig, Field(discriminator="name")]


class ObjectiveConfig(SettingsModel):
    """The training loss: reconstruction + beta * warm-up * KL + regularizers, in nats per image."""

    beta: PerRung = Field((1.0,), description="Weight of the KL: one value for all rungs, or one per rung")
    warmup: Literal["linear", "exponential"] = Field(
        "linear",
        description="Warm-up of the KL's weight: min(1, step / warmup_steps), or 1 - exp(-step / warmup_steps)",
    )
    warmup_steps: int = Field(500, ge=0, description="Steps of the KL's warm-up; 0 gives full weight from the start")
    free_bits: PerRung = Field(
        (0.0,), description="Nats of a rung's mean KL that are not penalized: one value, or one per rung"
    )
    total_correlation: float = Field(
        0.0, ge=0, le=1e4, description="Extra weight of the latents' total correlation (beta - 1 of beta-TCVAE)"
    )
    mmd: MmdPerRung = Field(
        (0.0,), description="Weight of the MMD between a rung's posterior and its prior: one value, or one per rung"
    )
    mmd_decay_steps: int = Field(
        0, ge=0, description="Steps in which the weights of the MMD fall linearly to zero; 0 keeps them constant"
    )


class ProgressiveConfig(SettingsModel):
    """Progressive training of a ladder (proVLAE): rungs are added in stages."""

    stage_steps: int = Field(
        0, ge=0, description="Steps before the next rung is added; 0 trains all rungs from the start"
    )
    fade_steps: int = Field(5000, ge=0, description="Steps in which the gates of a new rung rise from 0 to 1")
    direction: Literal["top", "bottom"] = Field(
        "top",
        description="First rung; top adds the others one by one (proVLAE), bottom adds all others in the second stage",
    )
    inactive_kl_weight: float = Field(0.5, ge=0, le=1e4, description="Weight of the KL of a rung that is not added yet")
