"""cluster/kuberay: what KubeRay and Kubernetes would refuse, and what they would take though it can't work."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_fields import problems

from sentiment.config import load
from sentiment.settings import SECTIONS, ScoreSettings, Section, ServeSettings, TrainBertSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
FILES = ("raycluster.yaml", "rayjob-train.yaml", "rayjob-score.yaml", "rayservice.yaml", "storage.yaml", "redis.yaml")
RAY = FILES[:4]
# Where the image has the repository, and what isn't a setting of a section.
IMAGE_ROOT, OTHER_VARIABLES = "/home/ray/sentiment", {"SENTIMENT_API_KEYS", "SENTIMENT_PROFILE"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def without_the_developers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SENTIMENT_")]:
        monkeypatch.delenv(name)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def resource(name: str) -> dict[str, Any]:
    (only,) = documents(name)
    # Anchors make one object of several places: a test that changes one would change all.
    return json.loads(json.dumps(only))


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Specs of all pods that the manifest itself describes."""
    cluster = cluster_of(document)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] if "headGroupSpec" in cluster else []
    templates = [group["template"] for group in groups]
    templates += [document["spec"][key] for key in ("template", "submitterPodTemplate") if key in document["spec"]]
    for template in templates:
        yield template["spec"]


def gpu_group(name: str) -> dict[str, Any]:
    (group,) = [group for group in cluster_of(resource(name))["workerGroupSpecs"] if group["groupName"] == "gpu"]
    return group


def limits(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["containers"]
    return container["resources"]["limits"]


def profile(section: type[Section], **given: Any) -> Any:
    return load(section, given, str(ROOT / "ray_config.yaml"), profile="gpu-cluster")


def served() -> dict[str, Any]:
    (application,) = yaml.safe_load(resource("rayservice.yaml")["spec"]["serveConfigV2"])["applications"]
    return application


def test_no_manifest_is_forgotten() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_schemas_are_kept(name: str) -> None:
    for document in documents(name):
        assert problems(document) == []


Edit = Callable[[dict[str, Any]], None]
BROKEN: dict[str, tuple[str, Edit, str]] = {
    "field of a resource": ("raycluster.yaml", lambda it: it.update(spce={}), "RayCluster.spce"),
    "field of a cluster": ("raycluster.yaml", lambda it: it["spec"].update(authOption={}), "spec.authOption"),
    "mode of authentication": (
        "raycluster.yaml",
        lambda it: it["spec"]["authOptions"].update(mode="tokens"),
        "authOptions.mode",
    ),
    "number as a start parameter": (
        "rayjob-train.yaml",
        lambda it: cluster_of(it)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "rayStartParams",
    ),
    "text as a number": (
        "rayjob-train.yaml",
        lambda it: cluster_of(it)["workerGroupSpecs"][0].update(maxReplicas="4"),
        "workerGroupSpecs.0..maxReplicas",
    ),
    "yes as a number": ("rayjob-score.yaml", lambda it: it["spec"].update(backoffLimit=True), "spec.backoffLimit"),
    "no head": ("rayservice.yaml", lambda it: cluster_of(it).pop("headGroupSpec"), "headGroupSpec is missing"),
    "field of a container": (
        "rayservice.yaml",
        lambda it: next(pods(it))["containers"][0].update(enviroment=[]),
        "headGroupSpec.template: .*enviroment",
    ),
    "field of a security context": (
        "rayservice.yaml",
        lambda it: cluster_of(it)["autoscalerOptions"]["securityContext"].update(runAsNonroot=True),
        "autoscalerOptions.securityContext: .*runAsNonroot",
    ),
    "source of the password": (
        "raycluster.yaml",
        lambda it: it["spec"]["gcsFaultToleranceOptions"]["redisPassword"].update(valueFrom={"secretRef": {}}),
        "redisPassword.valueFrom: .*secretRef",
    ),
    "label": ("rayjob-score.yaml", lambda it: it["metadata"].update(label={}), "metadata: .*label"),
    "claim": ("storage.yaml", lambda it: it["spec"].update(accessMode="ReadWriteMany"), "accessMode"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_schema_is_found(name: str) -> None:
    file, edit, words = BROKEN[name]
    document = resource(file)
    edit(document)
    found = problems(document)
    assert len(found) == 1, found
    assert re.search(words, found[0])


@pytest.mark.parametrize("name", RAY)
def test_what_every_ray_cluster_has(name: str) -> None:
    cluster = cluster_of(resource(name))
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sentiment-auth"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert f"\nray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_what_is_meant_to_last_outlives_its_head(name: str) -> None:
    options = cluster_of(resource(name))["gcsFaultToleranceOptions"]
    service, server = documents("redis.yaml")
    host, port = options["redisAddress"].split(":")
    assert host == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    (variable,) = server["spec"]["template"]["spec"]["containers"][0]["env"]
    assert options["redisPassword"]["valueFrom"] == variable["valueFrom"]


def test_names_do_not_collide() -> None:
    """A RayCluster and a RayService of one name would both own the Service NAME-head-svc."""
    names = [resource(name)["metadata"]["name"] for name in RAY]
    assert len(set(names)) == len(names)


def test_one_image_of_this_version() -> None:
    images = {container["image"] for name in RAY for pod in pods(resource(name)) for container in pod["containers"]}
    assert images == {f"sentiment:{PROJECT['version']}-cuda"}


@pytest.mark.parametrize("name", [*RAY, "redis.yaml"])
def test_nobody_is_root(name: str) -> None:
    found = [pod for document in documents(name) for pod in pods(document)]
    assert found
    for pod in found:
        whole = pod["securityContext"]
        assert whole["runAsNonRoot"] is True
        assert whole["runAsUser"] > 0
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", RAY)
def test_services_set_no_variables(name: str) -> None:
    """A service `sentiment-serve-svc` would set SENTIMENT_SERVE_SVC_PORT in every pod beside it."""
    assert all(pod["enableServiceLinks"] is False for pod in pods(resource(name)))


@pytest.mark.parametrize("name", RAY)
def test_all_that_a_pod_mounts_is_there(name: str) -> None:
    claim = documents("storage.yaml")[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(resource(name)):
        claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod.get("volumes", ())}
        assert set(claims.values()) <= {claim["metadata"]["name"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} == set(claims)


def test_the_page_makes_every_secret() -> None:
    page = (ROOT / "cluster" / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", page))
    texts = [(FOLDER / name).read_text() for name in FILES]
    used = {pair for text in texts for pair in re.findall(r"secretKeyRef: \{name: (\S+), key: (\w+)\}", text)}
    assert made == used | {("sentiment-auth", "auth_token")}


@pytest.mark.parametrize("name", FILES)
def test_variables_are_settings(name: str) -> None:
    prefixes = {str(section.model_config["env_prefix"]): section for section in SECTIONS.values()}
    known = {prefix + field.upper() for prefix, section in prefixes.items() for field in section.model_fields}
    found = set(re.findall(r"name: (SENTIMENT_\w+)", (FOLDER / name).read_text()))
    assert found <= known | OTHER_VARIABLES
    assert "SENTIMENT_TRAIN_NUM_WORKER" not in known


def parsed(name: str) -> tuple[Any, Any]:
    """The settings of a RayJob's command, as its own parser reads them."""
    words = shlex.split(resource(name)["spec"]["entrypoint"])
    assert words.pop(0) == "python"
    script, *flags = [word.replace(IMAGE_ROOT, str(ROOT)) for word in words]
    assert os.access(script, os.X_OK)
    return importlib.import_module(f"jobs.{Path(script).stem}").JOB.parse(flags)


def test_training_fits_its_workers() -> None:
    settings, ray = parsed("rayjob-train.yaml")
    assert isinstance(settings, TrainBertSettings)
    assert ray.address == "auto"
    assert settings.num_workers == profile(TrainBertSettings, data="d").num_workers
    group = gpu_group("rayjob-train.yaml")
    has = limits(group["template"]["spec"])
    # The job refuses to start on less than it needs.
    assert group["minReplicas"] * int(has["nvidia.com/gpu"]) == settings.num_workers
    assert int(has["cpu"]) // settings.cpus_per_worker >= int(has["nvidia.com/gpu"])
    assert settings.resume, "a retry would refuse the output of the attempt before"


def test_scoring_fits_its_workers() -> None:
    settings, ray = parsed("rayjob-score.yaml")
    assert isinstance(settings, ScoreSettings)
    assert (settings.use_gpu, ray.address) == (True, "auto")
    assert not settings.overwrite, "a retry would start from scratch"
    from sentiment.scoring.actors import ACTOR_CPUS, READ_CPUS

    group = gpu_group("rayjob-score.yaml")
    has = limits(group["template"]["spec"])
    actors = int(has["nvidia.com/gpu"]) / settings.gpus_per_actor
    assert actors == 2
    assert actors * ACTOR_CPUS + READ_CPUS <= int(has["cpu"])
    assert group["minReplicas"] == group["maxReplicas"] >= 1


def test_gpu_workers_are_the_same_everywhere() -> None:
    groups = [gpu_group(name) for name in RAY]
    assert len({(group["maxReplicas"], *limits(group["template"]["spec"]).values()) for group in groups}) == 1


@pytest.mark.parametrize("name", ["rayjob-train.yaml", "rayjob-score.yaml"])
def test_a_job_is_tried_again_and_ends(name: str) -> None:
    spec = resource(name)["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True


def test_replicas_fit_their_workers() -> None:
    args = served()["args"]
    usual = profile(ServeSettings, model="m")
    assert {key: args[key] for key in args.keys() - {"model", "min_replicas"}} == {
        key: getattr(usual, key) for key in ("max_replicas", "cpus_per_replica", "gpus_per_replica", "max_batch_tokens")
    }
    group = gpu_group("rayservice.yaml")
    has = limits(group["template"]["spec"])
    of_a_pod = min(int(has["cpu"]) / args["cpus_per_replica"], int(has["nvidia.com/gpu"]) / args["gpus_per_replica"])
    assert of_a_pod * group["maxReplicas"] >= args["max_replicas"]
    # Each on a pod of its own, so that one may go.
    assert group["minReplicas"] >= args["min_replicas"] >= 2


def test_one_model_is_trained_scored_with_and_served() -> None:
    trained, _ = parsed("rayjob-train.yaml")
    scored, _ = parsed("rayjob-score.yaml")
    models = {served()["args"]["model"], served()["deployments"][0]["user_config"]["model"]}
    assert models == {scored.model} == {f"{trained.output}/bundle"}


def test_the_service_asks_for_keys_and_runs_haproxy() -> None:
    """HAProxy and the replicas listen at all addresses."""
    for pod in pods(resource("rayservice.yaml")):
        variables = {variable["name"]: variable for variable in pod["containers"][0]["env"]}
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"]["value"] == "1"
        assert not variables["SENTIMENT_API_KEYS"]["valueFrom"]["secretKeyRef"].get("optional")
