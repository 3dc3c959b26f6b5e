"""The three floors: pipeline -> jobs -> vlae, no cycle, nothing heavy before the settings are valid."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("vlae", "jobs", "pipeline")  # each may import itself and those before it
SCIENCE_MAY_KNOW = {"torch", "numpy", "numba", "scipy", "sklearn", "pydantic", "vlae"}


def modules() -> dict[str, Path]:
    found = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("name", sorted(modules()))
def test_arrow_points_one_way(name: str) -> None:
    floor = name.partition(".")[0]
    forbidden = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"tests", "benchmarks", "infra"}
    roots = {imported.partition(".")[0] for imported in imports(modules()[name])}
    assert not roots & forbidden, f"{name} imports {roots & forbidden}"
    if floor == "vlae":
        outside = {root for root in roots if root not in sys.stdlib_module_names}
        assert outside <= SCIENCE_MAY_KNOW, f"{name} imports {outside - SCIENCE_MAY_KNOW}"


def test_no_import_cycle() -> None:
    known = modules()
    graph = {name: {i for i in imports(path) if i in known and i != name} for name, path in known.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("words", [["--help"], ["mode=vlae"], ["dry_run=true"]])
def test_no_heavy_import_before_the_settings_are_valid(words: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.run import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'pandas', 'webdataset'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in modules().values() if path.name == "__init__.py"
    }
    assert folders == set(project["tool"]["setuptools"]["packages"])
