"""Staying with a submitted job until its end: its log, its result, its exit code, Ctrl-C, connections that are lost.

`ray job submit` ends with the first connection that breaks, and waits for ever on one that dies silently.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from jobs.job_client import Client, ask, connect, send
from jobs.job_log import JobLog
from jobs.submission import Submission
from sentiment.errors import ConfigError, ResourceError, brief

_POLL_S = 1.0
# Gateways forget connections on which nothing comes: after so long a new one is made.
_SILENCE_S = 60.0
# A head that is replaced takes minutes; the job may have gone with it.
_PATIENCE_S = 600.0
_INTERRUPTED, _NOT_FOUND = 130, 127


def submit(submission: Submission, address: str, *, wait: bool = True) -> int:
    """Submit a job and stay with it.

    Args:
        submission: What to run.
        address: The dashboard's.
        wait: Until it has ended; otherwise its id is printed as JSON.

    Returns:
        The job's exit code; 130 or 143 if it was stopped, 1 if it never ran.

    Raises:
        ConfigError: The cluster refuses the token or the submission.
        ResourceError: There is no cluster.
    """
    return asyncio.run(_submit(submission, address, wait))


async def _submit(submission: Submission, address: str, wait: bool) -> int:
    client = await connect(address)
    follower = Follower(client, submission.submission_id, address)
    with follower.taking_signals():
        try:
            await send(client, submission)
            for line in _directions(submission.submission_id, address):
                _say(line)
            if wait or follower.stopping:
                return await follower.follow()
        except asyncio.CancelledError:
            _say(f"submit: left {submission.submission_id}, which may go on")
            return _INTERRUPTED
    print(json.dumps({"submission_id": submission.submission_id, "address": address}), flush=True)
    return 0


def _directions(submission_id: str, address: str) -> list[str]:
    commands = {"log": "logs --follow", "status": "status", "stop": "stop"}
    return [
        f"submitted {submission_id} to {address}",
        f"  page     {address}/#/jobs/{submission_id}",
        *(f"  {what:<8} ray job {command} --address {address} {submission_id}" for what, command in commands.items()),
    ]


class Follower:
    """Stays with a job: shows its log, passes signals on, and knows how it ended.

    Args:
        client: Asks the cluster.
        submission_id: The job's.
        address: The cluster's, for messages.
        patience_s: So long the cluster may be out of reach.
    """

    def __init__(self, client: Client, submission_id: str, address: str, patience_s: float = _PATIENCE_S) -> None:
        self._client, self._id, self._address, self._patience_s = client, submission_id, address, patience_s
        self._log = JobLog(_say)
        self._signal: signal.Signals | None = None
        self._woken = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    async def follow(self) -> int:
        """Wait for the job's end; returns its exit code and prints its result."""
        tail = asyncio.create_task(self._tail())
        try:
            details = await self._end()
        except ResourceError as error:
            _say(f"submit: {error}")
            return 1
        except ConfigError as error:
            _say(f"submit: {error}; {self._id} may go on")
            return 1
        finally:
            tail.cancel()
        await self._rest()
        return self._report(details)

    @contextlib.contextmanager
    def taking_signals(self) -> Iterator[None]:
        """From here on SIGINT and SIGTERM stop the job; a second one ends the waiting."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take, number, task)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _take(self, number: signal.Signals, task: asyncio.Task[Any]) -> None:
        if self._signal is not None:
            task.cancel()
            return
        self._signal = signal.Signals(number)
        self._woken.set()
        _say(f"submit: stopping {self._id}; Ctrl-C again leaves at once, and the job may go on")

    async def _tail(self) -> None:
        """Show the log as it comes, over as many connections as it takes."""
        import aiohttp
        from ray.exceptions import AuthenticationError

        while True:
            at = 0
            with contextlib.suppress(aiohttp.ClientError, AuthenticationError, OSError, RuntimeError, TimeoutError):
                pieces = aiter(self._client.tail_job_logs(self._id))
                while (piece := await asyncio.wait_for(anext(pieces, None), _SILENCE_S)) is not None:
                    self._log.take(piece, at)
                    at += len(piece)
            await asyncio.sleep(_POLL_S)

    async def _end(self) -> Any:
        """Details of the job once it has ended, after stopping it if that is asked for.

        Raises:
            ConfigError: The cluster doesn't accept the token any more.
            ResourceError: The cluster doesn't know it, or has been out of reach for too long.
        """
        heard, lost, asked = time.monotonic(), False, False
        while True:
            try:
                details = await ask(lambda: self._client.get_job_info(self._id))
                if details.status.is_terminal():
                    return details
                if self._signal is not None and not asked:
                    asked = await ask(lambda: self._client.stop_job(self._id))
            except (OSError, RuntimeError) as error:
                if "status code 404" in str(error):
                    raise ResourceError(
                        f"{self._address} doesn't know {self._id}: was the cluster restarted?"
                    ) from None
                if time.monotonic() - heard > self._patience_s:
                    raise ResourceError(
                        f"no answer for {self._patience_s:g} s from {self._address}, {self._id} may go on"
                    ) from None
                if not lost:
                    _say(f"submit: no answer from {self._address} ({brief(error)}), asking again")
                lost = True
            else:
                if lost:
                    _say(f"submit: {self._address} answers again")
                heard, lost = time.monotonic(), False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _POLL_S)
            self._woken.clear()

    async def _rest(self) -> None:
        """Show what the tail hasn't brought yet: it would take seconds more to notice the end."""
        for _ in range(3):
            try:
                self._log.take(await ask(lambda: self._client.get_job_logs(self._id)), 0)
                break
            except (OSError, RuntimeError, ConfigError) as error:
                reason = brief(error)
                await asyncio.sleep(_POLL_S)
        else:
            _say(f"submit: the end of the log can't be read ({reason})")
        self._log.close()

    def _report(self, details: Any) -> int:
        """Say how it ended, and print the result; returns the exit code."""
        status, code, result = str(details.status), details.driver_exit_code, self._log.result
        if status == "SUCCEEDED":
            if result is not None:
                print(result, flush=True)
            return 0
        if result is not None:
            _say(result)
        if status == "STOPPED":
            _say(f"submit: {self._id} has stopped")
            return _INTERRUPTED if self._signal is None else 128 + self._signal
        if code is None:
            _say(f"submit: {self._id} failed: {brief(RuntimeError(details.message or 'no reason is known'))}")
            return 1
        if code == _NOT_FOUND:
            _say("submit: the cluster's shell finds no `python`: start Ray in an environment that is activated")
        # The exit code of a shell for a process that a signal has ended.
        return int(code) if code >= 0 else 128 - int(code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
