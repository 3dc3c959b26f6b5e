"""Explicitness of Ridgeway and Mozer (2018), with scikit-learn."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.reference.representations import Representation


def explicitness(data: Representation) -> float:
    """Return the mean over factors and values of the area under the ROC curve, on test rows."""
    areas = []
    for values, truth in zip(data.train_factors.T, data.test_factors.T, strict=True):
        # Far below the default tolerance, because the golden value is the optimum and not where a solver stops.
        model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=100_000))
        model.fit(data.train_codes.astype(np.float64), values)
        onehot = truth[:, None] == np.unique(values)
        areas.append(roc_auc_score(onehot, model.predict_proba(data.test_codes.astype(np.float64)), average="macro"))
    return float(np.mean(areas))


def golden(data: Representation) -> dict[str, float]:
    """Return the metric of the test rows."""
    return {"explicitness": explicitness(data)}
