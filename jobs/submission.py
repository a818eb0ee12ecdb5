"""What is submitted to a cluster: which command runs there, with which variables, checked here before anything is sent.

A mistyped flag, or a path that the cluster can't know, is told in a second, not after an upload and a start.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentiment.cli import Job
from sentiment.config import PROFILE_VARIABLE
from sentiment.errors import ConfigError
from sentiment.section import Section

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# What a job is given is shown to everybody who may look at the cluster.
_KEPT_BACK = ("SENTIMENT_API_KEYS",)
# Each can be overridden by --env; the second and third by the caller's environment too.
_DEFAULTS = {
    # The cluster that the job was submitted to, whatever `ray.address` of ray_config.yaml says for jobs that run here.
    "SENTIMENT_RAY_ADDRESS": "auto",
    # SIGTERM, Ray's own choice, ends a driver where it stands; on SIGINT Ray Train and our jobs tidy up first.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    # Seconds until a job that doesn't stop is killed; by default it has 3, a checkpoint takes longer.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}
# Beside those that a section names, which begin at storage.root.
_OTHER_PATHS = ("data", "output", "report", "mlflow")
_PATHS_OR_NAMES = ("vectors", "encoder")
# A server, which the nodes' own settings lead to.
_NO_FOLDER = ("mlflow", "databricks")


@dataclass(frozen=True)
class Submission:
    """A job as the cluster gets it.

    Attributes:
        submission_id: Its name there.
        entrypoint: Command line of a shell.
        folder: Whose content goes along; the command runs in a copy of it.
        variables: For the environment of the command, and of all that it starts on the cluster.
    """

    submission_id: str
    entrypoint: str
    folder: Path
    variables: dict[str, str]


def plan(
    job: str,
    flags: Sequence[str],
    profile: str | None = None,
    assignments: Sequence[str] = (),
    submission_id: str | None = None,
) -> Submission:
    """Put a submission together and check it as the job itself would.

    Args:
        job: File of the job, from here or from the checkout.
        flags: The job's own flags; they arrive as they are.
        profile: For the job, in SENTIMENT_PROFILE.
        assignments: More variables, as NAME=VALUE.
        submission_id: Name on the cluster; made up if not given.

    Raises:
        ConfigError: There is no such job, it doesn't take these flags, or a path means nothing on a cluster.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".rayignore").is_file():
        raise ConfigError(f"{folder} is no checkout of the repository: run jobs/submit.py of one, its code goes along")
    file = _file(job, folder)
    variables = _variables(os.environ, profile, assignments)
    module = importlib.import_module(f"jobs.{file.stem}")
    if isinstance(known := getattr(module, "JOB", None), Job):
        with _as_there(folder, variables):
            settings, ray_settings = known.parse(flags)
        if (ray_settings.address or "").startswith("http"):
            raise ConfigError("--address stands before the job's file: it is where the job is submitted")
        _check_paths(settings, folder)
    return Submission(
        submission_id or f"{file.stem}-{secrets.token_hex(4)}",
        shlex.join(["python", file.as_posix(), *flags]),
        folder,
        variables,
    )


def dashboard_address(given: str | None) -> str:
    """Where jobs are submitted.

    Args:
        given: By a flag; otherwise RAY_API_SERVER_ADDRESS or RAY_ADDRESS counts, then this machine.

    Raises:
        ConfigError: It isn't the address of a dashboard.
    """
    candidates = {
        "--address": given,
        "RAY_API_SERVER_ADDRESS": os.environ.get("RAY_API_SERVER_ADDRESS"),
        "RAY_ADDRESS": os.environ.get("RAY_ADDRESS"),
    }
    source, address = next(((name, value) for name, value in candidates.items() if value), ("", DEFAULT_ADDRESS))
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{source}: jobs are submitted to the cluster's dashboard (http://HEAD:8265), got {address!r}"
        )
    return address.rstrip("/")


def _file(job: str, folder: Path) -> Path:
    """The job's place in the checkout."""
    for base in (Path.cwd(), folder):
        path = (base / job).resolve()
        if path.is_file() and path.parent == folder / "jobs" and path.stem != "submit":
            return path.relative_to(folder)
    jobs = (path for path in sorted((folder / "jobs").glob("*.py")) if os.access(path, os.X_OK))
    names = ", ".join(f"jobs/{path.name}" for path in jobs if path.stem != "submit")
    raise ConfigError(f"no job at {job}; there are {names}")


def _variables(environment: Mapping[str, str], profile: str | None, assignments: Sequence[str]) -> dict[str, str]:
    variables = {
        name: value for name, value in environment.items() if name.startswith("SENTIMENT_") and name not in _KEPT_BACK
    }
    for name, value in _DEFAULTS.items():
        # An address that is set here is meant for jobs that run here.
        variables[name] = environment.get(name, value) if name.startswith("RAY_") else value
    if profile is not None:
        variables[PROFILE_VARIABLE] = profile
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise ConfigError(f"--env takes NAME=VALUE, got {assignment!r}")
        variables[name] = value
    return variables


@contextlib.contextmanager
def _as_there(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Read settings as the job will: in the checkout, with its variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_paths(settings: Section, folder: Path) -> None:
    """Refuse paths of this machine's working directory: on the cluster it is another one, and goes with the job."""
    values: dict[str, Any] = {**settings.model_dump(), **getattr(settings, "overrides", {})}
    for name in dict.fromkeys((*settings.paths, *_OTHER_PATHS, *_PATHS_OR_NAMES)):
        given = values.get(name)
        for value in [given] if isinstance(given, str) else given or []:
            # SQLAlchemy's form of a path.
            path = value.removeprefix("sqlite:///")
            if "://" in path or Path(path).is_absolute() or (name, value) == _NO_FOLDER:
                continue
            here = next((path for path in (Path(value).absolute(), folder / value) if path.exists()), None)
            if name not in _PATHS_OR_NAMES or here:
                at_root = "; or set storage.root of ray_config.yaml" if name in settings.paths else ""
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value} is relative, but the job runs in a copy of the code, which "
                    f"has no data and is removed: give a URI, or a path that all nodes see, such as "
                    f"{here or folder / value}{at_root}"
                )
