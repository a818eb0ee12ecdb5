"""Submits a job to a Ray cluster and stays with it until its end, over Ray's own `JobSubmissionClient`.

What `ray job submit` lacks, and a test shows (tests/unit/test_job_follower.py, tests/cluster/test_submit_job.py): flags
and paths are checked before anything is uploaded; the job's JSON comes on stdout and its log on stderr; its exit code
is ours; Ctrl-C stops it; a connection that breaks or dies silently is made again, without losing or repeating a line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from sentiment.cli import Job, Parser
from sentiment.config import PROFILE_VARIABLE
from sentiment.errors import ConfigError, ResourceError, brief
from sentiment.observability.log import run_command
from sentiment.observability.status import status_line
from sentiment.settings import Section

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Not handed on: what a job is given is shown to everybody who may look at the cluster.
_SECRETS = ("SENTIMENT_API_KEYS",)
# Each can be overridden by --env; the second and third by the caller's environment too.
_DEFAULT_VARIABLES = {
    # The cluster that the job was submitted to, whatever `ray.address` of ray_config.yaml says for jobs that run here.
    "SENTIMENT_RAY_ADDRESS": "auto",
    # SIGTERM, Ray's own choice, ends a driver at once; on SIGINT Ray Train and our jobs shut down in order.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    # Seconds until a job that doesn't stop is killed; by default it has 3, a checkpoint takes longer.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}
# Settings that hold paths, beside those that a section names because they begin at storage.root.
_OTHER_PATHS = ("data", "output", "report", "mlflow")
_PATHS_OR_NAMES = ("vectors", "encoder")
# Seconds without an answer to a request, and to an upload of a few MB.
_ANSWER_TIMEOUT_S, _UPLOAD_TIMEOUT_S = 30.0, 600.0
# Questions whether the cluster has a job, after the connection broke while it was submitted.
_MAX_QUESTIONS, _PAUSE_S = 10, 3.0
_POLL_S = 1.0  # between two questions after a job's state
# Gateways forget connections on which nothing comes: after so many seconds a new one is made.
_SILENCE_S = 60.0
_INTERRUPTED, _NOT_FOUND = 130, 127


def plan(
    job: str,
    flags: Sequence[str],
    profile: str | None = None,
    assignments: Sequence[str] = (),
    submission_id: str | None = None,
) -> dict[str, Any]:
    """Put a submission together and check it as the job itself would.

    Args:
        job: File of the job, relative to the working directory or the checkout.
        flags: The job's own flags, handed on unchanged.
        profile: Profile of ray_config.yaml for the job.
        assignments: More environment variables, as NAME=VALUE.
        submission_id: Name on the cluster; made up if not given.

    Returns:
        Arguments of `JobSubmissionClient.submit_job`; the checkout is uploaded, and the command runs in a copy of it.

    Raises:
        ConfigError: There is no such job, it doesn't take these flags, or a path means nothing on a cluster.
    """
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".rayignore").is_file():
        raise ConfigError(f"{checkout} is no checkout of the repository: run jobs/submit.py of one, whose code is sent")
    candidates = [(base / job).resolve() for base in (Path.cwd(), checkout)]
    jobs = [path for path in sorted((checkout / "jobs").glob("*.py")) if path.stem != "submit"]
    file = next((path.relative_to(checkout) for path in candidates if path in jobs), None)
    if file is None:
        names = ", ".join(f"jobs/{path.name}" for path in jobs if os.access(path, os.X_OK))
        raise ConfigError(f"no job at {job}; there are {names}")
    ours = [name for name in os.environ if name.startswith("SENTIMENT_") and name not in _SECRETS]
    variables = {name: os.environ[name] for name in ours}
    for name, value in _DEFAULT_VARIABLES.items():
        # An address of Ray that is set here is meant for jobs that run here.
        variables[name] = os.environ.get(name, value) if name.startswith("RAY_") else value
    if profile is not None:
        variables[PROFILE_VARIABLE] = profile
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise ConfigError(f"--env takes NAME=VALUE, got {assignment!r}")
        variables[name] = value
    if isinstance(known := getattr(importlib.import_module(f"jobs.{file.stem}"), "JOB", None), Job):
        environment = dict(os.environ)
        try:  # As on the cluster: in the checkout, with the job's variables.
            os.environ.update(variables)
            with contextlib.chdir(checkout):
                settings, ray_settings = known.parse(flags)
        finally:
            os.environ.clear()
            os.environ.update(environment)
        if (ray_settings.address or "").startswith("http"):
            raise ConfigError("--address stands before the job's file: it is where the job is submitted")
        _check_paths(settings, checkout)
    return {
        "submission_id": submission_id or f"{file.stem}-{secrets.token_hex(4)}",
        "entrypoint": shlex.join(["python", file.as_posix(), *flags]),
        "runtime_env": {"working_dir": str(checkout), "env_vars": variables},
    }


def _check_paths(settings: Section, checkout: Path) -> None:
    """Refuse relative paths: the job's working directory is a copy of the checkout on the cluster."""
    values: dict[str, Any] = {**settings.model_dump(), **getattr(settings, "overrides", {})}
    for name in dict.fromkeys((*settings.paths, *_OTHER_PATHS, *_PATHS_OR_NAMES)):
        given = values.get(name)
        for value in [given] if isinstance(given, str) else given or []:
            path = value.removeprefix("sqlite:///")  # SQLAlchemy's form of a path.
            if "://" in path or Path(path).is_absolute() or (name, value) == ("mlflow", "databricks"):
                continue
            local = next((path for path in (Path(value).absolute(), checkout / value) if path.exists()), None)
            if name not in _PATHS_OR_NAMES or local:
                at_root = "; or set storage.root of ray_config.yaml" if name in settings.paths else ""
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value} is relative, but the job runs in a copy of the code, which "
                    "has no data and is removed: give a URI, or a path that all nodes see, such as "
                    f"{local or checkout / value}{at_root}"
                )


def dashboard_address(given: str | None) -> str:
    """The address given by a flag, else by RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else this machine's."""
    variables = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    candidates = {"--address": given, **{name: os.environ.get(name) for name in variables}, "": DEFAULT_ADDRESS}
    source, address = next((name, value) for name, value in candidates.items() if value)
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{source}: jobs are submitted to the cluster's dashboard (http://HEAD:8265), got {address!r}"
        )
    return address.rstrip("/")


def connect(address: str) -> Any:
    """A `JobSubmissionClient` with the token that there is; Ray's own would wait for ever on a dead connection."""
    from sentiment.session import offer_token, token_refused

    source = offer_token()
    # Stronger than the client's argument, and than RAY_ADDRESS, which may be another cluster's.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray import job_submission
    from ray.exceptions import AuthenticationError

    for name in ("dashboard", "_private", "dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)

    class Client(job_submission.JobSubmissionClient):  # type: ignore[misc]
        timeout_s = _ANSWER_TIMEOUT_S

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=self.timeout_s, **options)

    try:
        return Client(address)
    except AuthenticationError:
        raise token_refused(address, source) from None
    except ConnectionError:
        raise ResourceError(f"no Ray cluster at {address}: start it, or give another --address") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ResourceError(f"no Ray dashboard answers at {address} ({brief(error)}): give its --address") from None


@contextlib.contextmanager
def _token_checked(consequence: str = "") -> Iterator[None]:
    """Raise ConfigError for a token that isn't accepted any more, as by a new head with another one."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ConfigError(
            f"the cluster doesn't accept the token any more: it must be the head's{consequence}"
        ) from None


@_token_checked()
def send(client: Any, submission: Mapping[str, Any]) -> None:
    """Upload the code and start the job.

    Raises:
        ConfigError: The cluster refuses it.
        ResourceError: The connection broke or timed out, and the cluster doesn't say that it has the job.
    """
    client.timeout_s = _UPLOAD_TIMEOUT_S
    try:
        client.submit_job(**submission)
        return
    except OSError as error:
        problem = brief(error)
    except (ValueError, RuntimeError) as error:
        gateway = re.search(r"status code 50[234]", str(error))
        if not gateway:
            # A refusal carries the head's traceback; its last line says why.
            reason = (str(error).strip(" .\n") or type(error).__name__).splitlines()[-1]
            raise ConfigError(f"the cluster refuses the job: {reason[:300]}") from None
        problem = f"a gateway answered for the cluster ({gateway[0]})"
    finally:
        client.timeout_s = _ANSWER_TIMEOUT_S
    # It may have the job although its answer didn't arrive: submitted again, it would run twice.
    for _ in range(_MAX_QUESTIONS):
        time.sleep(_PAUSE_S)
        try:
            client.get_job_info(submission["submission_id"])
            return
        except (OSError, RuntimeError) as error:
            if "status code 404" in str(error):
                raise ResourceError(f"the job wasn't submitted: {problem}") from None
    raise ResourceError(
        f"{problem}, and the cluster doesn't answer: it may or may not have the job; before you submit it again, see "
        f"ray job status {submission['submission_id']}"
    )


def notify(line: str) -> None:
    """Print a line of the job's log, or of ours about it: both are one stream for people."""
    print(line, file=sys.stderr, flush=True)


class JobLog:
    """Prints a job's log on stderr, but for the last line that is a JSON object, its `result`.

    That is all that a job prints on stdout, which is one with stderr on a cluster. A connection that was lost begins
    again at the log's start; text that came before is known by its position.
    """

    def __init__(self) -> None:
        self.result: str | None = None
        self._length = 0
        self._rest = ""
        self._is_closed = False
        self._lock = threading.Lock()

    def add(self, text: str, position: int) -> None:
        """Print the lines that are new; `position` is the text's place in the log, in characters."""
        with self._lock:
            if self._is_closed:
                return
            new = text[max(0, self._length - position) :]
            self._length += len(new)
            *lines, self._rest = (self._rest + new).split("\n")
            for line in lines:
                self._print(line)

    def close(self) -> None:
        """Print what follows the last line break; nothing is added any more."""
        with self._lock:
            self._is_closed = True
            if self._rest:
                self._print(self._rest)

    def _print(self, line: str) -> None:
        with contextlib.suppress(ValueError):
            # The job's result, or another object; a message of its JSON log has a level.
            if line.startswith("{") and isinstance(found := json.loads(line), dict) and "level" not in found:
                line, self.result = self.result or "", line
                if not line:
                    return
        notify(line)


class Follower:
    """Stays with a job: prints its log, passes signals on, and reports how it ended.

    In a `with` block SIGINT and SIGTERM stop the job; a second one raises KeyboardInterrupt. The cluster may not answer
    for `patience_s` seconds: a head that is replaced takes minutes.
    """

    def __init__(self, client: Any, submission_id: str, address: str, patience_s: float = 600.0) -> None:
        self._client, self._id, self._address, self._patience_s = client, submission_id, address, patience_s
        self._log = JobLog()
        self._is_over = threading.Event()
        self.signal: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        notify(f"submit: stopping {self._id}; Ctrl-C again leaves at once, and the job may go on")

    def follow(self) -> int:
        """Wait for the job's end and print its result; returns its exit code."""
        threading.Thread(target=self._tail, name="log", daemon=True).start()
        try:
            with _token_checked(f"; {self._id} may go on"):
                details = self._wait()
        except (ResourceError, ConfigError) as error:
            notify(f"submit: {error}")
            return 1
        self._is_over.set()
        # The tail would take seconds more to notice the end.
        for attempts_left in (2, 1, 0):
            try:
                self._log.add(self._client.get_job_logs(self._id), 0)
                break
            except Exception as error:  # whatever it is: how the job ended is known
                if not attempts_left:
                    notify(f"submit: the end of the log can't be read ({brief(error)})")
                time.sleep(_POLL_S)
        self._log.close()
        return self._report(details)

    def _tail(self) -> None:
        """Print the log as it comes, over as many connections as it takes; `_wait` says if there are none."""

        async def read() -> None:
            position, chunks = 0, aiter(self._client.tail_job_logs(self._id))
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                self._log.add(chunk, position)
                position += len(chunk)

        while not self._is_over.is_set():
            with contextlib.suppress(Exception):
                asyncio.run(read())
            self._is_over.wait(_POLL_S)

    def _wait(self) -> Any:
        """Details of the job once it has ended, after stopping it if a signal came; ResourceError if it is lost."""
        answered, is_lost, is_stopping = time.monotonic(), False, False
        while True:
            try:
                details = self._client.get_job_info(self._id)
                if is_lost:
                    notify(f"submit: {self._address} answers again")
                answered, is_lost = time.monotonic(), False
                if details.status.is_terminal():
                    return details
                if self.signal is not None and not is_stopping:
                    is_stopping = self._client.stop_job(self._id)
            except (OSError, RuntimeError) as error:
                if "status code 404" in str(error):
                    raise ResourceError(
                        f"{self._address} doesn't know {self._id}: was the cluster restarted?"
                    ) from None
                if time.monotonic() - answered > self._patience_s:
                    raise ResourceError(
                        f"no answer for {self._patience_s:g} s from {self._address}, {self._id} may go on"
                    ) from None
                if not is_lost:
                    notify(f"submit: no answer from {self._address} ({brief(error)}), asking again")
                is_lost = True
            time.sleep(_POLL_S)

    def _report(self, details: Any) -> int:
        status, code, result = str(details.status), details.driver_exit_code, self._log.result
        if status == "SUCCEEDED":
            if result is not None:
                print(result, flush=True)
            return 0
        if result is not None:
            notify(result)
        if status == "STOPPED":
            notify(f"submit: {self._id} has stopped")
            return _INTERRUPTED if self.signal is None else 128 + self.signal
        if code is None:
            notify(f"submit: {self._id} failed: {brief(RuntimeError(details.message or 'no reason is known'))}")
            return 1
        if code == _NOT_FOUND:
            notify("submit: the cluster's shell finds no `python`: start Ray in an environment that is activated")
        # As shells have it for a process that a signal has ended.
        return int(code) if code >= 0 else 128 - int(code)


def submit(submission: Mapping[str, Any], address: str, *, wait: bool = True) -> int:
    """Submit what `plan` made and stay with it; returns the job's exit code, 130 or 143 if it was stopped.

    With `wait` off it prints the job's id as JSON and returns 0.
    """
    name = submission["submission_id"]
    with status_line(f"reaching {address}"):
        client = connect(address)
    with Follower(client, name, address) as follower:
        try:
            with status_line("sending the code"):
                send(client, submission)
            notify(f"submitted {name} to {address}\n  page     {address}/#/jobs/{name}")
            for what, command in (("log", "logs --follow"), ("status", "status"), ("stop", "stop")):
                notify(f"  {what:<8} ray job {command} --address {address} {name}")
            if wait or follower.signal:
                return follower.follow()
        except KeyboardInterrupt:
            notify(f"submit: left {name}, which may go on")
            return _INTERRUPTED
    print(json.dumps({"submission_id": name, "address": address}), flush=True)
    return 0


_ABOUT = """Run a job on a Ray cluster as if it ran here.

Its log comes on stderr, its JSON on stdout, its exit code is this command's, and Ctrl-C stops it.

  {program} jobs/score.py --model /shared/bundle --input 's3://bucket/*.jsonl.gz' --output s3://bucket/scored
  {program} --address http://head:8265 --profile gpu-cluster jobs/train_bert.py --output /shared/bert | jq
  {program} --no-wait --submission-id tonight jobs/prepare.py --input /shared/a.csv --output /shared/a
  {program} --env HF_HOME=/shared/hub jobs/train_bert.py --data /shared/imdb --output /shared/bert

Flags before the job's file are for the submission, those behind it are the job's own. The code of this checkout, its
ray_config.yaml and the SENTIMENT_… variables that are set here (but for SENTIMENT_API_KEYS) are sent along. Data isn't:
give paths that all nodes see, or URIs. A cluster that asks for a token gets that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH
or ~/.ray/auth_token. More in docs/cluster.md.
"""


def main(argv: Sequence[str] | None = None, program: str = "sentiment submit") -> int:
    """Submit, follow, report; returns the job's exit code, 2 if it could not be submitted."""
    parser = Parser(
        program,
        _ABOUT.format(program=program),
        usage="%(prog)s [--address URL] [--profile NAME] [--env NAME=VALUE] [--submission-id ID] [--no-wait] JOB …",
    )
    add = parser.add_argument
    add("--address", metavar="URL", help="dashboard (also RAY_API_SERVER_ADDRESS, RAY_ADDRESS; http://127.0.0.1:8265)")
    add("--profile", metavar="NAME", help="profile of ray_config.yaml that the job uses")
    add(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="environment variable for the job; may be repeated",
    )
    add("--submission-id", metavar="ID", help="name of the run on the cluster; generated if not given")
    add("--no-wait", action="store_true", help="submit, print the id as JSON and return")
    add("job", metavar="JOB", help="file of the job, such as jobs/score.py")
    add("flags", metavar="…", nargs=argparse.REMAINDER, help="the job's own flags, as without a cluster")

    def work() -> int:
        try:
            given = parser.parse_args(argv)
            address = dashboard_address(given.address)
            submission = plan(given.job, given.flags, given.profile, given.env, given.submission_id)
            with status_line("loading Ray"):
                importlib.import_module("ray.job_submission")
            return submit(submission, address, wait=not given.no_wait)
        except KeyboardInterrupt:
            notify("submit: interrupted before the job was submitted")
            return _INTERRUPTED

    return run_command("submit", work)
