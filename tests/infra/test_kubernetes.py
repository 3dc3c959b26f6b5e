"""The rendered overlays against Kubernetes' own schemas and the fields of KubeRay's, and what holds them together."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers.kuberay import ClusterSpec, RayCluster, RayJob
from helpers.kustomize import Manifest, pod_templates, render
from pydantic import ValidationError

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"
KUBERNETES = "1.34.0"
MODELS = {"RayCluster": RayCluster, "RayJob": RayJob}
GPUS = {"small": 1, "large": 16}


@pytest.fixture(scope="module", params=sorted(GPUS))
def overlay(request: pytest.FixtureRequest) -> tuple[str, list[Manifest]]:
    return request.param, render(FOLDER / "overlays" / request.param)


@pytest.fixture
def manifests(overlay: tuple[str, list[Manifest]]) -> list[Manifest]:
    return overlay[1]


def _of(manifests: list[Manifest], kind: str) -> dict[str, Any]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def test_core_objects_have_known_fields_only(manifests: list[Manifest]) -> None:
    core = [manifest for manifest in manifests if manifest["kind"] not in MODELS]
    assert sorted(manifest["kind"] for manifest in core) == [
        *("Deployment", "NetworkPolicy", "NetworkPolicy", "PersistentVolumeClaim", "Service", "Service", "StatefulSet"),
    ]
    for manifest in core:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_ray_objects_have_known_fields_only(manifests: list[Manifest]) -> None:
    for kind, model in MODELS.items():
        for manifest in _of(manifests, kind).values():
            model.model_validate(manifest)
            templates = pod_templates(manifest)
            assert len(templates) == 3
            for template in templates:
                assert set(template) == {"spec"}
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **template}
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_misspelled_field_is_found(manifests: list[Manifest]) -> None:
    spec = _of(manifests, "RayCluster")["vlae"]["spec"]
    with pytest.raises(ValidationError, match="minReplica"):
        ClusterSpec.model_validate({**spec, "workerGroupSpecs": [{**spec["workerGroupSpecs"][0], "minReplica": 1}]})
    service = _of(manifests, "Service")["mlflow"]
    with pytest.raises(kubernetes_validate.ValidationError, match="prts"):
        kubernetes_validate.validate({**service, "spec": {"prts": []}}, KUBERNETES, strict=True)


def test_gpu_workers_scale(overlay: tuple[str, list[Manifest]]) -> None:
    name, manifests = overlay
    stays = _of(manifests, "RayCluster")["vlae"]["spec"]
    job = _of(manifests, "RayJob")["vlae"]["spec"]["rayClusterSpec"]
    least = {"stays": 0, "job": 1}
    for key, spec in {"stays": stays, "job": job}.items():
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        assert (groups["gpu"]["minReplicas"], groups["gpu"]["maxReplicas"]) == (least[key], GPUS[name])
        limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == "1"
    job["workerGroupSpecs"][1]["minReplicas"] = 0
    try:
        assert job == stays  # one description, in raycluster.yaml
    finally:
        job["workerGroupSpecs"][1]["minReplicas"] = 1


def test_every_node_sees_the_workspace(manifests: list[Manifest]) -> None:
    (claim,) = _of(manifests, "PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for kind in MODELS:
        for template in pod_templates(_of(manifests, kind)["vlae"]):
            volumes = {
                volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in template["spec"]["volumes"]
            }
            mounts = template["spec"]["containers"][0]["volumeMounts"]
            assert {mount["mountPath"]: volumes[mount["name"]] for mount in mounts} == {"/workspace": "workspace"}


def test_pods_are_confined_and_carry_no_secret(manifests: list[Manifest]) -> None:
    for template in [template for manifest in manifests for template in pod_templates(manifest)]:
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            tag = container["image"].rpartition(":")[2]
            assert tag not in ("", "latest")
            for variable in container.get("env", []):
                if "PASSWORD" in variable["name"] or "SECRET" in variable["name"]:
                    assert set(variable) == {"name", "valueFrom"}
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]
    autoscaler = _of(manifests, "RayCluster")["vlae"]["spec"]["autoscalerOptions"]
    assert autoscaler["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_selectors_find_their_pods(manifests: list[Manifest]) -> None:
    runners = {**_of(manifests, "Deployment"), **_of(manifests, "StatefulSet")}
    pods = {name: runner["spec"]["template"]["metadata"]["labels"] for name, runner in runners.items()}
    for name, service in _of(manifests, "Service").items():
        assert service["spec"]["selector"] == pods[name]
    claim = _of(manifests, "StatefulSet")["postgres"]["spec"]["volumeClaimTemplates"]
    assert [item["metadata"]["name"] for item in claim] == ["data"]


def test_kustomize_itself_renders_the_same(overlay: tuple[str, list[Manifest]]) -> None:
    name, manifests = overlay
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [program, "kustomize", FOLDER / "overlays" / name], check=True, capture_output=True, text=True, timeout=60
    )
    theirs = {
        (manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in yaml.safe_load_all(done.stdout)
    }
    assert theirs == {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
