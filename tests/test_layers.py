"""Imports: one direction between packages and sub-packages, no cycle, and a light start of the command."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vlae", "jobs", "pipeline")  # each may import itself and earlier ones
# Modules and sub-packages of jobs/: each may import its own layer and earlier ones.
JOBS_LAYERS = (
    ("errors", "cli", "files", "http_limits", "events"),
    ("storage",),
    ("config",),
    ("data",),
    ("cluster", "device"),
    ("checkpoints",),
    ("evaluation",),
    ("training",),
    ("tracking",),
    ("shard", "train", "evaluate"),
    ("search",),
    ("tune",),
)
JOBS_ORDER = {name: layer for layer, names in enumerate(JOBS_LAYERS) for name in names}
STANDALONE = "submit"  # no other part of jobs/ imports it; it imports the first layer alone
VLAE_DEPENDENCIES = {"torch", "numpy", "numba", "scipy", "sklearn", "pydantic", "vlae"}


@cache
def modules() -> dict[str, Path]:
    """Return the file of each module by its dotted name."""
    paths = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def module_imports() -> dict[str, set[str]]:
    """Return, by module, the other modules of this project that it imports."""
    paths = modules()
    return {name: {i for i in imports(path) if i in paths and i != name} for name, path in paths.items()}


@pytest.mark.parametrize("name", sorted(modules()))
def test_module_imports_no_later_package(name: str) -> None:
    """Imports go pipeline -> jobs -> vlae, and vlae knows libraries for arrays only."""
    package = name.partition(".")[0]
    forbidden = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests", "helpers", "servers", "benchmarks", "infra"}
    roots = {imported.partition(".")[0] for imported in imports(modules()[name])}
    assert not roots & forbidden
    if package == "vlae":
        assert {root for root in roots if root not in sys.stdlib_module_names} <= VLAE_DEPENDENCIES


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("jobs.")))
def test_jobs_module_imports_no_later_layer(name: str) -> None:
    """Sub-packages of jobs/ are in one order, and each has a place in it."""
    part = name.split(".")[1]
    imported = {other.split(".")[1] for other in module_imports()[name] if other.startswith("jobs.")} - {part}
    if part == STANDALONE:
        assert imported <= set(JOBS_LAYERS[0])
    else:
        assert part in JOBS_ORDER
        assert {other for other in imported if JOBS_ORDER.get(other, len(JOBS_LAYERS)) > JOBS_ORDER[part]} == set()


def raise_on_cycle(graph: dict[str, set[str]]) -> None:
    """Raise graphlib.CycleError if a graph has a cycle."""
    list(TopologicalSorter(graph).static_order())


def test_modules_have_no_import_cycle() -> None:
    raise_on_cycle(module_imports())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_packages_have_no_import_cycle(depth: int) -> None:
    """Each package at this depth counts as one node with all its modules."""
    graph: dict[str, set[str]] = {}
    for module, imported in module_imports().items():
        node = ".".join(module.split(".")[:depth])
        nodes = {".".join(other.split(".")[:depth]) for other in imported}
        # The __init__ of a package above may collect its own modules.
        below = {other for other in nodes if other.startswith(f"{node}.")}
        graph.setdefault(node, set()).update(nodes - below - {node})
    raise_on_cycle(graph)


@pytest.mark.parametrize("arguments", [["--help"], ["mode=vlae"], ["dry_run=true"]])
def test_command_before_valid_settings_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.run import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'pandas', 'webdataset'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or None)"
    )
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
    assert not list(tmp_path.iterdir())


def test_pyproject_lists_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in modules().values() if path.name == "__init__.py"
    }
    assert packages == set(project["tool"]["setuptools"]["packages"])
