"""An evaluation in the test's own process: the tasks of `jobs.evaluate.run_evaluation`, without Ray."""

from jobs.data.dataset import ShardedDataset
from jobs.evaluate import Evaluation, draw, merge_metrics
from jobs.evaluation.code_metrics import compute_group
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.inputs import encode_splits
from jobs.evaluation.model_metrics import model_metrics
from jobs.evaluation.registry import METRIC_GROUPS
from vlae.models.base import HierarchicalModel


def evaluate_model(
    model: HierarchicalModel, train: ShardedDataset, test: ShardedDataset, config: EvaluateConfig
) -> Evaluation:
    """Return metrics, figures and the explorer page of a model in evaluation mode."""
    encoded = encode_splits(model, train, test, config)
    information, of_model = encoded.information, model_metrics(model, train, test, config)
    figures, explorer = draw(model, test, config, "", encoded, information, of_model)
    groups = [compute_group(group, encoded) for group in METRIC_GROUPS]
    return Evaluation(merge_metrics(encoded, information, of_model, groups), figures, explorer)
