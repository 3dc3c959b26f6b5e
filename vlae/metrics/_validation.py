"""What the scores take, and what they refuse."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Factors = NDArray[np.integer]


_LIVE = 1e-2


def live(codes: Array) -> NDArray[np.bool_]:
    """Whether each latent of posterior means (N, D) varies, by more than 0.01: (D,) (Li et al. 2020)."""
    return np.asarray(codes.var(axis=0) > _LIVE)


def check_codes(codes: Array) -> None:
    """Refuse what no score is defined for.

    Raises:
        ValueError: not a matrix (N, D), no rows, or codes that are not finite.
    """
    if codes.ndim != 2 or not len(codes):
        raise ValueError(f"codes must be (N, D) with N > 0, got {codes.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("codes hold values that are not finite")


def check_rows(codes: Array, factors: Factors) -> None:
    """Refuse what no score of codes and factors is defined for.

    Raises:
        ValueError: not two matrices with as many rows, no rows, factors that are no integers, or codes that are
            not finite.
    """
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or not len(codes):
        raise ValueError(
            f"codes (N, D) and factors (N, K) must have the same N > 0, got {codes.shape}, {factors.shape}"
        )
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be integers, got {factors.dtype}")
    check_codes(codes)


def varies(values: Factors) -> NDArray[np.bool_]:
    """Whether each column of (N, K), or the one of (N,), takes more than one value; np.ptp overflows small integers."""
    return np.asarray(values.max(axis=0) > values.min(axis=0))


def check_split(
    train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors, *, latents: int = 1
) -> None:
    """Refuse train and test rows that do not belong together.

    Raises:
        ValueError: as `check_rows` for either, other numbers of latents or factors in the two, or fewer than `latents`.
    """
    check_rows(train_codes, train_factors)
    check_rows(test_codes, test_factors)
    agree = train_codes.shape[1] == test_codes.shape[1] and train_factors.shape[1] == test_factors.shape[1]
    if not agree or train_codes.shape[1] < latents:
        wanted = "agree but for N, with D > 0" if latents else "agree but for N"
        raise ValueError(
            f"train and test must {wanted}, got codes {train_codes.shape}, "
            f"{test_codes.shape}, factors {train_factors.shape}, {test_factors.shape}"
        )
