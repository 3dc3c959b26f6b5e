"""The Dockerfile by the rules that linters of such files have, and that it copies what the project is made of."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _instructions() -> list[tuple[str, str]]:
    """Each instruction and its argument, with continued lines joined and comments left out."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def _stages() -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    for instruction, argument in _instructions():
        if instruction == "FROM":
            name = argument.partition(" AS ")[2]
            assert name, "a stage without a name"
            stages[name] = [(instruction, argument)]
        elif stages:
            stages[name].append((instruction, argument))
    return stages


def test_bases_are_pinned() -> None:
    stages = _stages()
    arguments = dict(argument.split("=", 1) for name, argument in _instructions() if name == "ARG")
    for stage in stages.values():
        base = stage[0][1].partition(" AS ")[0]
        if base not in stages:
            base = arguments[base.strip("${}")]
            assert re.fullmatch(r"python:3\.\d+-slim-\w+", base), base
    assert "latest" not in FILE.read_text()


def test_both_targets_end_without_root() -> None:
    stages = _stages()
    assert list(stages)[-2:] == ["cpu", "cuda"]
    for name in ("cpu", "cuda"):
        users = [argument for instruction, argument in stages[name] if instruction == "USER"]
        assert users == ["1000:1000"]  # a number: Kubernetes' runAsNonRoot reads no names
        after = [command for command, _ in stages[name]][[command for command, _ in stages[name]].index("USER") + 1 :]
        assert after == ["CMD"]


def test_layers_are_small_and_cached() -> None:
    for instruction, argument in _instructions():
        assert instruction != "ADD"
        if instruction == "RUN" and "apt-get install" in argument:
            assert argument.startswith("apt-get update &&")
            assert "--no-install-recommends" in argument
            assert "rm -rf /var/lib/apt/lists/*" in argument
        if instruction == "RUN":
            assert "sudo" not in argument
            assert "curl" not in argument
    copied = [argument for name, argument in _stages()["dependencies"] if name == "COPY"]
    assert copied == ["pyproject.toml ./"]  # code does not invalidate what was installed


def test_no_secret_stays_in_a_layer() -> None:
    for instruction, argument in _instructions():
        if instruction in ("ARG", "ENV"):
            assert not re.search(r"(?i)password|secret|token|credential|_key", argument), argument


def test_every_package_of_the_project_is_copied() -> None:
    copied = {argument.split()[0] for name, argument in _stages()["wheel"] if name == "COPY"}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {package.partition(".")[0] for package in packages}
    (metadata,) = [argument for name, argument in _stages()["wheel"] if argument.startswith("pyproject.toml")]
    assert metadata == "pyproject.toml README.md LICENSE ./"  # which its metadata name
    assert folders | {"pyproject.toml"} == copied
    ignored = (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert kept == {*folders, "pyproject.toml", "README.md", "LICENSE"}
    assert "*" in ignored


def test_dependencies_are_read_from_the_project() -> None:
    (command,) = [argument for name, argument in _instructions() if name == "RUN" and "tomllib" in argument]
    assert "not line.startswith('torch>')" in command
    others = [line for line in PROJECT["dependencies"] if not line.startswith("torch>")]
    assert len(others) == len(PROJECT["dependencies"]) - 1
