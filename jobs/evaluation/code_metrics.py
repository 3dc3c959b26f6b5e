"""Scores of codes against factors by name: one function for each task that the evaluation spreads over a cluster."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.config import EvaluateConfig
from jobs.evaluation.encode import Array
from jobs.evaluation.inputs import FEWEST, EncodedDataset, label_name, probes
from jobs.evaluation.model_metrics import Scores, probe_scores
from vlae.metrics import (
    beta_vae_score,
    dci_scores,
    dcimig_score,
    explicitness_score,
    factor_gaps,
    factor_vae_score,
    few_label_accuracy,
    gaussian_total_correlation,
    gaussian_wasserstein_correlation,
    independent_axes,
    info_mec_scores,
    irs_score,
    jemmig_score,
    mean_pairwise_mutual_information,
    mig_score,
    mig_sup_score,
    modularity_score,
    rung_dci_scores,
    sap_score,
    udr_score,
)

_TEST_ROWS = 5000  # of the classifiers, as many as the literature takes
_LABELS = (10, 100, 1000)

_GAPS = {
    "mig": mig_score,
    "mig_sup": mig_sup_score,
    "modularity": modularity_score,
    "dcimig": dcimig_score,
    "jemmig": jemmig_score,
}
_UNSUPERVISED: dict[str, Callable[[Array], float]] = {
    "total_correlation": gaussian_total_correlation,
    "wasserstein_correlation": partial(gaussian_wasserstein_correlation, normalize=True),
    "pairwise_information": mean_pairwise_mutual_information,
}

Family = Callable[[EncodedDataset, EvaluateConfig], Scores]


def information_scores(encoded: EncodedDataset, config: EvaluateConfig) -> Scores:  # noqa: ARG001  (families look alike)
    """Gaps of mutual information, of all rungs and of each, MIG by factor too; and what needs no factors."""
    scores: Scores = {}
    if encoded.names:
        gaps = factor_gaps(encoded.means, encoded.factors)
        scores |= {f"mig/{factor}": float(gap) for factor, gap in zip(encoded.names, gaps, strict=True)}
        for name, score in _GAPS.items():
            scores |= _all_and_each(name, encoded.codes.means, partial(_against, score, encoded.factors))
        turned = np.concatenate([independent_axes(rung) for rung in encoded.codes.means], axis=1)
        scores["mig_ica"] = mig_score(turned, encoded.factors)
    for name, unsupervised in _UNSUPERVISED.items():
        scores |= _all_and_each(name, encoded.codes.means, unsupervised)
    return scores


def classifier_scores(encoded: EncodedDataset, config: EvaluateConfig) -> Scores:
    """SAP, explicitness, and what a few labels are good for."""
    if not encoded.names:
        return {}
    scores, train, test = {}, encoded.all_train_means, encoded.means[:_TEST_ROWS]
    factors = encoded.factors[:_TEST_ROWS]
    for name, score in (("sap", sap_score), ("explicitness", explicitness_score)):
        scores[name] = score(train, encoded.train_factors, test, factors)
    label = label_name(config.label_factor, encoded.names)
    if label is not None:
        column = encoded.names.index(label)
        known, asked = encoded.train_factors[:, column], factors[:, column]
        for count in _LABELS:
            if count <= len(train):
                accuracy = few_label_accuracy(train, known, test, asked, count=count, seed=config.seed)
                scores[f"few_labels/{count}"] = accuracy
    return scores


def dci_family(encoded: EncodedDataset, config: EvaluateConfig) -> Scores:
    """DCI of the latents, and of the rungs as blocks."""
    if not encoded.names:
        return {}
    found = dci_scores(
        encoded.all_train_means,
        encoded.train_factors,
        encoded.means[:_TEST_ROWS],
        encoded.factors[:_TEST_ROWS],
        seed=config.seed,
    )
    disentanglement, completeness = rung_dci_scores(found.importances, [rung.shape[1] for rung in encoded.codes.means])
    return {
        "dci_disentanglement": found.disentanglement,
        "dci_completeness": found.completeness,
        "dci_informativeness": found.informativeness,
        "dci_disentanglement/rungs": disentanglement,
        "dci_completeness/rungs": completeness,
    }


def intervention_scores(encoded: EncodedDataset, config: EvaluateConfig) -> Scores:
    """What stays and what moves when a factor is held: FactorVAE, BetaVAE, IRS; InfoMEC beside them."""
    if not encoded.names:
        return {}
    means, factors, seed = encoded.means, encoded.factors, config.seed
    mec = info_mec_scores(means[:_TEST_ROWS], factors[:_TEST_ROWS], seed=seed)
    return {
        "factor_vae": factor_vae_score(means, factors, seed=seed, active=encoded.active),
        "beta_vae": beta_vae_score(means, factors, seed=seed),
        "irs": irs_score(means, factors),
        "infom": mec.infom,
        "infoc": mec.infoc,
        "infoe": mec.infoe,
    }


def probe_family(encoded: EncodedDataset, config: EvaluateConfig) -> Scores:
    """What a classifier reads from the samples of each rung, and UDR where models of other seeds are there."""
    found = probes(encoded.train_samples, encoded.train_factors, encoded.codes.samples, encoded.factors, config.seed)
    scores = probe_scores(found, encoded.names)
    if encoded.siblings:
        rows = len(encoded.siblings[0])
        scores["udr"] = float(udr_score([encoded.means[:rows], *encoded.siblings])[0])
    return scores


# The longest first: it then runs beside all the others.
METRIC_GROUPS: tuple[Family, ...] = (
    dci_family,
    probe_family,
    intervention_scores,
    classifier_scores,
    information_scores,
)


def compute_group(family: Family, encoded: EncodedDataset, config: EvaluateConfig) -> Scores:
    """The scores of one family; none where there are too few images for any to mean something.

    The BLAS has one thread, since its products are small and would wait for it.
    """
    if min(len(encoded.factors), len(encoded.train_factors)) < FEWEST:
        return {}
    with threadpool_limits(1, "blas"):
        return family(encoded, config)


def _all_and_each(name: str, rungs: Sequence[Array], score: Callable[[Array], float]) -> Scores:
    """A score of all rungs together, and as `name/rung_0` of each alone."""
    scores = {name: score(np.concatenate(rungs, axis=1))}
    if len(rungs) > 1:
        scores |= {f"{name}/rung_{level}": score(codes) for level, codes in enumerate(rungs)}
    return scores


def _against(score: Callable[[Array, NDArray[np.int64]], float], factors: NDArray[np.int64], codes: Array) -> float:
    return score(codes, factors)
