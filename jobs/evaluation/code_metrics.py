"""Metrics of codes against factors: groups of the registry, each of them one task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.evaluation.encode import Array
from jobs.evaluation.inputs import EncodedDataset, Factors, RungFactorMatrix
from jobs.evaluation.registry import Group, Metric, defined_metrics
from vlae.metrics import dci_scores, few_label_accuracy, independent_axes, mig_score, rung_dci_scores, udr_score

_LABEL_COUNTS = (10, 100, 1000)


def compute_metrics(
    metrics: Iterable[Metric], inputs: EncodedDataset | RungFactorMatrix, results: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Return metrics by name, not all finite; an entry that needs more factors than the inputs have is skipped.

    Args:
        metrics: Entries of the registry.
        inputs: Object whose attributes are the inputs of the metrics' functions.
        results: Results that exist already, by entry point of their function.
    """
    computed = dict(results or {})
    values: dict[str, float] = {}
    # One thread of the BLAS, because the products are small and threads would wait for each other.
    with threadpool_limits(1, "blas"):
        for metric in metrics:
            if len(inputs.names) < metric.min_factors:
                continue
            values |= metric.compute(inputs, computed, inputs.names)
            if metric.per_rung and isinstance(inputs, EncodedDataset) and len(inputs.rung_dims) > 1:
                for rung in range(len(inputs.rung_dims)):
                    (value,) = metric.compute(inputs.select_rung(rung), {}, inputs.names).values()
                    values[f"{metric.name}/rung_{rung}"] = value
    return values


def compute_group(group: Group, encoded: EncodedDataset) -> dict[str, float]:
    """Return a group's metrics by name, not all finite."""
    return compute_metrics(defined_metrics(group, encoded.num_images), encoded)


def dci_with_rungs(
    train_codes: Array,
    train_factors: Factors,
    test_codes: Array,
    test_factors: Factors,
    rung_dims: Sequence[int],
    *,
    seed: int,
) -> dict[str, float]:
    """Return DCI of the latents and of the rungs by name, in [0, 1]; the importances of a rung's latents are added.

    Codes are (M, D) and (N, D), factors (M, K) and (N, K). `rung_dims` lists the latents of each rung, bottom first.
    """
    latents = dci_scores(train_codes, train_factors, test_codes, test_factors, seed=seed)
    rung_disentanglement, rung_completeness = rung_dci_scores(latents.importances, rung_dims)
    return {
        "disentanglement": latents.disentanglement,
        "completeness": latents.completeness,
        "informativeness": latents.informativeness,
        "rung_disentanglement": rung_disentanglement,
        "rung_completeness": rung_completeness,
    }


def mig_after_ica(rung_codes: Sequence[Array], factors: Factors) -> float:
    """Return the MIG in [0, 1] of codes (N, D_l) and factors (N, K) after each rung is rotated to independent axes."""
    return mig_score(np.concatenate([independent_axes(codes) for codes in rung_codes], axis=1), factors)


def few_label_accuracies(
    train_codes: Array,
    train_labels: NDArray[np.int64] | None,
    test_codes: Array,
    test_labels: NDArray[np.int64] | None,
    *,
    seed: int,
) -> dict[int, float]:
    """Return the test accuracy in [0, 1] of a classifier by its number of labeled codes: 10, 100 and 1,000, up to M.

    Codes are (M, D) and (N, D), labels (M,) and (N,). Labels are None, and the result empty, without a class factor.
    """
    if train_labels is None or test_labels is None:
        return {}
    return {
        count: few_label_accuracy(train_codes, train_labels, test_codes, test_labels, count=count, seed=seed)
        for count in _LABEL_COUNTS
        if count <= len(train_codes)
    }


def udr_with_siblings(codes: Array, sibling_codes: Sequence[Array]) -> float | None:
    """Return the UDR in [0, 1] of codes (N, D) against the first n codes (n, D) of other models; None without any."""
    if not sibling_codes:
        return None
    return float(udr_score([codes[: len(sibling_codes[0])], *sibling_codes])[0])
