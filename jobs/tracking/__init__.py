"""MLflow: runs, learning curves, models and the model registry."""
