"""Complexity of factors, against scikit-learn's ridge, and where the answer is known."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from vlae.metrics import factor_complexity
from vlae.metrics.complexity import _predict

RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(0, 4, 800), RNG.integers(0, 5, 800), RNG.integers(0, 2, 800)], axis=1)


def scenes() -> np.ndarray:
    """Factor 0: which of four patches is bright; 1: a level of gray; 2: whether two noisy pixels agree."""
    images = RNG.integers(0, 40, (800, 3, 8, 8), dtype=np.uint8)
    for image, (patch, gray, agree) in zip(images, FACTORS, strict=True):
        image[0, 2 * patch : 2 * patch + 2] = 200
        image[1] += np.uint8(40 * gray)
        sign = RNG.integers(0, 2)
        image[2, 0, :2] = 200 * sign, 200 * (sign if agree else 1 - sign)
    return images


IMAGES = scenes()


def complexity(images: np.ndarray, factors: np.ndarray = FACTORS) -> np.ndarray:
    return factor_complexity(images[:500], factors[:500], images[500:], factors[500:])


def test_linear_factors_are_simple_and_agreement_is_complex() -> None:
    found = complexity(IMAGES)
    assert found[0] < 0.02
    assert found[1] < 0.02  # its contrast is the rank of the level
    assert found[2] > 0.97


def test_neither_the_scale_of_the_images_nor_the_names_of_values_matter() -> None:
    renamed = np.array([7, -3, 12, 0, 5])[FACTORS]
    np.testing.assert_allclose(complexity(IMAGES / 255, renamed), complexity(IMAGES), atol=1e-3)


def test_noise_and_constants() -> None:
    assert (complexity(RNG.normal(size=IMAGES.shape)) > 0.95).all()
    np.testing.assert_allclose(complexity(np.zeros_like(IMAGES)), 1, atol=0.02)
    still = FACTORS.copy()
    still[:, 0], still[500:, 1] = 3, 1
    np.testing.assert_array_equal(np.isnan(complexity(IMAGES, still)), [True, True, False])


def test_dual_ridge_agrees_with_scikit_learn() -> None:
    pixels = IMAGES.reshape(800, -1) / 255
    pixels = pixels - pixels[:500].mean(0)
    gram, cross = pixels[:500] @ pixels[:500].T, pixels[500:] @ pixels[:500].T
    onehot = np.eye(4)[FACTORS[:, 0]]
    model = Ridge(alpha=0.1 * np.trace(gram) / 500).fit(pixels[:500], onehot[:500])
    (found,) = _predict(gram, cross, [onehot[:500]], 0.1)
    np.testing.assert_allclose(found, model.predict(pixels[500:]), atol=1e-6)


def test_score_of_two_values_is_scikit_learns() -> None:
    """Two values have one contrast. With the penalty of the answer unknown, one of the five must give the value."""
    pixels = IMAGES.reshape(800, -1).astype(float)
    factor = (FACTORS[:, 1:2] > 1) ^ (RNG.random((800, 1)) < 0.2)
    norm = ((pixels[:500] - pixels[:500].mean(0)) ** 2).sum() / 500
    scores = [
        1 - r2_score(factor[500:], Ridge(alpha=penalty * norm).fit(pixels[:500], factor[:500]).predict(pixels[500:]))
        for penalty in (0.01, 0.1, 1.0, 10.0, 100.0)
    ]
    found = complexity(IMAGES, factor.astype(int))[0]
    assert np.abs(np.array(scores) - found).min() < 1e-4
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("values", [4, 12])
def test_the_number_of_values_does_not_matter(values: int) -> None:
    """An angle whose cosine and sine are pixels is simple, and so is a level, in however many steps."""
    angle, level = RNG.integers(0, values, (2, 800))
    images = 0.1 * RNG.normal(size=(800, 1, 4, 4))
    images[:, 0, 0, 0] += np.cos(2 * np.pi * angle / values)
    images[:, 0, 0, 1] += np.sin(2 * np.pi * angle / values)
    images[:, 0, 1, 0] += level / values
    found = complexity(images, np.stack([angle, level], axis=1))
    assert found[0] == pytest.approx(0.02, abs=0.02)  # noise of 0.1 beside a cosine's variance of a half
    noise = 0.01 / (0.01 + (values**2 - 1) / 12 / values**2)
    assert found[1] == pytest.approx(noise, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": IMAGES[:499]}, r"\(499, 3, 8, 8\), \(500, 3\)"),
        ({"train_images": IMAGES[:500, 0]}, r"\(500, 8, 8\)"),
        ({"test_images": IMAGES[500:, :, :4]}, r"agree but for N, got images .*\(300, 3, 4, 8\)"),
        ({"test_factors": FACTORS[500:, :2]}, r"agree but for N.*\(300, 2\)"),
        ({"test_images": np.full((300, 3, 8, 8), np.nan)}, "not finite"),
        ({"train_images": IMAGES[:3], "train_factors": FACTORS[:3]}, r"at least 4 train images, got \(3, 3, 8, 8\)"),
    ],
)
def test_bad_images_are_named(change: dict[str, np.ndarray], message: str) -> None:
    good = {
        "train_images": IMAGES[:500],
        "train_factors": FACTORS[:500],
        "test_images": IMAGES[500:],
        "test_factors": FACTORS[500:],
    }
    with pytest.raises(ValueError, match=message):
        factor_complexity(**(good | change))
