"""Measures of codes, as functions of arrays: codes (N, D) float, factors (N, K) int, nats."""

from vlae.metrics.information import mig_score, mig_sup_score, mutual_information
from vlae.metrics.rungs import rung_information

__all__ = ["mig_score", "mig_sup_score", "mutual_information", "rung_information"]
