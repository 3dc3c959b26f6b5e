"""Checks of the inputs of metrics, and the definition of an active latent."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Factors = NDArray[np.integer]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Variance over the images of a latent's posterior mean above which the latent is active: Burda, Grosse and
# Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, arXiv:1509.00519.
BURDA_ACTIVE_VARIANCE = 1e-2


def active_latents(codes: Array) -> Mask:
    """Return which latents of posterior means (N, D) are active by their variance, (D,)."""
    return np.asarray(codes.var(axis=0) > BURDA_ACTIVE_VARIANCE)


def varies(values: Array | Factors) -> Mask:
    """Return whether each column of (N, K), or the only one of (N,), takes more than one value."""
    # Not np.ptp, because the difference overflows small integer types.
    return np.asarray(values.max(axis=0) > values.min(axis=0))


def check_codes(codes: Array, *, min_latents: int = 0) -> None:
    """Check that codes are a finite matrix.

    Args:
        codes: Codes (N, D) float.
        min_latents: Smallest D.

    Raises:
        ValueError: The codes are not a matrix, have no rows or too few latents, or are not finite.
    """
    if codes.ndim != 2 or not len(codes) or codes.shape[1] < min_latents:
        raise ValueError(f"codes: got shape {codes.shape}. Pass (N, D) with N > 0 and D >= {min_latents}.")
    if not np.isfinite(codes).all():
        raise ValueError(f"codes: {np.count_nonzero(~np.isfinite(codes))} values are not finite. Pass finite codes.")


def check_rows(codes: Array, factors: Factors, *, min_latents: int = 1) -> None:
    """Check that codes and factors describe the same images.

    Args:
        codes: Codes (N, D) float.
        factors: Factors (N, K) int.
        min_latents: Smallest D.

    Raises:
        ValueError: The arrays are not two matrices with as many rows, the factors are not integers, or as
            `check_codes`.
    """
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(
            f"codes, factors: got shapes {codes.shape}, {factors.shape}. Pass (N, D) and (N, K) with the same N."
        )
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors: got dtype {factors.dtype}. Pass integers.")
    check_codes(codes, min_latents=min_latents)


def check_split(
    train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors, *, min_latents: int = 1
) -> None:
    """Check that train and test rows have the same latents and factors.

    Args:
        train_codes: Codes (N, D) float.
        train_factors: Factors (N, K) int.
        test_codes: Codes (M, D) float.
        test_factors: Factors (M, K) int.
        min_latents: Smallest D.

    Raises:
        ValueError: As `check_rows` for either, or D or K differ.
    """
    check_rows(train_codes, train_factors, min_latents=min_latents)
    check_rows(test_codes, test_factors, min_latents=min_latents)
    if train_codes.shape[1] != test_codes.shape[1] or train_factors.shape[1] != test_factors.shape[1]:
        raise ValueError(
            f"train, test: got codes {train_codes.shape}, {test_codes.shape} and factors {train_factors.shape}, "
            f"{test_factors.shape}. Pass the same D and K."
        )
