"""The cluster of EC2 nodes, as Ray's own launcher reads it, without a network."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (Path(__file__).parents[2] / "infra" / "aws" / "cluster.yaml").read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    """Filled up with Ray's defaults for AWS."""
    return prepare_config(yaml.safe_load(TEXT))


def test_ray_takes_it(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    with pytest.raises(ValidationError, match="spot_workers"):
        validate_config({**cluster, "spot_workers": True})


def test_workers_are_spot_and_start_from_none(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["head"]["max_workers"] == 0
    for name in ("cpu", "gpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
    assert cluster["max_workers"] == sum(kind["max_workers"] for kind in types.values())
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_nothing_of_ray_s_defaults_is_installed(cluster: dict[str, Any]) -> None:
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert cluster[key] == []


def test_every_node_has_a_role_and_no_key(cluster: dict[str, Any]) -> None:
    nodes = {name: kind["node_config"] for name, kind in cluster["available_node_types"].items()}
    roles = {name: node["IamInstanceProfile"]["Name"] for name, node in nodes.items()}
    assert roles == {"head": "vlae-head", "cpu": "vlae-worker", "gpu": "vlae-worker"}
    assert "AWS_SECRET_ACCESS_KEY" not in TEXT
    assert all(node["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] for node in nodes.values())


def test_every_container_sees_the_workspace_and_the_token(cluster: dict[str, Any]) -> None:
    docker = cluster["docker"]
    assert "--volume=/workspace:/workspace" in docker["run_options"]
    assert any("/workspace" in command and "nfs4" in command for command in cluster["initialization_commands"])
    assert "--env=RAY_AUTH_MODE=token" in docker["run_options"]
    (folder,) = cluster["file_mounts"]
    assert f"--env=RAY_AUTH_TOKEN_PATH={folder}/auth_token" in docker["run_options"]
    gpu = cluster["available_node_types"]["gpu"]["docker"]["worker_image"]
    assert (docker["head_image"].rpartition("-")[2], gpu.rpartition("-")[2]) == ("cpu", "cuda")
    assert docker["head_image"] == docker["worker_image"]
