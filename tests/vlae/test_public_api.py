"""The public names of `vlae` and `vlae.models`, and the examples in the docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import vlae
import vlae.models

MODULES = ["vlae", *(module.name for module in pkgutil.walk_packages(vlae.__path__, "vlae."))]


@pytest.mark.parametrize("package", [vlae, vlae.models])
def test_public_names_are_importable(package: object) -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    assert not hasattr(package, "unknown")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
