"""From a model's named terms to the one number that is minimised."""

from torch import Tensor

from vlae.config import ObjectiveConfig
from vlae.models.base import Terms


def kl_weight(config: ObjectiveConfig, step: int) -> float:
    """Weight of the KL at `step`: rises linearly to beta over the warm-up, then stays."""
    if config.warmup_steps == 0:
        return config.beta
    return config.beta * min(1.0, step / config.warmup_steps)


def objective_loss(terms: Terms, weight: float) -> Tensor:
    """Mean over the batch of reconstruction + weight * sum over rungs of KL: scalar, nats per image.

    At weight 1 this is the negative ELBO.
    """
    return (terms.reconstruction + weight * terms.kl.sum(1)).mean()
