"""infra/README.md: its commands are valid, its versions agree, and its cost table adds up."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from jobs.submit.__main__ import parse_arguments
from pipeline.settings.parse import read_config
from pipeline.settings.schema import STAGES

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
README = (INFRA / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_COMMAND = re.compile(r"python -m (pipeline\.run|jobs\.submit)((?:[ \t\\\n]+[\w.]+=[^\s'\"]+)+)")


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command's module and overrides."""
    return [(module, overrides.replace("\\\n", " ").split()) for module, overrides in _COMMAND.findall(text)]


JOB = (INFRA / "kubernetes" / "base" / "rayjob.yaml").read_text()
COMMANDS = _commands(README) + _commands(JOB)


@pytest.mark.parametrize(("module", "overrides"), COMMANDS)
def test_its_commands_have_known_words(module: str, overrides: list[str]) -> None:
    overrides = [override.replace("BUCKET", "bucket") for override in overrides]
    if module == "jobs.submit":
        overrides = list(parse_arguments(overrides, {}).overrides)
    if "tune" not in STAGES:
        overrides = [override.replace("tune,", "") for override in overrides if not override.startswith("tune.")]
    config = read_config(overrides)
    assert str(config.workspace) == "/workspace"
    assert config.tracking.uri
    if config.storage_path:
        assert config.data.cache_dir


def test_all_three_ways_have_a_command() -> None:
    assert [module for module, _ in COMMANDS].count("jobs.submit") == 3
    assert [module for module, _ in COMMANDS].count("pipeline.run") == 2


def test_one_version_of_ray_and_torch() -> None:
    docker = dict(re.findall(r"^ARG (\w+)_VERSION=(\S+)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE))
    allowed = {requirement.name: requirement.specifier for requirement in map(Requirement, PROJECT["dependencies"])}
    for name in ("ray", "torch"):
        assert docker[name.upper()] in allowed[name]
    cluster = yaml.safe_load((INFRA / "kubernetes" / "base" / "raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == docker["RAY"]
    assert PROJECT["optional-dependencies"]["test"].count(f"psycopg2-binary{_psycopg()}") == 1


def _psycopg() -> str:
    (bounds,) = re.findall(r'"psycopg2-binary(\S+)"', (INFRA / "Dockerfile").read_text())
    return str(bounds)


def test_images_carry_the_project_s_version() -> None:
    for path in (path for path in INFRA.rglob("*") if path.is_file()):
        for tag in re.findall(r"vlae-pipeline:([\w.]+)-(?:cpu|cuda)", path.read_text()):
            assert tag == PROJECT["version"], path.name


def test_nothing_here_is_imported() -> None:
    assert list(INFRA.rglob("*.py")) == []


def test_files_that_it_names_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (INFRA / target).exists(), target
    for path in re.findall(r"\b(?:infra|tests)/[\w./-]*\w", README):
        assert (ROOT / path).exists() or path == "infra/.env", path


def test_the_cost_is_the_sum_of_its_prices() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")
    ]
    prices = {row[0].split()[0]: [float(cell) for cell in row[1:]] for row in rows if "an hour" in row[0]}
    sizes = [row for row in rows if len(row) == 7 and row[1].isdigit()]
    assert [row[0] for row in sizes] == ["scaled down", "small", "medium", "large"]
    for row in sizes:
        head, cpus, gpus, storage = map(int, row[1:5])
        disks = (head + cpus + gpus) * prices["gp3,"][0] + storage / 100 * prices["EFS,"][0]
        for market, stated in enumerate(row[5:]):
            workers = cpus * prices["m7i.2xlarge"][market] + gpus * prices["g6.2xlarge"][market]
            assert f"{prices['m7i.2xlarge'][0] * head + workers + disks:.2f}" == stated
