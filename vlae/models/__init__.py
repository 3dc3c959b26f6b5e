"""Hierarchical models with one interface, `HierarchicalModel`; rung 0 is next to the pixels."""

from vlae.models.base import ElboTerms, HierarchicalModel, Inference
from vlae.models.factory import build_model, num_parameters
from vlae.models.stacked import Hvae, Lvae
from vlae.models.vlae import Vlae

__all__ = ["ElboTerms", "HierarchicalModel", "Hvae", "Inference", "Lvae", "Vlae", "build_model", "num_parameters"]
