"""What each rung costs: its rate in nats, and how many of its latents are in use."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array

ACTIVE = 0.01  # nats: a latent whose mean KL is not as much above that of an idle one is not in use


def _checked(kl_dims: Sequence[Array]) -> None:
    shapes = [rung.shape for rung in kl_dims]
    if (
        not shapes
        or any(len(shape) != 2 or not shape[0] for shape in shapes)
        or len({shape[0] for shape in shapes}) > 1
    ):
        raise ValueError(f"the rungs' KL (N, D_l) must have the same N > 0, got {shapes}")
    if not all(np.isfinite(rung).all() for rung in kl_dims):
        raise ValueError("KL holds values that are not finite")


def rates(kl_dims: Sequence[Array]) -> NDArray[np.float64]:
    """Rate R_l = E KL(q(z_l|x) || p(z_l)) of each rung in nats per image, (L,).

    Args:
        kl_dims: one (N, D_l) float per rung, bottom first: KL of each image and latent, nats.

    Returns:
        (L,) float64, >= 0 where the KL are exact; 0 for a rung with no latents.

    Raises:
        ValueError: no rungs, not matrices with the same N > 0, or values that are not finite.
    """
    _checked(kl_dims)
    return np.array([float(rung.sum(axis=1, dtype=np.float64).mean()) for rung in kl_dims])


def active_units(kl_dims: Sequence[Array], *, threshold: float = ACTIVE) -> NDArray[np.int64]:
    """How many latents of each rung have a mean KL above `threshold` nats, (L,) int, 0..D_l.

    Args:
        kl_dims: one (N, D_l) float per rung, bottom first: KL of each image and latent, nats.
        threshold: nats.

    Raises:
        ValueError: as `rates`.
    """
    _checked(kl_dims)
    return np.array([int((rung.mean(axis=0, dtype=np.float64) > threshold).sum()) for rung in kl_dims], dtype=np.int64)
