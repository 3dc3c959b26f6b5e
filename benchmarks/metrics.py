"""Compare the metrics with their reference definitions in scikit-learn: values, and CPU time of one thread.

    python -m benchmarks.metrics [train=10000] [test=5000] [latents=10] [rounds=5] [dci=true]

Both get the same codes of the factors of dSprites (3, 6, 40, 32, 32 values): latents that mix the factors, and noise.
The reference of DCI takes about six minutes; it runs once, after the others, unless dci=false.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from threadpoolctl import threadpool_limits

from benchmarks.harness import CommonSettings, machine, read_settings, spread, workplace
from benchmarks.reference import dci, explicitness, infomec, information, irs, sap
from benchmarks.reference.beta_vae import beta_vae
from benchmarks.reference.factor_vae import factor_vae
from benchmarks.reference.representations import Representation
from vlae import metrics

_SIZES = (3, 6, 40, 32, 32)
_PACKAGES = ("numpy", "scikit-learn", "numba")
_TARGETS = {"mutual information": 15.0, "SAP": 8.0, "DCI": 15.0}

Values = NDArray[np.float64]


class MetricSettings(CommonSettings):
    """Settings of this benchmark, given as key=value."""

    train: int = Field(10_000, ge=500, description="number of rows that classifiers are fitted to")
    test: int = Field(5_000, ge=500, description="number of rows that classifiers are evaluated on")
    latents: int = Field(10, ge=2, description="number of latents")
    dci: bool = Field(True, description="whether to measure DCI, whose reference takes minutes")


class SyntheticImages:
    """Codes of any factors, for the references of FactorVAE and BetaVAE.

    Args:
        latents: Number of latents D; the first five mix the factors a little, the rest hold copies and noise.
        seed: Random seed for the mixing.
    """

    sizes = _SIZES

    def __init__(self, latents: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._mixing = np.eye(len(_SIZES), latents) + rng.normal(0, 0.2, (len(_SIZES), latents))

    def draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return evenly distributed factors (rows, K)."""
        return np.stack([rng.integers(size, size=rows) for size in self.sizes], axis=1)

    def encode(self, factors: NDArray[np.int64], rng: np.random.Generator) -> Values:
        """Return codes (rows, D)."""
        codes = (2 * factors / (np.array(self.sizes) - 1) - 1) @ self._mixing
        return np.asarray(codes + rng.normal(0, 0.1, codes.shape))


@dataclass(frozen=True)
class Comparison:
    """One metric, computed twice.

    Attributes:
        name: Name in the table.
        reference: Returns the values of the reference.
        ours: Returns the values of vlae.metrics.
        tolerance: Largest allowed difference.
        rounds: Number of rounds; None: as set on the command line.
    """

    name: str
    reference: Callable[[], float | list[float] | Values]
    ours: Callable[[], float | list[float] | Values]
    tolerance: float
    rounds: int | None = None


def _comparisons(data: Representation, images: SyntheticImages, settings: MetricSettings) -> list[Comparison]:
    codes, factors, seed = data.train_codes, data.train_factors, settings.seed
    split = (codes, factors, data.test_codes, data.test_factors)

    def info_mec() -> list[float]:
        scores = metrics.info_mec_scores(codes, factors)
        return [scores.infom, scores.infoc, scores.infoe]

    def dci_scores() -> list[float]:
        scores = metrics.dci_scores(*split, seed=seed)
        return [scores.disentanglement, scores.completeness, scores.informativeness]

    comparisons = [
        Comparison(
            "mutual information",
            lambda: information.mutual_information_matrix(codes, factors),
            lambda: metrics.mutual_information(codes, factors),
            1e-6,
        ),
        Comparison("SAP", lambda: sap.golden(data)["sap"], lambda: metrics.sap_score(*split), 2e-3),
        Comparison(
            "explicitness", lambda: explicitness.explicitness(data), lambda: metrics.explicitness_score(*split), 2e-3
        ),
        Comparison("IRS", lambda: irs.irs(codes, factors), lambda: metrics.irs_score(codes, factors), 1e-6),
        Comparison("InfoMEC", lambda: list(infomec.golden(data).values()), info_mec, 5e-3),
        # The references encode new images for every vote; the metrics draw from the rows of the pool.
        Comparison(
            "FactorVAE",
            lambda: factor_vae(images, seed),
            lambda: metrics.factor_vae_score(codes, factors, seed=seed),
            0.05,
        ),
        Comparison(
            "BetaVAE", lambda: beta_vae(images, seed), lambda: metrics.beta_vae_score(codes, factors, seed=seed), 0.02
        ),
        Comparison("DCI", lambda: list(dci.dci(*split, seed).values()), dci_scores, 0.01, rounds=1),
    ]
    return comparisons if settings.dci else comparisons[:-1]


def _table_row(comparison: Comparison, rounds: int) -> str:
    """Return CPU times of both in interleaved rounds, their ratio, and the difference of the values."""
    comparison.ours()  # compiles, and fills the caches
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    values = {}
    for _ in range(comparison.rounds or rounds):
        for side, compute in (("reference", comparison.reference), ("ours", comparison.ours)):
            start = time.process_time()
            values[side] = np.asarray(compute())
            seconds[side].append(time.process_time() - start)
    difference = float(np.abs(values["reference"] - values["ours"]).max())
    ratios = [slow / fast for slow, fast in zip(seconds["reference"], seconds["ours"], strict=True)]
    reference, ours = (spread([1e3 * value for value in seconds[side]]) for side in ("reference", "ours"))
    row = (
        f"{comparison.name:<20}{reference:>28}{ours:>24}{spread(ratios):>22}"
        f"{difference:>12.1e}{comparison.tolerance:>9.0e}"
    )
    target = _TARGETS.get(comparison.name)
    if target is None:
        return row
    return f"{row}  target {target:g}x: {'holds' if median(ratios) >= target else 'does not hold'}"


def main(settings: MetricSettings, folder: Path) -> None:
    """Measure and print the table."""
    print(machine(folder, _PACKAGES))
    images, rng = SyntheticImages(settings.latents, settings.seed), np.random.default_rng(settings.seed)
    factors = images.draw(settings.train + settings.test, rng)
    codes = images.encode(factors, rng).astype(np.float32)
    train = settings.train
    data = Representation(codes[:train], factors[:train], codes[train:], factors[train:])
    shape = f"N = {train:,} / {settings.test:,}, D = {settings.latents}, K = {len(_SIZES)}"
    print(f"{shape}, CPU time of one thread")
    print(f"{'':<20}{'reference, ms':>28}{'ours, ms':>24}{'times faster':>22}{'difference':>12}{'allowed':>9}")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # because the solvers of the references do not always converge
        for comparison in _comparisons(data, images, settings):
            print(_table_row(comparison, settings.rounds), flush=True)


if __name__ == "__main__":
    chosen = read_settings(sys.argv[1:], MetricSettings)
    with workplace(chosen) as working_folder:
        main(chosen, working_folder)
