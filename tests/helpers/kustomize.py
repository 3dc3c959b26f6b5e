"""Renders a kustomization as far as ours go: resources, patches, replacements, images; all else is an error."""

import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "replacements", "images", "patches"}


def render(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization, in the order of its resources."""
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(file) <= KNOWN, set(file) - KNOWN
    manifests: list[Manifest] = []
    for name in file["resources"]:
        path = folder / name
        manifests += render(path.resolve()) if path.is_dir() else copy.deepcopy(_documents(path))
    for patch in file.get("patches", []):
        (target,) = _selected(manifests, patch["target"])
        for change in yaml.safe_load(patch["patch"]):
            assert change["op"] == "replace", change
            _replace(target, change["path"].strip("/").split("/"), change["value"])
    for replacement in file.get("replacements", []):
        _copy(manifests, replacement)
    for image in file.get("images", []):
        _rename(manifests, image["name"], image["newName"])
    for manifest in manifests:
        manifest["metadata"]["namespace"] = file["namespace"]
    return manifests


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """All pod templates of a manifest."""
    if isinstance(manifest, list):
        return [template for item in manifest for template in pod_templates(item)]
    if not isinstance(manifest, dict):
        return []
    own = [value for key, value in manifest.items() if key == "template" and "spec" in value]
    return own + [template for key, value in manifest.items() if key != "template" for template in pod_templates(value)]


def _documents(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text()))


def _selected(manifests: list[Manifest], target: dict[str, str]) -> list[Manifest]:
    assert set(target) == {"kind", "name"}, target
    return [item for item in manifests if (item["kind"], item["metadata"]["name"]) == (target["kind"], target["name"])]


def _replace(tree: Any, path: list[str], value: Any) -> None:
    """As JSON patch has it: what is replaced must be there."""
    *way, last = (int(part) if part.isdigit() else part for part in path)
    for part in way:
        tree = tree[part]
    assert isinstance(tree[last], type(value)), path
    tree[last] = value


def _copy(manifests: list[Manifest], replacement: Manifest) -> None:
    source = replacement["source"]
    (origin,) = _selected(manifests, {"kind": source["kind"], "name": source["name"]})
    for target in replacement["targets"]:
        assert target["options"] == {"create": True}
        (goal,) = _selected(manifests, target["select"])
        for path in target["fieldPaths"]:
            section, name = path.split(".")
            goal[section][name] = copy.deepcopy(origin[source["fieldPath"]])


def _rename(manifests: list[Manifest], name: str, new_name: str) -> None:
    for manifest in manifests:
        for template in pod_templates(manifest):
            for container in template["spec"]["containers"]:
                image, _, tag = container["image"].partition(":")
                if image == name and not container["image"].startswith(new_name):
                    container["image"] = f"{new_name}:{tag}"
