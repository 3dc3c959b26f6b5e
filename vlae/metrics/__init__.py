"""Metrics of representations as functions of arrays: codes (N, D) float, factors (N, K) int, information in nats.

`*_score` and `*_accuracy` are higher for better codes. Random numbers come from a `seed`, and images are rows.
"""

from vlae.metrics.beta_vae import beta_vae_score
from vlae.metrics.complexity import factor_complexity
from vlae.metrics.dci import DciScores, dci_scores, rung_dci_scores
from vlae.metrics.explicitness import explicitness_score
from vlae.metrics.factor_vae import factor_vae_score
from vlae.metrics.few_labels import few_label_accuracy
from vlae.metrics.frechet import frechet_distance
from vlae.metrics.hierarchy import centroid_complexity_spearman, factor_centroids, rung_compactness, rung_modularity
from vlae.metrics.infomec import InfoMecScores, info_mec_scores
from vlae.metrics.information import (
    dcimig_score,
    jemmig_score,
    mig_per_factor,
    mig_score,
    mig_sup_score,
    modularity_score,
    mutual_information,
)
from vlae.metrics.irs import irs_score
from vlae.metrics.probes import RungProbes, probe_accuracy, probe_rungs
from vlae.metrics.rates import SONDERBY_ACTIVE_KL, active_units, rates
from vlae.metrics.rotation import independent_axes
from vlae.metrics.rung_information import rung_information, rung_mutual_information
from vlae.metrics.sap import sap_score
from vlae.metrics.udr import udr_score
from vlae.metrics.unsupervised import (
    gaussian_total_correlation,
    gaussian_wasserstein_correlation,
    mean_pairwise_mutual_information,
)

__all__ = [
    "SONDERBY_ACTIVE_KL",
    "DciScores",
    "InfoMecScores",
    "RungProbes",
    "active_units",
    "beta_vae_score",
    "centroid_complexity_spearman",
    "dci_scores",
    "dcimig_score",
    "explicitness_score",
    "factor_centroids",
    "factor_complexity",
    "factor_vae_score",
    "few_label_accuracy",
    "frechet_distance",
    "gaussian_total_correlation",
    "gaussian_wasserstein_correlation",
    "independent_axes",
    "info_mec_scores",
    "irs_score",
    "jemmig_score",
    "mean_pairwise_mutual_information",
    "mig_per_factor",
    "mig_score",
    "mig_sup_score",
    "modularity_score",
    "mutual_information",
    "probe_accuracy",
    "probe_rungs",
    "rates",
    "rung_compactness",
    "rung_dci_scores",
    "rung_information",
    "rung_modularity",
    "rung_mutual_information",
    "sap_score",
    "udr_score",
]
