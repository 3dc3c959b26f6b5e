"""Gradient-boosted trees with exact splits, compiled: scikit-learn's classifier, many times faster."""
