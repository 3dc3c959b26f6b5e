"""The fields of KubeRay's resources that our manifests use, as its CRDs describe them; any other field is an error."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class _Metadata(_Closed):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)
    namespace: str


class _AuthOptions(_Closed):
    mode: Literal["disabled", "token"]


class _AutoscalerOptions(_Closed):
    version: Literal["v1", "v2"]
    upscaling_mode: Literal["Default", "Conservative", "Aggressive"]
    idle_timeout_seconds: int = Field(ge=0)
    resources: dict[Literal["requests", "limits"], dict[str, str]]
    security_context: dict[str, Any]


class _HeadGroup(_Closed):
    ray_start_params: dict[str, str]
    template: dict[str, Any]


class WorkerGroup(_Closed):
    """One kind of workers. `replicas` is left to the autoscaler."""

    group_name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)
    ray_start_params: dict[str, str]
    template: dict[str, Any]

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        assert self.min_replicas <= self.max_replicas
        return self


class ClusterSpec(_Closed):
    """The spec of a RayCluster, and rayClusterSpec of a RayJob."""

    ray_version: str
    auth_options: _AuthOptions
    enable_in_tree_autoscaling: Literal[True]
    autoscaler_options: _AutoscalerOptions
    head_group_spec: _HeadGroup
    worker_group_specs: list[WorkerGroup]


class RayCluster(_Closed):
    """A cluster that stays."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: _Metadata
    spec: ClusterSpec


class _JobSpec(_Closed):
    suspend: Literal[True]
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"]
    backoff_limit: int = Field(ge=0)
    shutdown_after_job_finishes: Literal[True]
    ttl_seconds_after_finished: int = Field(ge=0)
    ray_cluster_spec: ClusterSpec


class RayJob(_Closed):
    """A job with a cluster of its own."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: _Metadata
    spec: _JobSpec
