"""Rates and active units, against torch's own KL and by hand."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vlae.metrics import active_units, rates


def test_rates_agree_with_torch() -> None:
    """The rates are torch's KL, summed over latents."""
    generator = torch.Generator().manual_seed(0)
    rungs, expected = [], []
    for width in (3, 5):
        mean, log_sigma = (torch.randn(200, width, generator=generator) for _ in range(2))
        kl = 0.5 * (mean**2 + torch.exp(2 * log_sigma) - 1) - log_sigma
        rungs.append(kl.numpy())
        expected.append(kl_divergence(Normal(mean, log_sigma.exp()), Normal(0, 1)).sum(1).mean().item())
    np.testing.assert_allclose(rates(rungs), expected, rtol=1e-5)


def test_active_units_count_by_mean_kl() -> None:
    """A latent is active if its mean KL exceeds the threshold."""
    rare = np.zeros(100)
    rare[0] = 3.0
    rung = np.stack([np.full(100, 0.0101), np.full(100, 0.0099), rare], axis=1)
    np.testing.assert_array_equal(active_units([rung, 0 * rung]), [2, 0])
    np.testing.assert_array_equal(active_units([rung], threshold=0.02), [1])


def test_rates_rung_without_latents_is_zero() -> None:
    """A rung without latents has rate 0 and no active latents."""
    np.testing.assert_array_equal(rates([np.ones((4, 2)), np.ones((4, 0))]), [2, 0])
    np.testing.assert_array_equal(active_units([np.ones((4, 2)), np.ones((4, 0))]), [2, 0])


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ([], r"\[\]"),
        ([np.ones((4, 2)), np.ones((5, 2))], r"\(4, 2\), \(5, 2\)"),
        ([np.ones(4)], r"\(4,\)"),
        ([np.ones((0, 2))], r"\(0, 2\)"),
        ([np.full((4, 2), np.nan)], "kl_dims"),
    ],
)
def test_rates_invalid_kl_raises(rungs: list[np.ndarray], message: str) -> None:
    """The error names the shapes."""
    for metric in (rates, active_units):
        with pytest.raises(ValueError, match=message):
            metric(rungs)
