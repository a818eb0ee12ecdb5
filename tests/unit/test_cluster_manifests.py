"""cluster/: files for `ray up` by Ray's own schema, Serve configurations by theirs and ours, the image by its parts.

No cluster is started. The manifests for Kubernetes: test_kuberay_manifests.py.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from sentiment.config import load
from sentiment.errors import ConfigError
from sentiment.settings import ServeSettings, TrainSettings
from serve_app.app import KEEP_ALIVE_S, LATE_S

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHED = ("on-premises.yaml", "aws.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(autouse=True)
def without_the_developers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SENTIMENT_")]:
        monkeypatch.delenv(name)


def launched(name: str) -> dict[str, Any]:
    # Anchors make one object of several places: a test that changes one would change all.
    return json.loads(json.dumps(yaml.safe_load((CLUSTER / name).read_text())))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_it(name: str) -> None:
    validate_config(prepare_config(launched(name)))


Edit = Callable[[dict[str, Any]], object]
BROKEN: dict[str, Edit] = {
    "unknown field": lambda it: it.update(setup_command=[]),
    "field of a node type": lambda it: it["available_node_types"]["gpu_worker"].update(max_nodes=1),
    "text as a number": lambda it: it["available_node_types"]["gpu_worker"].update(min_workers="0"),
    "negative resource": lambda it: it["available_node_types"]["head"]["resources"].update(CPU=-1),
    "a command that is no text": lambda it: it["setup_commands"].append({"run": "true"}),
    "field of auth": lambda it: it["auth"].update(user="ubuntu"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_ray_up_would_refuse(name: str) -> None:
    config = launched("aws.yaml")
    BROKEN[name](config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


def commands(config: dict[str, Any]) -> list[str]:
    return [command for key, lines in config.items() if key.endswith("_commands") for command in lines]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_shell_can_read_the_commands(name: str) -> None:
    for command in commands(launched(name)):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "\n" not in command


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_share_a_token_and_the_dashboard_stays_inside(name: str) -> None:
    config = launched(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    (head,) = [command for command in starts if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in " ".join(config["setup_commands"]), "for people who log in"


def test_heads_run_no_work() -> None:
    config = launched("aws.yaml")
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    (_, head) = launched("on-premises.yaml")["head_start_ray_commands"]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(head.split())


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_get_all_that_the_installation_needs(name: str) -> None:
    config = launched(name)
    mounts = {Path(local) for remote, local in config["file_mounts"].items() if remote.startswith("~/sentiment/")}
    assert all((ROOT / local).exists() for local in mounts)
    packages = {Path(package.partition(".")[0]) for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert mounts == packages | {Path("jobs")} | {
        Path(file) for file in ("pyproject.toml", "README.md", "constraints.txt", "ray_config.yaml")
    }
    assert any("--constraint ~/sentiment/constraints.txt" in command for command in config["setup_commands"])


def test_ec2_can_grow_to_what_the_profile_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = launched("aws.yaml")
    nodes = config["available_node_types"]["gpu_worker"]
    assert nodes["max_workers"] <= config["max_workers"]
    training = load(TrainSettings, {"output": "o"}, profile="gpu-cluster")
    of_a_node = min(nodes["resources"]["GPU"], nodes["resources"]["CPU"] // training.cpus_per_worker)
    assert of_a_node * nodes["max_workers"] >= training.num_workers
    serving = load(ServeSettings, {"model": "m"}, profile="gpu-cluster")
    for name, each in (("CPU", serving.cpus_per_replica), ("GPU", serving.gpus_per_replica)):
        assert nodes["resources"][name] // each * nodes["max_workers"] >= serving.max_replicas


def serve_configs() -> dict[str, dict[str, Any]]:
    service = yaml.safe_load((CLUSTER / "kuberay" / "rayservice.yaml").read_text())
    return {
        "serve.yaml": yaml.safe_load((CLUSTER / "serve.yaml").read_text()),
        "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"]),
    }


def ignored(given: Any, kept: Any, where: str = "") -> list[str]:
    """What Serve passes over in silence, as it does with most unknown keys."""
    if isinstance(given, dict):
        known = kept if isinstance(kept, dict) else {}
        gone = [f"{where}.{key}" for key in given if key not in known]
        return gone + [
            path for key in known.keys() & given for path in ignored(given[key], known[key], f"{where}.{key}")
        ]
    if isinstance(given, list):
        return [path for pair in zip(given, kept, strict=True) for path in ignored(*pair, where)]
    return []


def ignored_by_serve(config: dict[str, Any]) -> list[str]:
    return ignored(config, ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True))


@pytest.mark.parametrize("name", serve_configs())
def test_serve_takes_it_and_so_do_we(name: str) -> None:
    config = serve_configs()[name]
    assert ignored_by_serve(config) == []
    (application,) = ServeDeploySchema.model_validate(config).applications
    builder = import_attr(application.import_path)
    (parameter,) = inspect.signature(builder).parameters.values()
    assert parameter.annotation is ServeSettings
    settings = ServeSettings.model_validate(application.args)
    assert [deployment.name for deployment in application.deployments] == [settings.name]
    assert application.deployments[0].user_config == {"model": settings.model}
    http = config["http_options"]
    assert (http["port"], http["keep_alive_timeout_s"]) == (8000, KEEP_ALIVE_S)
    assert http["request_timeout_s"] == settings.request_timeout_s + LATE_S
    assert http["host"] == {"serve.yaml": "127.0.0.1", "rayservice.yaml": "0.0.0.0"}[name]


@pytest.mark.parametrize("name", serve_configs())
def test_mistakes_in_serve_configurations_are_found(name: str) -> None:
    config = serve_configs()[name]
    application = config["applications"][0]
    with pytest.raises(ValidationError, match="max_replica\n"):
        ServeSettings.model_validate({**application["args"], "max_replica": 2})
    with pytest.raises(ValidationError, match="proxy_location"):
        ServeDeploySchema.model_validate({**config, "proxy_location": "Everywhere"})
    with pytest.raises(ValidationError, match="log_levl"):
        ServeDeploySchema.model_validate({**config, "logging_config": {"log_levl": "INFO"}})
    deployment = {**application["deployments"][0], "num_replica": 1}
    for broken, path in (
        ({**config, "http_option": {}}, ".http_option"),
        ({**config, "http_options": {**config["http_options"], "prt": 1}}, ".http_options.prt"),
        ({**config, "applications": [{**application, "deployment": []}]}, ".applications.deployment"),
        (
            {**config, "applications": [{**application, "deployments": [deployment]}]},
            ".applications.deployments.num_replica",
        ),
    ):
        assert ignored_by_serve(broken) == [path]


def test_the_builder_takes_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as without Ray: an application is bound, nothing deployed."""
    from serve_app.app import build

    monkeypatch.chdir(ROOT)
    args = serve_configs()["rayservice.yaml"]["applications"][0]["args"]
    assert build(ServeSettings.model_validate(args)) is not None
    with pytest.raises((ConfigError, ValidationError), match=r"min.replicas"):
        build(ServeSettings.model_validate({**args, "min_replicas": 17}))


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (`RUN`, `the rest`), one line each."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for line in text.splitlines() if line.strip() for name, _, rest in [line.partition(" ")]]


def of_kind(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


def test_the_image_has_the_python_that_we_need() -> None:
    arguments = dict(argument.split("=", 1) for argument in of_kind("ARG"))
    assert of_kind("FROM") == ["python:${PYTHON_VERSION}-slim-bookworm"]
    major, minor, _ = arguments["PYTHON_VERSION"].split(".")
    least = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    assert [int(major), int(minor)] >= [int(part) for part in least]
    assert f"on Python {major}.{minor}" in (ROOT / "constraints.txt").read_text()
    assert f"\ntorch=={arguments['TORCH_VERSION']}\n" in (ROOT / "constraints.txt").read_text()
    used = set(re.findall(r"\$\{(\w+)\}", (CLUSTER / "Dockerfile").read_text()))
    assert used == set(arguments)


def test_the_image_holds_what_is_copied_and_nothing_else() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {source for rest in of_kind("COPY") for source in rest.split()[:-1]}
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)
    packages = {package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert copied == packages | {"jobs", "pyproject.toml", "LICENSE", "README.md", "constraints.txt", "ray_config.yaml"}


def test_the_image_is_pinned_and_not_root() -> None:
    names = [name for name, _ in instructions()]
    assert of_kind("USER") == ["1000:1000"]
    assert "RUN" not in names[names.index("USER") :]
    assert of_kind("WORKDIR") == ["/home/ray/sentiment"]
    installs = [line for run in of_kind("RUN") for line in re.split(r"&&|;;", run) if "pip install" in line]
    assert len(installs) == 4
    for line in installs:
        assert "--no-deps" in line or "--constraint constraints.txt" in line
    assert not [rest for _, rest in instructions() if re.search(r"token|password|secret", rest, re.IGNORECASE)]


@pytest.mark.parametrize("extras", ["", "baseline tracking"])
def test_the_image_takes_the_projects_dependencies(tmp_path: Path, extras: str) -> None:
    """Its own command, as a shell runs it."""
    run = next(rest for rest in of_kind("RUN") if "tomllib" in rest)
    listing = run.partition(">")[0].replace("python ", f"{shlex.quote(sys.executable)} ")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    listed = subprocess.run(
        ["/bin/sh", "-c", listing], cwd=tmp_path, env={"EXTRAS": extras}, capture_output=True, text=True, check=True
    )
    project = PROJECT["project"]
    of_extras = [one for name in extras.split() for one in project["optional-dependencies"][name]]
    assert listed.stdout.splitlines() == [*project["dependencies"], *of_extras]


def test_dependencies_are_installed_before_the_code_is_copied() -> None:
    steps = (
        "COPY constraints.txt *",
        "RUN case*torch==*",
        "COPY pyproject.toml *",
        "RUN *--requirement *",
        "COPY jobs *",
    )
    order = [f"{name} {rest}" for name, rest in instructions()]
    place = {pattern: next(at for at, line in enumerate(order) if fnmatch(line, pattern)) for pattern in steps}
    assert list(place.values()) == sorted(place.values())
