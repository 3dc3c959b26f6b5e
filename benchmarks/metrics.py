"""Disentanglement scores: ours beside the reference's definitions with scikit-learn, on one thread, in one run.

    python -m benchmarks.metrics [train=10000] [test=5000] [latents=10] [rounds=5] [boosting=true]

Both get the same codes of the factors of dSprites (3, 6, 40, 32, 32 values): latents that mix the factors, and noise.
The reference of DCI takes minutes; it runs once, after the others, unless boosting=false.
"""

import sys
import time
import warnings
from collections.abc import Callable, Sequence
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
    """Words of the command line, as key=value."""

    train: int = Field(10_000, ge=500, description="rows that classifiers learn from")
    test: int = Field(5_000, ge=500, description="rows that they are scored on")
    latents: int = Field(10, ge=2, description="D")
    boosting: bool = Field(True, description="measure DCI, whose reference takes minutes")


class World:
    """Codes of any factors: what the reference of FactorVAE and BetaVAE draws from.

    Args:
        latents: D; the first half mixes the factors a little, the rest holds copies and noise.
        seed: of the mixing.
    """

    sizes = _SIZES

    def __init__(self, latents: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._mixing = np.eye(len(_SIZES), latents) + rng.normal(0, 0.2, (len(_SIZES), latents))

    def draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Factors (rows, K), evenly."""
        return np.stack([rng.integers(size, size=rows) for size in self.sizes], axis=1)

    def encode(self, factors: NDArray[np.int64], rng: np.random.Generator) -> Values:
        """Codes (rows, D)."""
        centerd = (2 * factors / (np.array(self.sizes) - 1) - 1) @ self._mixing
        return np.asarray(centerd + rng.normal(0, 0.1, centerd.shape))


@dataclass(frozen=True)
class Pair:
    """One score, twice; each side returns values to compare."""

    name: str
    reference: Callable[[], Values]
    ours: Callable[[], Values]
    tolerance: float


def _pairs(data: Representation) -> list[Pair]:
    train, factors = data.train_codes, data.train_factors
    both = (train, factors, data.test_codes, data.test_factors)
    mec = metrics.info_mec_scores
    return [
        Pair(
            "mutual information",
            lambda: information.mutual_information_matrix(train, factors),
            lambda: metrics.mutual_information(train, factors),
            1e-6,
        ),
        Pair(
            "SAP", lambda: np.array(list(sap.golden(data).values())), lambda: np.array([metrics.sap_score(*both)]), 2e-3
        ),
        Pair(
            "explicitness",
            lambda: np.array([explicitness.explicitness(data)]),
            lambda: np.array([metrics.explicitness_score(*both)]),
            2e-3,
        ),
        Pair(
            "IRS",
            lambda: np.array([irs.irs(train, factors)]),
            lambda: np.array([metrics.irs_score(train, factors)]),
            1e-6,
        ),
        Pair(
            "InfoMEC",
            lambda: np.array(list(infomec.golden(data).values())),
            lambda: np.array([(found := mec(train, factors)).infom, found.infoc, found.infoe]),
            5e-3,
        ),
    ]


def _drawing_pairs(data: Representation, world: World, seed: int) -> list[Pair]:
    """Scores that draw: the reference from the world, ours from the rows that are there."""
    train, factors = data.train_codes, data.train_factors
    return [
        Pair(
            "FactorVAE",
            lambda: np.array([factor_vae(world, seed)]),
            lambda: np.array([metrics.factor_vae_score(train, factors, seed=seed)]),
            0.05,
        ),
        Pair(
            "BetaVAE",
            lambda: np.array([beta_vae(world, seed)]),
            lambda: np.array([metrics.beta_vae_score(train, factors, seed=seed)]),
            0.02,
        ),
    ]


def _dci(data: Representation, seed: int) -> Pair:
    both = (data.train_codes, data.train_factors, data.test_codes, data.test_factors)

    def ours() -> Values:
        found = metrics.dci_scores(*both, seed=seed)
        return np.array([found.disentanglement, found.completeness, found.informativeness])

    return Pair("DCI", lambda: np.array(list(dci.dci(*both, seed).values())), ours, 0.01)


def _ms(seconds: Sequence[float]) -> str:
    return spread([1e3 * value for value in seconds])


def _report(pair: Pair, rounds: int) -> str:
    """Seconds of both, round by round, and how far apart their values are."""
    pair.ours()  # compiled, and its caches warm
    taken: dict[str, list[float]] = {"reference": [], "ours": []}
    values = {}
    for _ in range(rounds):
        for side, run in (("reference", pair.reference), ("ours", pair.ours)):
            start = time.process_time()
            values[side] = run()
            taken[side].append(time.process_time() - start)
    apart = float(np.abs(values["reference"] - values["ours"]).max())
    ratios = [slow / fast for slow, fast in zip(taken["reference"], taken["ours"], strict=True)]
    line = (
        f"{pair.name:<20}{_ms(taken['reference']):>28}{_ms(taken['ours']):>24}{spread(ratios):>22}"
        f"{apart:>10.1e}{pair.tolerance:>9.0e}"
    )
    target = _TARGETS.get(pair.name)
    if target is None:
        return line
    return f"{line}  target {target:g}x: {'holds' if median(ratios) >= target else 'does not hold'}"


def main(settings: MetricSettings, folder: Path) -> None:
    """Measure and print."""
    print(machine(folder, _PACKAGES))
    world, rng = World(settings.latents, settings.seed), np.random.default_rng(settings.seed)
    factors = world.draw(settings.train + settings.test, rng)
    codes = world.encode(factors, rng).astype(np.float32)
    data = Representation(
        codes[: settings.train], factors[: settings.train], codes[settings.train :], factors[settings.train :]
    )
    shape = f"N = {settings.train:,} / {settings.test:,}, D = {settings.latents}"
    print(f"{shape}, K = {len(_SIZES)}, CPU time of one thread")
    print(f"{'':<20}{'reference, ms':>28}{'ours, ms':>24}{'times faster':>22}{'apart':>10}{'allowed':>9}")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reference's solvers
        for pair in (*_pairs(data), *_drawing_pairs(data, world, settings.seed)):
            print(_report(pair, settings.rounds), flush=True)
        if settings.boosting:
            print(_report(_dci(data, settings.seed), 1), flush=True)


if __name__ == "__main__":
    chosen = read_settings(sys.argv[1:], MetricSettings)
    with workplace(chosen) as place:
        main(chosen, place)
