"""A scored shard on disk: its Parquet files, named after it, and last the report that says it is done.

A shard that is scored again, by a retry or by a process that should be dead, replaces its files by the same rows under
the same names. What isn't reported isn't done; what is reported can be held against the files.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sentiment.corpora.folder import Folder
from sentiment.errors import ConfigError, DataError
from sentiment.schema import LABELS
from sentiment.stores import STORE_THREADS
from sentiment.uris import is_uri

REPORTS = "_run/done"
# Of p(positive), equally wide: what the manifest's histogram shows.
HISTOGRAM_BINS = 20
# Folders that one shard may fill: more, and the output is as many files as rows.
_MOST_PARTITIONS = 256
# Of a folder's name, on any file system that people have.
_LONGEST_NAME = 255
# What Hive and everything after it calls the folder of rows without a value.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_HALF_WRITTEN = re.compile(r"\.part-.*\.tmp")
_PART = re.compile(r"part-\d{6,}-\d{6,}-[0-9a-f]+\.parquet")


class Part(NamedTuple):
    """What is known of a Parquet file: its rows, its size in bytes."""

    rows: int
    size: int


@dataclass
class Report:
    """What was made of a shard, or of many.

    Attributes:
        scored: Rows with a score.
        rejected: Rows without.
        labels: Scored rows of each label.
        histogram: Scored rows by p(positive), in `HISTOGRAM_BINS` bins from 0 to 1.
        reasons: Rejected rows by kind of reason.
        files: Source file → its rows, and how many of them were rejected.
        parts: Parquet file, as seen from the output folder → its rows and size.
    """

    scored: int = 0
    rejected: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    histogram: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BINS)
    reasons: dict[str, int] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All of them."""
        return self.scored + self.rejected

    def add(self, other: Report) -> None:
        """Add another one's counts."""
        self.scored += other.scored
        self.rejected += other.rejected
        self.labels = {label: count + other.labels[label] for label, count in self.labels.items()}
        self.histogram = [a + b for a, b in zip(self.histogram, other.histogram, strict=True)]
        self.reasons = dict((Counter(self.reasons) + Counter(other.reasons)).most_common())
        for path, (rows, rejected) in other.files.items():
            mine = self.files.setdefault(path, [0, 0])
            mine[0], mine[1] = mine[0] + rows, mine[1] + rejected
        self.parts.update(other.parts)


@dataclass
class ShardReport:
    """A report and the shard that it is about.

    Attributes:
        group: Number of the group.
        number: Of the shard in its group.
        is_last: The group ends with it.
        report: The counts.
        stored_bytes: What the shard takes where it lies, about.
    """

    group: int
    number: int
    is_last: bool
    report: Report
    stored_bytes: int = 0

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardReport:
        """As it was written."""
        content = json.loads(text)
        report = Report(**content["report"])
        report.parts = {path: Part(*part) for path, part in report.parts.items()}
        return cls(**{**content, "report": report})


class PartWriter:
    """Writes shards; picklable.

    Args:
        folder: The output.
        tag: What tells this run's files from those that an earlier one, replaced by it, may still be writing.
        schemas: Subfolder → the columns written there.
        partition_by: Columns of the first subfolder that become folders, `column=value`.
    """

    def __init__(
        self, folder: Folder, tag: str, schemas: Mapping[str, pa.Schema], partition_by: Sequence[str] = ()
    ) -> None:
        self._folder, self._tag, self._schemas = folder, tag, dict(schemas)
        self._partition_by = list(dict.fromkeys(partition_by))
        self._partitioned = next(iter(schemas))

    def make_folders(self) -> None:
        """Make the subfolders, also those that stay empty: a reader needn't ask."""
        for name in (*self._schemas, REPORTS):
            self._folder.fs.create_dir(self._folder.inner(name), recursive=True)

    def write(self, shard: str, tables: Mapping[str, pa.Table]) -> dict[str, Part]:
        """Write a shard's rows.

        Args:
            shard: Its name.
            tables: Subfolder → rows; more columns than are written may be there.

        Returns:
            Each file, its rows and its size.

        Raises:
            ConfigError: The columns to partition by have too many values.
            OSError: The output can't be written to.
        """
        written = {}
        for name, table in tables.items():
            fitted = table.select(self._schemas[name].names).cast(self._schemas[name])
            for where, rows in self._partitions(name, fitted) if table.num_rows else ():
                path = f"{where}/part-{shard}-{self._tag}.parquet"
                sink = pa.BufferOutputStream()
                pq.write_table(rows, sink, compression="zstd")
                content = sink.getvalue()
                self._folder.write_bytes(path, content)
                written[path] = Part(rows.num_rows, content.size)
        return written

    def report(self, shard: str, report: ShardReport) -> None:
        """Say that a shard is done, once its files are there."""
        self._folder.write_bytes(f"{REPORTS}/{shard}-{self._tag}.json", report.to_json().encode())

    def _partitions(self, name: str, table: pa.Table) -> list[tuple[str, pa.Table]]:
        if name != self._partitioned or not self._partition_by:
            return [(name, table)]
        try:
            columns = [pc.cast(table[column], pa.string()) for column in self._partition_by]
        except pa.ArrowException as error:
            names = " ".join(self._partition_by)
            raise ConfigError(f"--partition-by {names}: holds values that are no text; choose other columns") from error
        folders = [
            "/".join(
                f"{_quoted(column)}={_quoted(value)}" for column, value in zip(self._partition_by, values, strict=True)
            )
            for values in zip(*(column.to_pylist() for column in columns), strict=True)
        ]
        by_folder = pa.array(folders, pa.string()).dictionary_encode()
        if len(by_folder.dictionary) > _MOST_PARTITIONS:
            raise ConfigError(
                f"--partition-by {' '.join(self._partition_by)}: {len(by_folder.dictionary):,} folders for "
                f"{table.num_rows:,} rows, at most {_MOST_PARTITIONS} are accepted; choose columns with few values"
            )
        longest = max(
            (part for folder in by_folder.dictionary.to_pylist() for part in folder.split("/")), key=len, default=""
        )
        if len(longest) > _LONGEST_NAME:
            raise ConfigError(
                f"--partition-by {' '.join(self._partition_by)}: a value becomes a folder's name of {len(longest)} "
                f"characters, at most {_LONGEST_NAME} are accepted; choose columns with short values"
            )
        rows = table.drop_columns(self._partition_by)
        return [
            (f"{name}/{folder}", rows.filter(pc.equal(by_folder.indices, at)))
            for at, folder in enumerate(by_folder.dictionary.to_pylist())
        ]


def _quoted(name: str | None) -> str:
    if not name:
        return _NO_VALUE
    # Readers pass over folders that begin like these.
    first = f"%{ord(name[0]):02X}" if name[0] in "._" else quote(name[0], safe="")
    return first + quote(name[1:], safe="")


def read_reports(folder: Folder, tag: str) -> list[ShardReport]:
    """Read what was done so far.

    Args:
        folder: The output.
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
            ) from (error)

    with ThreadPoolExecutor(STORE_THREADS) as pool:
        return list(pool.map(read, names))


def check_parts(folder: Folder, subfolders: Iterable[str], expected: Mapping[str, Part]) -> None:
    """Hold the files that are there against those that were reported; leftovers of killed processes are removed.

    Of what lies behind a URI a listing is enough: a store has what it acknowledged. A disk that lost its power may have
    a file's size and nothing in it, so files there are opened.

    Args:
        folder: The output.
        subfolders: Where the files are.
        expected: Each file, its rows and its size.

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
        base = found[path].base_name
        # A process of an earlier run, with other settings, may have ended after its output was replaced.
        if base.startswith(".") and not _HALF_WRITTEN.fullmatch(base):
            continue
        if not base.startswith(".") and not _PART.fullmatch(base):
            raise DataError(f"{folder.uri}/{path} was not written by this run; remove it and run again")
        folder.fs.delete_file(found[path].path)

    def wrong(path: str) -> str | None:
        if path not in found:
            return f"{path} is missing"
        if is_remote and found[path].size == expected[path].size:
            return None
        # Rows are what counts: another attempt on another machine may have packed the same ones otherwise.
        try:
            with folder.fs.open_input_file(found[path].path) as file:
                rows = pq.ParquetFile(file).metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            return f"{path} can't be read ({type(error).__name__})"
        return None if rows == expected[path].rows else f"{path} has {rows:,} rows, not {expected[path].rows:,}"

    with ThreadPoolExecutor(STORE_THREADS) as pool:
        problems = [problem for problem in pool.map(wrong, expected) if problem]
    if problems:
        raise DataError(
            f"{folder.uri} isn't what was written: {'; '.join(problems[:5])}. Remove the reports of those shards in "
            f"{REPORTS}/ and run again"
        )
