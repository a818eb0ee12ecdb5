"""The cluster that jobs are submitted to, asked with deadlines: its own client waits for ever on a dead connection."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jobs.submission import Submission
from sentiment.errors import ConfigError, ResourceError, brief

T = TypeVar("T")
ANSWER_S = 30.0
# An upload of a few MB, over any line.
_UPLOAD_S = 600.0
# Questions after a line that broke while a job was handed over.
_ATTEMPTS, _PAUSE_S = 10, 3.0


class Client(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, submission_id: str | None, runtime_env: dict[str, Any] | None) -> str:
        """Upload the working directory and start the command."""

    def get_job_info(self, job_id: str) -> Any:
        """`JobDetails`."""

    def get_job_logs(self, job_id: str) -> str:
        """All of the log so far."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """The log from its start, as it comes."""

    def stop_job(self, job_id: str) -> bool:
        """Ask the job to stop; False if there is nothing yet that could."""


async def ask(question: Callable[[], T], deadline_s: float = ANSWER_S) -> T:
    """Have a thread wait for an answer that may never come; a thread that is left behind keeps nothing from ending.

    Args:
        question: Called in the thread.
        deadline_s: So long it has.

    Raises:
        ConfigError: The cluster doesn't accept the token any more.
        TimeoutError: There was no answer in time.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        answer.set_running_or_notify_cancel()
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(_refusal(error) or error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wait_for(asyncio.wrap_future(answer), deadline_s)


async def connect(address: str) -> Client:
    """A client of the cluster, with the token that there is.

    Args:
        address: The dashboard's.

    Raises:
        ConfigError: The cluster asks for a token, or refuses this one.
        ResourceError: There is no cluster.
    """
    try:
        return await ask(lambda: _connect(address))
    except TimeoutError:
        raise ResourceError(
            f"no answer from {address} within {ANSWER_S:g} s: is this the dashboard's address?"
        ) from None


async def send(client: Client, submission: Submission) -> None:
    """Upload the code and start the job.

    Args:
        client: Of the cluster.
        submission: What to run.

    Raises:
        ConfigError: The cluster refuses it.
        ResourceError: The line broke or it takes too long, and the cluster doesn't say that it has the job.
    """
    try:
        await ask(lambda: _send(client, submission), _UPLOAD_S)
    except OSError as error:
        problem = f"the upload took more than {_UPLOAD_S:g} s" if isinstance(error, TimeoutError) else brief(error)
        if not await _is_known(client, submission.submission_id, problem):
            raise ResourceError(f"the job wasn't submitted: {problem}") from None


async def _is_known(client: Client, submission_id: str, problem: str) -> bool:
    """Whether the cluster took a job although its answer didn't arrive: submitted again, it would run twice."""
    for _ in range(_ATTEMPTS):
        await asyncio.sleep(_PAUSE_S)
        try:
            await ask(lambda: client.get_job_info(submission_id))
        except RuntimeError as error:
            if "status code 404" in str(error):
                return False
        except OSError:
            continue
        else:
            return True
    raise ResourceError(
        f"{problem}, and the cluster doesn't answer: it may or may not have the job; before you submit it again, see "
        f"ray job status {submission_id}"
    )


def _refusal(error: BaseException) -> ConfigError | None:
    """What a token that isn't accepted any more comes to, as of a head that was replaced by one with another."""
    from ray.exceptions import AuthenticationError

    if not isinstance(error, AuthenticationError):
        return None
    return ConfigError("the cluster doesn't accept the token any more: it must be the head's")


def _token_source() -> str | None:
    """Where Ray takes the token from, if there is one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path:
        if not Path(path).is_file():
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: no file at {path}")
        return "RAY_AUTH_TOKEN_PATH"
    default = "~/.ray/auth_token"
    return default if Path(default).expanduser().is_file() else None


def _connect(address: str) -> Client:
    token = _token_source()
    if token:
        # Ray sends a token only when asked to. A cluster that wants none passes it over.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Stronger than the client's argument, and than RAY_ADDRESS, which may be another cluster's.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        mode = os.environ.get("RAY_AUTH_MODE", "")
        if not token or mode.lower() != "token":
            kept = f" (RAY_AUTH_MODE={mode} keeps back that of {token})" if token else ""
            raise ConfigError(
                f"the cluster at {address} asks for a token{kept}: set RAY_AUTH_MODE=token, and the token by "
                "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            ) from None
        raise ConfigError(f"the cluster at {address} refuses the token of {token}: it must be the head's") from None
    except ConnectionError:
        raise ResourceError(f"no Ray cluster at {address}: start it, or give another --address") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ResourceError(f"no Ray dashboard answers at {address} ({brief(error)}): give its --address") from None


def _send(client: Client, submission: Submission) -> None:
    try:
        client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=submission.submission_id,
            runtime_env={"working_dir": str(submission.folder), "env_vars": submission.variables},
        )
    except (ValueError, RuntimeError) as error:
        # What stands before the cluster has lost patience with it: nobody knows whether it has the job.
        if gave_up := re.search(r"status code 50[234]", str(error)):
            raise ConnectionError(f"a gateway answered for the cluster ({gave_up[0]})") from None
        # A refusal carries the head's traceback; its last line says why.
        reason = (str(error).strip(" .\n") or type(error).__name__).splitlines()[-1]
        raise ConfigError(f"the cluster refuses the job: {reason[:300]}") from None
