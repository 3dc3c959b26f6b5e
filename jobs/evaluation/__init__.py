"""Metrics, plots and the explorer page of a trained model."""
