"""Rate of each rung in nats, and its number of active latents."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Floats

# Mean KL in nats above which a latent is active, beyond the KL of a collapsed latent where that is not 0: Sonderby et
# al., "Ladder Variational Autoencoders", NeurIPS 2016, arXiv:1602.02282.
SONDERBY_ACTIVE_KL = 0.01


def rates(kl_dims: Sequence[Array]) -> Floats:
    """Compute the rate of each rung, R_l = E_x KL(q(z_l|x) || p(z_l)).

    Args:
        kl_dims: KL of each image and latent in nats, one (N, D_l) float per rung, bottom first.

    Returns:
        Nats per image (L,), at least 0 where the KL is exact; 0 for a rung without latents.

    Raises:
        ValueError: There are no rungs, they are not matrices with the same N > 0, or values are not finite.

    Example:
        >>> rates([np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[0.5], [0.5]])])
        array([2. , 0.5])
    """
    _check(kl_dims)
    return np.array([float(rung.sum(axis=1, dtype=np.float64).mean()) for rung in kl_dims])


def active_units(kl_dims: Sequence[Array], *, threshold: float = SONDERBY_ACTIVE_KL) -> NDArray[np.int64]:
    """Count the active latents of each rung, those whose mean KL exceeds a threshold.

    Args:
        kl_dims: KL of each image and latent in nats, one (N, D_l) float per rung, bottom first.
        threshold: Threshold in nats.

    Returns:
        Counts (L,) in 0..D_l.

    Raises:
        ValueError: As `rates`.

    References:
        Sonderby et al., "Ladder Variational Autoencoders", NeurIPS 2016, arXiv:1602.02282.

    Example:
        >>> active_units([np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[0.5], [0.5]])])
        array([1, 1])
    """
    _check(kl_dims)
    return np.array([int((rung.mean(axis=0, dtype=np.float64) > threshold).sum()) for rung in kl_dims], dtype=np.int64)


def _check(kl_dims: Sequence[Array]) -> None:
    shapes = [rung.shape for rung in kl_dims]
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or len({shape[:1] for shape in shapes}) != 1:
        raise ValueError(f"kl_dims: got shapes {shapes}. Pass arrays (N, D_l) with the same N > 0.")
    if not all(np.isfinite(rung).all() for rung in kl_dims):
        raise ValueError("kl_dims: some values are not finite. Pass finite KL.")
