"""compose.yaml against the Compose specification's schema, and how its services, volumes and secrets fit together."""

import json
import re
from pathlib import Path
from typing import Any

import check_jsonschema
import yaml
from jsonschema import Draft7Validator

FOLDER = Path(__file__).parents[2] / "infra"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
SCHEMA = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
SECRET = re.compile(r"PASSWORD|TOKEN|KEY")


def test_it_has_known_fields_only() -> None:
    schema = Draft7Validator(json.loads(SCHEMA.read_text()))
    assert [error.message for error in schema.iter_errors(COMPOSE)] == []
    assert list(schema.iter_errors({**COMPOSE, "servces": {}})) != []


def test_what_is_waited_for_is_there() -> None:
    for name, service in SERVICES.items():
        for other, when in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            if when["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
            else:
                assert when["condition"] == "service_completed_successfully"
                assert "restart" not in SERVICES[other]


def test_volumes_are_declared_and_used() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {source for source, *_ in mounts} == set(COMPOSE["volumes"])
    for name in ("ray-head", "ray-worker", "ray-worker-gpu"):
        assert SERVICES[name]["volumes"] == ["workspace:/workspace"]


def test_images_are_pinned() -> None:
    """Our own images have a version, those of others also a digest."""
    for name, service in SERVICES.items():
        digest = "" if service["image"].startswith("vlae-pipeline:") else "@sha256:[0-9a-f]{64}"
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*" + digest, service["image"]), name


def test_services_are_confined() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "cap_add" not in service, name
        assert service["mem_limit"], name


def test_ports_are_published_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]


def test_credentials_come_from_the_env_file_alone() -> None:
    required = set(re.findall(r"\$\{(\w+):\?[^}]+\}", TEXT))
    every = set(re.findall(r"\$\{(\w+)", TEXT))
    assert {name for name in every if SECRET.search(name)} == required
    offered = dict(line.split("=", 1) for line in (FOLDER / "env.example").read_text().splitlines() if "=" in line[:20])
    assert set(offered) == every
    assert all(not offered[name] for name in required)
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), key
    assert ".env" in (FOLDER / ".gitignore").read_text().splitlines()


def test_ray_asks_for_its_token_everywhere() -> None:
    for service in SERVICES.values():
        if "ray start" in str(service.get("command")):
            assert service["environment"]["RAY_AUTH_MODE"] == "token"


def test_what_makes_the_buckets_is_python() -> None:
    program = SERVICES["bucket"]["command"]
    assert program[:2] == ["python", "-c"]
    compile(program[2], "compose.yaml", "exec")
    assert "$" not in program[2]  # Compose would put a variable there
    assert re.search(r"s3://mlflow\b", SERVICES["mlflow"]["command"])
