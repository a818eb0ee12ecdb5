"""What a scoring run is, and what is there of it: the state under the output folder that makes a run go on.

_run/run.json     what the run is: input listing, model, settings; written first
_run/lock.json    who is at it, while somebody is
_run/done/        a report for each shard that is done
manifest.json     totals, once all are done
_SUCCESS          last of all: who sees it sees everything
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray.exceptions import RayError

from sentiment.corpora.folder import Folder
from sentiment.corpora.planning import ReadPlan
from sentiment.corpora.shards import LAYOUT
from sentiment.errors import ConfigError, DataError, brief
from sentiment.schema import MANIFEST

_STATE = "_run"
RUN, SUCCESS = f"{_STATE}/run.json", "_SUCCESS"


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run.

    Attributes:
        inputs: Path, stored size, time of change, and a digest of what was seen in it, of each file.
        model: Model id of the bundle.
        settings: Those that say what is written, not how fast.
        layout: How archives are cut into shards.
    """

    inputs: list[list[Any]]
    model: str
    settings: dict[str, Any]
    layout: int = LAYOUT

    @classmethod
    def of(cls, plan: ReadPlan, model: str, settings: dict[str, Any]) -> Identity:
        """The identity of a run, as it reads back from JSON."""
        shared = [str(plan.schema), plan.renamed]
        inputs = []
        for file in plan.files:
            seen = {name: value for name, value in dataclasses.asdict(file).items() if name not in ("inner", "root")}
            digest = hashlib.sha256(json.dumps([shared, seen], sort_keys=True).encode()).hexdigest()[:12]
            inputs.append([file.path, file.size_bytes, file.mtime_ns, digest])
        return cls(inputs, model, json.loads(json.dumps(settings)))

    def differences(self, other: Identity) -> list[str]:
        """Say what another run has that this one hasn't, for people."""
        found = []
        if self.layout != other.layout:
            found.append("it was begun by another version of this program")
        if self.model != other.model:
            found.append(f"--model is {self.model} now, was {other.model}")
        for name in sorted(self.settings.keys() | other.settings.keys()):
            now, was = self.settings.get(name), other.settings.get(name)
            if now != was:
                found.append(f"--{name.replace('_', '-')} is {now} now, was {was}")
        now_there, were_there = ({path: rest for path, *rest in each.inputs} for each in (self, other))
        for what, paths in (
            ("is new", now_there.keys() - were_there.keys()),
            ("is gone", were_there.keys() - now_there.keys()),
            ("has changed", {path for path, rest in were_there.items() if now_there.get(path, rest) != rest}),
        ):
            if paths:
                more = f" (and {len(paths) - 1:,} more)" if len(paths) > 1 else ""
                found.append(f"--input: {min(paths)}{more} {what}")
        return found


@dataclass(frozen=True)
class Begun:
    """What a run was started with.

    Attributes:
        rows_per_shard: Rows of a shard, about.
        tag: In the names of all its files: a process of a run that was replaced may still be writing.
        attempts: How often it was started, this time included.
    """

    rows_per_shard: int
    tag: str
    attempts: int


@contextlib.contextmanager
def writing_to(output: str, then: str = "the same command goes on") -> Iterator[None]:
    """Say in one line that an output can't be written to, for the length of a `with` block; `then`: once it can."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RayError):  # A task's error is of its cause's kind too.
            raise
        raise DataError(f"can't write to {output} ({brief(error)}); once that is mended, {then}") from error


class ScoringRun:
    """A run and its output folder.

    Args:
        output: Where.
        identity: What.
        manifest: Name of the file that says what came of it.
    """

    def __init__(self, output: Folder, identity: Identity, manifest: str = MANIFEST) -> None:
        self.output = output
        self.identity = identity
        self._manifest = manifest

    def finished(self, *, overwrite: bool) -> dict[str, Any] | None:
        """Look whether there is anything to do. Changes nothing.

        Args:
            overwrite: Whatever jobs wrote there may go.

        Returns:
            The manifest, if the run is finished and stays.

        Raises:
            ConfigError: The folder holds another run, or something else.
        """
        if overwrite:
            self.output.check(overwrite=True)
            return None
        state = self._state()
        if state is None:
            self.output.check(overwrite=False)
            return None
        self._compare(state)
        if self._read(SUCCESS) is None:
            return None
        manifest = self._read(self._manifest)
        if manifest is None:
            raise self._damaged(self._manifest)
        return manifest

    def begin(self, rows_per_shard: int, *, overwrite: bool) -> Begun:
        """Start, or go on; the caller holds the lock.

        Args:
            rows_per_shard: For a run that starts.
            overwrite: It starts, whatever is there.

        Returns:
            What the run was started with.

        Raises:
            ConfigError: Another run has begun there since `finished` was asked.
        """
        if overwrite:
            # First what says that all is there, then what says that it is a run's: cut short here, nobody reads half of
            # it or goes on with it.
            for name in (SUCCESS, self._manifest, RUN):
                with contextlib.suppress(FileNotFoundError):
                    self.output.fs.delete_file(self.output.inner(name))
            self.output.claim(overwrite=True)
        state = self._state()
        if state is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            state = {"identity": vars(self.identity), "tag": uuid.uuid4().hex[:12], "started": now}
            state |= {"rows_per_shard": rows_per_shard, "attempts": 0}
        self._compare(state)
        state["attempts"] += 1
        self.output.write_json(RUN, state)
        return Begun(state["rows_per_shard"], state["tag"], state["attempts"])

    def _compare(self, state: dict[str, Any]) -> None:
        try:
            there = Identity(**state["identity"])
        except (KeyError, TypeError) as error:
            raise self._damaged(RUN) from error
        if differences := self.identity.differences(there):
            raise ConfigError(
                f"{self.output.uri} holds another run: {'; '.join(differences)}. Score as before to go on with it, "
                "name another --output, or start clean with --overwrite"
            )

    def finish(self, manifest: dict[str, Any]) -> None:
        """Say that everything is there."""
        self.output.write_json(self._manifest, manifest)
        self.output.write_text(SUCCESS, "{}\n")

    def _state(self) -> dict[str, Any] | None:
        return self._read(RUN)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads(self.output.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._damaged(name) from error
        if not isinstance(content, dict):
            raise self._damaged(name)
        return content

    def _damaged(self, name: str) -> DataError:
        return DataError(f"{self.output.uri}/{name} is damaged; start clean with --overwrite")
