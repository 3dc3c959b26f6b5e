"""Complexity of factors, against scikit-learn's ridge, and where the answer follows from the construction."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from vlae.metrics import factor_complexity
from vlae.metrics.complexity import _predict

FACTORS = np.random.default_rng(0).integers((4, 5, 2), size=(800, 3))


def scenes() -> np.ndarray:
    """Factor 0: which of four patches is bright; 1: a level of gray; 2: whether two noisy pixels agree."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 40, (800, 3, 8, 8), dtype=np.uint8)
    for image, (patch, gray, agree) in zip(images, FACTORS, strict=True):
        image[0, 2 * patch : 2 * patch + 2] = 200
        image[1] += np.uint8(40 * gray)
        sign = rng.integers(0, 2)
        image[2, 0, :2] = 200 * sign, 200 * (sign if agree else 1 - sign)
    return images


IMAGES = scenes()


def complexity(images: np.ndarray, factors: np.ndarray = FACTORS) -> np.ndarray:
    return factor_complexity(images[:500], factors[:500], images[500:], factors[500:])


def test_complexity_linear_factors_are_simple() -> None:
    """Factors that are linear in the pixels are near 0, the agreement of two pixels is near 1."""
    result = complexity(IMAGES)
    assert result[0] < 0.02
    assert result[1] < 0.02  # its contrast is the rank of the level
    assert result[2] > 0.97


def test_complexity_scale_and_value_names_do_not_matter() -> None:
    """Neither the scale of the images nor the names of the values matter."""
    renamed = np.array([7, -3, 12, 0, 5])[FACTORS]
    np.testing.assert_allclose(complexity(IMAGES / 255, renamed), complexity(IMAGES), atol=1e-3)


def test_complexity_noise_is_one_constant_factors_are_nan() -> None:
    """Noise and constant images are at 1; a factor with one value in either set is NaN."""
    rng = np.random.default_rng(2)
    assert (complexity(rng.normal(size=IMAGES.shape)) > 0.95).all()
    np.testing.assert_allclose(complexity(np.zeros_like(IMAGES)), 1, atol=0.02)
    constant = FACTORS.copy()
    constant[:, 0], constant[500:, 1] = 3, 1
    np.testing.assert_array_equal(np.isnan(complexity(IMAGES, constant)), [True, True, False])


def test_predict_agrees_with_sklearn_ridge() -> None:
    """The dual form predicts what scikit-learn's ridge regression predicts."""
    pixels = IMAGES.reshape(800, -1) / 255
    pixels = pixels - pixels[:500].mean(0)
    gram, cross = pixels[:500] @ pixels[:500].T, pixels[500:] @ pixels[:500].T
    onehot = np.eye(4)[FACTORS[:, 0]]
    model = Ridge(alpha=0.1 * np.trace(gram) / 500).fit(pixels[:500], onehot[:500])
    (result,) = _predict(gram, cross, [onehot[:500]], 0.1)
    np.testing.assert_allclose(result, model.predict(pixels[500:]), atol=1e-6)


def test_complexity_two_values_agree_with_sklearn() -> None:
    """Two values have one contrast; one of the five penalties must give the value."""
    rng = np.random.default_rng(2)
    pixels = IMAGES.reshape(800, -1).astype(float)
    factor = (FACTORS[:, 1:2] > 1) ^ (rng.random((800, 1)) < 0.2)
    norm = ((pixels[:500] - pixels[:500].mean(0)) ** 2).sum() / 500
    scores = [
        1 - r2_score(factor[500:], Ridge(alpha=penalty * norm).fit(pixels[:500], factor[:500]).predict(pixels[500:]))
        for penalty in (0.01, 0.1, 1.0, 10.0, 100.0)
    ]
    result = complexity(IMAGES, factor.astype(int))[0]
    assert np.abs(np.array(scores) - result).min() < 1e-4
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("values", [4, 12])
def test_complexity_number_of_values_does_not_matter(values: int) -> None:
    """An angle whose cosine and sine are pixels is simple, and so is a level, in however many steps."""
    rng = np.random.default_rng(2)
    angle, level = rng.integers(0, values, (2, 800))
    images = 0.1 * rng.normal(size=(800, 1, 4, 4))
    images[:, 0, 0, 0] += np.cos(2 * np.pi * angle / values)
    images[:, 0, 0, 1] += np.sin(2 * np.pi * angle / values)
    images[:, 0, 1, 0] += level / values
    result = complexity(images, np.stack([angle, level], axis=1))
    assert result[0] == pytest.approx(0.02, abs=0.02)  # noise of 0.1 beside a cosine's variance of a half
    noise = 0.01 / (0.01 + (values**2 - 1) / 12 / values**2)
    assert result[1] == pytest.approx(noise, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": IMAGES[:499]}, r"\(499, 3, 8, 8\), \(500, 3\)"),
        ({"train_images": IMAGES[:500, 0]}, r"\(500, 8, 8\)"),
        ({"test_images": IMAGES[500:, :, :4]}, r"\(300, 3, 4, 8\)"),
        ({"test_factors": FACTORS[500:, :2]}, r"\(300, 2\)"),
        ({"test_images": np.full((300, 3, 8, 8), np.nan)}, "images"),
        ({"train_images": IMAGES[:3], "train_factors": FACTORS[:3]}, r"train_images.*\(3, 3, 8, 8\)"),
    ],
)
def test_complexity_invalid_input_raises(change: dict[str, np.ndarray], message: str) -> None:
    """The error names the argument and its shape."""
    valid = {
        "train_images": IMAGES[:500],
        "train_factors": FACTORS[:500],
        "test_images": IMAGES[500:],
        "test_factors": FACTORS[500:],
    }
    with pytest.raises(ValueError, match=message):
        factor_complexity(**(valid | change))


def test_complexity_factor_may_cycle_along_the_rows() -> None:
    factors = np.arange(800)[:, None] % 4
    images = np.random.default_rng(2).normal(0, 0.1, (800, 1, 2, 2))
    images[np.arange(800), 0, factors[:, 0] // 2, factors[:, 0] % 2] += 1
    assert complexity(images, factors)[0] < 0.05
