"""Measures of codes, as functions of arrays: codes (N, D) float, factors (N, K) int, nats."""

from vlae.metrics.complexity import factor_complexity
from vlae.metrics.frechet import frechet_distance
from vlae.metrics.hierarchy import complexity_correlation, level_centroids, rung_compactness, rung_modularity
from vlae.metrics.information import mig_score, mig_sup_score, mutual_information
from vlae.metrics.probes import RungProbes, probe_accuracy, probe_rungs
from vlae.metrics.rates import active_units, rates
from vlae.metrics.rungs import rung_information, rung_mutual_information

__all__ = [
    "RungProbes",
    "active_units",
    "complexity_correlation",
    "factor_complexity",
    "frechet_distance",
    "level_centroids",
    "mig_score",
    "mig_sup_score",
    "mutual_information",
    "probe_accuracy",
    "probe_rungs",
    "rates",
    "rung_compactness",
    "rung_information",
    "rung_modularity",
    "rung_mutual_information",
]
