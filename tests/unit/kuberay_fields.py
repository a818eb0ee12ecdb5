"""What KubeRay 1.7 lets a manifest say: its fields, their types, which must be there.

The custom resource definitions are long and come in no package, so the table below is ours, after KubeRay's API
reference (docs.ray.io, "KubeRay CRD API reference"). Where a field holds something of Kubernetes itself, the schemas of
Kubernetes decide, strictly; `kubernetes-validate` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kubernetes_validate

KUBERNETES = "1.33"

# Type → fields. `name!` is required. A field's type is one of _PLAIN, words to choose from (`a|b`), a type of this
# table or of _of_kubernetes; `[]` makes a list of it.
FIELDS = {
    "RayCluster": "apiVersion!:ray.io/v1 kind!:str metadata!:metadata spec!:RayClusterSpec",
    "RayJob": "apiVersion!:ray.io/v1 kind!:str metadata!:metadata spec!:RayJobSpec",
    "RayService": "apiVersion!:ray.io/v1 kind!:str metadata!:metadata spec!:RayServiceSpec",
    "RayClusterSpec": (
        "upgradeStrategy:RayClusterUpgradeStrategy authOptions:AuthOptions suspend:bool managedBy:str"
        " autoscalerOptions:AutoscalerOptions headServiceAnnotations:texts enableInTreeAutoscaling:bool"
        " gcsFaultToleranceOptions:GcsFaultToleranceOptions headGroupSpec!:HeadGroupSpec rayVersion:str"
        " workerGroupSpecs:WorkerGroupSpec[]"
    ),
    "RayClusterUpgradeStrategy": "type:Recreate|None",
    "AuthOptions": "enableK8sTokenAuth:bool secretName:str mode:disabled|token",
    "AutoscalerOptions": (
        "resources:container image:str imagePullPolicy:container securityContext:container idleTimeoutSeconds:int"
        " upscalingMode:Default|Aggressive|Conservative version:v1|v2 env:container envFrom:container"
        " volumeMounts:container command:str[] args:str[]"
    ),
    "GcsFaultToleranceOptions": (
        "backend:redis|rocksdb redisUsername:RedisCredential redisPassword:RedisCredential"
        " externalStorageNamespace:str redisAddress:str"
    ),
    "RedisCredential": "valueFrom:source value:str",
    "HeadGroupSpec": (
        "template!:template headService:service enableIngress:bool resources:texts labels:texts"
        " rayStartParams:texts serviceType:str"
    ),
    "WorkerGroupSpec": (
        "suspend:bool groupName!:str replicas:int minReplicas!:int maxReplicas!:int idleTimeoutSeconds:int priority:int"
        " resources:texts labels:texts rayStartParams:texts template!:template scaleStrategy:ScaleStrategy"
        " numOfHosts:int"
    ),
    "ScaleStrategy": "workersToDelete:str[]",
    "RayJobSpec": (
        "activeDeadlineSeconds:int backoffLimit:int rayClusterSpec:RayClusterSpec submitterPodTemplate:template"
        " metadata:texts clusterSelector:texts submitterConfig:SubmitterConfig managedBy:str entrypoint:str"
        " runtimeEnvYAML:str jobId:str submissionMode:K8sJobMode|HTTPMode|InteractiveMode|SidecarMode"
        " entrypointResources:str entrypointNumCpus:number entrypointNumGpus:number ttlSecondsAfterFinished:int"
        " preRunningDeadlineSeconds:int shutdownAfterJobFinishes:bool suspend:bool"
    ),
    "SubmitterConfig": "backoffLimit:int",
    "RayServiceSpec": (
        "rayClusterDeletionDelaySeconds:int serveService:service upgradeStrategy:RayServiceUpgradeStrategy"
        " managedBy:str serveConfigV2:str rayClusterConfig:RayClusterSpec excludeHeadPodFromServeSvc:bool suspend:bool"
    ),
    "RayServiceUpgradeStrategy": "type:NewCluster|NewClusterWithIncrementalUpgrade|None",
}

# type(), for a bool is an int to isinstance.
_PLAIN: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "int": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "bool": lambda value: type(value) is bool,
    "texts": lambda value: type(value) is dict and all(type(text) is str for text in value.values()),
}


def problems(resource: dict[str, Any]) -> list[str]:
    """What is wrong with a resource of KubeRay or Kubernetes, each with its place; nothing if all is well."""
    if resource.get("kind") in FIELDS:
        return _problems(resource, resource["kind"], resource["kind"])
    return _ask_kubernetes(resource, str(resource.get("kind")))


def _problems(value: Any, kind: str, where: str) -> list[str]:
    if kind.endswith("[]"):
        if not isinstance(value, list):
            return [f"{where}: a list, not {value!r}"]
        return [found for at, item in enumerate(value) for found in _problems(item, kind[:-2], f"{where}[{at}]")]
    if kind in FIELDS:
        return _problems_of_fields(value, kind, where)
    if stub := _of_kubernetes(kind, where.rpartition(".")[2], value):
        return _ask_kubernetes(stub, where)
    is_well = _PLAIN[kind](value) if kind in _PLAIN else value in kind.split("|")
    return [] if is_well else [f"{where}: {kind}, not {value!r}"]


def _problems_of_fields(value: Any, kind: str, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: a {kind}, not {value!r}"]
    pairs = [field.split(":") for field in FIELDS[kind].split()]
    types = {name.removesuffix("!"): its for name, its in pairs}
    missing = [f"{where}.{name[:-1]} is missing" for name, _ in pairs if name.endswith("!") and name[:-1] not in value]
    unknown = [f"{where}.{name}: a {kind} has no such field" for name in value if name not in types]
    known = [name for name in value if name in types]
    return (
        missing
        + unknown
        + [found for name in known for found in _problems(value[name], types[name], f"{where}.{name}")]
    )


def _of_kubernetes(kind: str, name: str, value: Any) -> dict[str, Any] | None:
    """A whole resource around a part, for only whole ones have schemas."""
    metadata = {"name": "stub"}
    container: dict[str, Any] = {"name": "stub", "image": "stub"}
    match kind:
        case "metadata":
            return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": value}
        case "template":
            return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": value}
        case "service":
            return {"apiVersion": "v1", "kind": "Service", **value}
        case "container":
            container |= {name: value}
        case "source":
            container |= {"env": [{"name": "STUB", name: value}]}
        case _:
            return None
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def _ask_kubernetes(resource: dict[str, Any], where: str) -> list[str]:
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"{where}: {error.message}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{where}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []
