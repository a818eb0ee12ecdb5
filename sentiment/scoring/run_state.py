"""What a scoring run is, and what is done of it: the state in the output folder by which a run is resumed.

_run/run.json     what the run is: input listing, model, settings; written first
_run/lock.json    who works on it, while somebody does
_run/done/        a report for each shard that is done, written after its Parquet files
manifest.json     totals, once all are done
_SUCCESS          last of all: who sees it sees everything
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sentiment.data.read_plan import ReadPlan
from sentiment.data.sharding import LAYOUT, shard_name
from sentiment.errors import ConfigError, DataError
from sentiment.schema import LABELS, MANIFEST
from sentiment.storage.filesystems import STORE_THREADS
from sentiment.storage.output_directory import RUN, OutputDirectory
from sentiment.storage.uris import is_uri

STATE, REPORTS, SUCCESS = f"{RUN}/run.json", f"{RUN}/done", "_SUCCESS"
# Of p(positive), equally wide: what the manifest's histogram shows.
HISTOGRAM_BINS = 20
_HALF_WRITTEN = re.compile(r"\.part-.*\.tmp")
_PART = re.compile(r"part-\d{6,}-\d{6,}-[0-9a-f]+\.parquet")


@dataclass(kw_only=True)
class ShardReport:
    """What was made of a shard, or of many (`add`).

    Attributes:
        group: Number of the shard's group.
        number: Of the shard in its group.
        is_last: The group ends with it.
        stored_bytes: What the rows take in the input files, about.
        scored: Rows with a score.
        rejected: Rows without.
        labels: Scored rows of each label.
        histogram: Scored rows by p(positive), in `HISTOGRAM_BINS` bins from 0 to 1.
        reasons: Rejected rows by kind of reason.
        files: Source file → its rows, and how many of them were rejected.
        parquet_files: Parquet file, as seen from the output folder → its rows and size in bytes.
    """

    group: int = -1
    number: int = -1
    is_last: bool = False
    stored_bytes: int = 0
    scored: int = 0
    rejected: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    histogram: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BINS)
    reasons: dict[str, int] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    parquet_files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows."""
        return self.scored + self.rejected

    def add(self, other: ShardReport) -> None:
        """Add another one's counts."""
        self.stored_bytes += other.stored_bytes
        self.scored += other.scored
        self.rejected += other.rejected
        self.labels = {label: count + other.labels[label] for label, count in self.labels.items()}
        self.histogram = [a + b for a, b in zip(self.histogram, other.histogram, strict=True)]
        self.reasons = dict((Counter(self.reasons) + Counter(other.reasons)).most_common())
        for path, (rows, rejected) in other.files.items():
            before = self.files.get(path, [0, 0])
            self.files[path] = [before[0] + rows, before[1] + rejected]
        self.parquet_files.update(other.parquet_files)

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardReport:
        """As it was written."""
        content = json.loads(text)
        files = {path: (rows, size) for path, (rows, size) in content["parquet_files"].items()}
        return cls(**{**content, "parquet_files": files})


def write_report(folder: OutputDirectory, tag: str, report: ShardReport) -> None:
    """Say that a shard is done, once its files are written; what isn't reported isn't done."""
    name = f"{REPORTS}/{shard_name(report.group, report.number)}-{tag}.json"
    folder.write_bytes(name, report.to_json().encode())


def read_reports(folder: OutputDirectory, tag: str) -> list[ShardReport]:
    """Read what was done so far.

    Args:
        tag: The run's.

    Raises:
        DataError: A report can't be read.
    """
    found = folder.fs.get_file_info(pafs.FileSelector(folder.inner(REPORTS), allow_not_found=True))
    names = sorted(info.base_name for info in found if info.base_name.endswith(f"-{tag}.json"))

    def read(name: str) -> ShardReport:
        try:
            return ShardReport.from_json(folder.read(f"{REPORTS}/{name}"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = f"{folder.uri}/{REPORTS}/{name}"
            raise DataError(
                f"{path} can't be read ({type(error).__name__}); remove it, its rows are scored again"
            ) from error

    with ThreadPoolExecutor(STORE_THREADS) as pool:
        return list(pool.map(read, names))


def check_parquet_files(
    folder: OutputDirectory, subfolders: Iterable[str], expected: Mapping[str, tuple[int, int]]
) -> None:
    """Hold the files that are there against those that were reported; leftovers of killed processes are removed.

    Of what lies behind a URI a listing is enough: a store has what it acknowledged. A disk that lost its power may have
    a file's size and nothing in it, so files there are opened.

    Args:
        subfolders: Where the files are.
        expected: Each file → its rows and its size in bytes.

    Raises:
        DataError: A file is missing, can't be read, has other rows than were reported, or is nobody's.
    """
    found, is_remote = {}, is_uri(folder.uri)
    for name in subfolders:
        selector = pafs.FileSelector(folder.inner(name), recursive=True, allow_not_found=True)
        for info in folder.fs.get_file_info(selector):
            if info.type == pafs.FileType.File:
                found[info.path.removeprefix(folder.inner("")).lstrip("/")] = info
    for path in found.keys() - expected.keys():
        name = found[path].base_name
        # A process of an earlier run, with other settings, may have ended after its output was replaced.
        if name.startswith(".") and not _HALF_WRITTEN.fullmatch(name):
            continue
        if not name.startswith(".") and not _PART.fullmatch(name):
            raise DataError(f"{folder.uri}/{path} was not written by this run; remove it and run again")
        folder.fs.delete_file(found[path].path)

    def problem_of(path: str) -> str | None:
        if path not in found:
            return f"{path} is missing"
        expected_rows, size = expected[path]
        if is_remote and found[path].size == size:
            return None
        # Rows are what counts: another attempt on another machine may have packed the same ones otherwise.
        try:
            with folder.fs.open_input_file(found[path].path) as file:
                rows = pq.ParquetFile(file).metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            return f"{path} can't be read ({type(error).__name__})"
        return None if rows == expected_rows else f"{path} has {rows:,} rows, not {expected_rows:,}"

    with ThreadPoolExecutor(STORE_THREADS) as pool:
        problems = [problem for problem in pool.map(problem_of, expected) if problem]
    if problems:
        raise DataError(
            f"{folder.uri} isn't what was written: {'; '.join(problems[:5])}. Remove the reports of those shards in "
            f"{REPORTS}/ and run again"
        )


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
            seen = {name: value for name, value in asdict(file).items() if name not in ("inner", "root")}
            digest = hashlib.sha256(json.dumps([shared, seen], sort_keys=True).encode()).hexdigest()[:12]
            inputs.append([file.path, file.size_bytes, file.mtime_ns, digest])
        return cls(inputs, model, json.loads(json.dumps(settings)))

    def differences(self, other: Identity) -> list[str]:
        """Say what is different about another run, for people."""
        found = []
        if self.layout != other.layout:
            found.append("it was begun by another version of this program")
        if self.model != other.model:
            found.append(f"--model is {self.model} now, was {other.model}")
        for name in sorted(self.settings.keys() | other.settings.keys()):
            now, was = self.settings.get(name), other.settings.get(name)
            if now != was:
                found.append(f"--{name.replace('_', '-')} is {now} now, was {was}")
        new, old = ({path: rest for path, *rest in each.inputs} for each in (self, other))
        for what, paths in (
            ("is new", new.keys() - old.keys()),
            ("is gone", old.keys() - new.keys()),
            ("has changed", {path for path, rest in old.items() if new.get(path, rest) != rest}),
        ):
            if paths:
                more = f" (and {len(paths) - 1:,} more)" if len(paths) > 1 else ""
                found.append(f"--input: {min(paths)}{more} {what}")
        return found


class ScoringRun:
    """A run and its output folder.

    Args:
        output: Where.
        identity: What.
        manifest: Name of the file with its results.

    Attributes, once it has begun:
        rows_per_shard: Rows of a shard, about.
        tag: In the names of all its files: a process of a run that was replaced may still be writing.
        attempts: How often it was started, this time included.
        crashing: Paths of files that crash their readers, in the order in which they were found.
    """

    rows_per_shard: int
    tag: str
    attempts: int
    crashing: list[str]

    def __init__(self, output: OutputDirectory, identity: Identity, manifest: str = MANIFEST) -> None:
        self.output, self.identity, self._manifest = output, identity, manifest

    def finished(self, *, overwrite: bool) -> dict[str, Any] | None:
        """Look whether there is anything to do. Changes nothing.

        Args:
            overwrite: Whatever jobs wrote there may go.

        Returns:
            The manifest, if the run is finished and stays.

        Raises:
            ConfigError: The folder holds another run, or something else.
        """
        state = None if overwrite else self._read(STATE)
        if state is None:
            self.output.check(overwrite=overwrite)
            return None
        self._compare(state)
        if self._read(SUCCESS) is None:
            return None
        manifest = self._read(self._manifest)
        if manifest is None:
            raise self._damaged(self._manifest)
        return manifest

    def begin(self, rows_per_shard: int, *, overwrite: bool) -> None:
        """Start, or resume; the caller holds the lock.

        Args:
            rows_per_shard: For a run that starts.
            overwrite: It starts, whatever is there.

        Raises:
            ConfigError: Another run has begun there since `finished` was asked.
        """
        if overwrite:
            # First what says that all is there, then what says that it is a run's: cut short here, nobody reads half of
            # it or resumes it.
            for name in (SUCCESS, self._manifest, STATE):
                with contextlib.suppress(FileNotFoundError):
                    self.output.fs.delete_file(self.output.inner(name))
            self.output.claim(overwrite=True)
        state = self._read(STATE)
        if state is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            state = {"identity": vars(self.identity), "tag": uuid.uuid4().hex[:12], "started": now}
            state |= {"rows_per_shard": rows_per_shard, "attempts": 0, "crashing": []}
        self._compare(state)
        state["attempts"] += 1
        self._write(state)

    def note_crashing(self, path: str) -> None:
        """Remember a file that crashes its readers, before its group is cut otherwise; the caller holds the lock."""
        state = self._read(STATE)
        assert state is not None, "begun"
        state["crashing"].append(path)
        self._write(state)

    def _write(self, state: dict[str, Any]) -> None:
        self.output.write_json(STATE, state)
        self.rows_per_shard, self.tag = state["rows_per_shard"], state["tag"]
        self.attempts, self.crashing = state["attempts"], state["crashing"]

    def finish(self, manifest: dict[str, Any]) -> None:
        """Say that everything is there."""
        self.output.write_json(self._manifest, manifest)
        self.output.write_text(SUCCESS, "{}\n")

    def _compare(self, state: dict[str, Any]) -> None:
        try:
            found = Identity(**state["identity"])
        except (KeyError, TypeError) as error:
            raise self._damaged(STATE) from error
        if differences := self.identity.differences(found):
            raise ConfigError(
                f"{self.output.uri} holds another run: {'; '.join(differences)}. Score as before to resume it, "
                "name another --output, or start clean with --overwrite"
            )

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
