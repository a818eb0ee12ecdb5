"""Rows to Parquet: the one writer of prepared and of scored rows.

A unit of work (a shard, a write task) becomes one file in each subfolder that it has rows for, under a name that
follows from the unit: done again, by a retry or by a process that should be dead, it replaces its files and adds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sentiment.errors import ConfigError
from sentiment.storage.output_directory import OutputDirectory

# Folders that one unit may fill: more, and the output is as many files as rows.
_MAX_PARTITIONS = 256
# Characters of a folder's name, on any file system that people have.
_MAX_NAME_LENGTH = 255
# What Hive and everything after it calls the folder of rows without a value.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class ParquetWriter:
    """Writes rows to subfolders; picklable.

    Args:
        schemas: Subfolder → the columns written there.
        partition_by: Columns of the first subfolder that become folders, `column=value`.
        rows_per_group: Most rows of a Parquet row group; None for Arrow's default.
    """

    def __init__(
        self,
        folder: OutputDirectory,
        schemas: Mapping[str, pa.Schema],
        partition_by: Sequence[str] = (),
        rows_per_group: int | None = None,
    ) -> None:
        self.folder, self.schemas = folder, dict(schemas)
        self._partition_by = list(dict.fromkeys(partition_by))
        self._partitioned = next(iter(schemas))
        self._rows_per_group = rows_per_group

    def make_folders(self, *others: str) -> None:
        """Make the subfolders and others, also those that stay empty: a reader needn't ask."""
        for name in (*self.schemas, *others):
            self.folder.fs.create_dir(self.folder.inner(name), recursive=True)

    def write(self, unit: str, tables: Mapping[str, pa.Table]) -> dict[str, tuple[int, int]]:
        """Write the rows of a unit of work.

        Args:
            unit: Its name.
            tables: Subfolder → rows; more columns than are written may be there.

        Returns:
            Each file, as seen from the output folder → its rows and its size in bytes.

        Raises:
            ConfigError: The columns to partition by have too many values.
            OSError: The output can't be written to.
        """
        return self.write_stream(unit, [tables])

    def write_stream(self, unit: str, stream: Iterable[Mapping[str, pa.Table]]) -> dict[str, tuple[int, int]]:
        """As `write`, for rows that come piece by piece; no file is written before the last piece.

        With `rows_per_group`, all but the last rows of each file are kept compressed until then.
        """
        files: dict[str, _ParquetFile] = {}
        for tables in stream:
            for name, table in tables.items():
                if not table.num_rows:
                    continue
                fitted = table.select(self.schemas[name].names).cast(self.schemas[name])
                is_partitioned = name == self._partitioned and self._partition_by
                for where, rows in self._partitions(name, fitted) if is_partitioned else [(name, fitted)]:
                    if where not in files:
                        files[where] = _ParquetFile(rows.schema, self._rows_per_group)
                    files[where].add(rows)
        written = {}
        for where in list(files):
            file = files.pop(where)
            content = file.close()
            path = f"{where}/part-{unit}.parquet"
            self.folder.write_bytes(path, content)
            written[path] = (file.num_rows, content.size)
        return written

    def _partitions(self, name: str, table: pa.Table) -> list[tuple[str, pa.Table]]:
        flag = f"--partition-by {' '.join(self._partition_by)}"
        try:
            columns = [pc.cast(table[column], pa.string()).to_pylist() for column in self._partition_by]
        except pa.ArrowException as error:
            raise ConfigError(f"{flag}: holds values that are no text; choose other columns") from error
        quoted = [_quote(column) for column in self._partition_by]
        folders = [
            "/".join(f"{column}={_quote(value)}" for column, value in zip(quoted, values, strict=True))
            for values in zip(*columns, strict=True)
        ]
        by_folder = pa.array(folders, pa.string()).dictionary_encode()
        names = by_folder.dictionary.to_pylist()
        if len(names) > _MAX_PARTITIONS:
            raise ConfigError(
                f"{flag}: {len(names):,} folders for {table.num_rows:,} rows, at most {_MAX_PARTITIONS} are accepted; "
                "choose columns with few values"
            )
        longest = max((len(part) for folder in names for part in folder.split("/")), default=0)
        if longest > _MAX_NAME_LENGTH:
            raise ConfigError(
                f"{flag}: a value becomes a folder's name of {longest} characters, at most {_MAX_NAME_LENGTH} are "
                "accepted; choose columns with short values"
            )
        rows = table.drop_columns(self._partition_by)
        return [
            (f"{name}/{folder}", rows.filter(pc.equal(by_folder.indices, index))) for index, folder in enumerate(names)
        ]


class _ParquetFile:
    """A Parquet file in memory: full row groups are compressed, the rows of the next one aren't yet."""

    def __init__(self, schema: pa.Schema, rows_per_group: int | None) -> None:
        self.num_rows = 0
        self._rows_per_group = rows_per_group
        self._next_group = schema.empty_table()
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")

    def add(self, rows: pa.Table) -> None:
        self.num_rows += rows.num_rows
        rows = pa.concat_tables([self._next_group, rows])
        full = rows.num_rows // self._rows_per_group * self._rows_per_group if self._rows_per_group else 0
        if full:
            self._writer.write_table(rows.slice(0, full), self._rows_per_group)
        self._next_group = rows.slice(full)

    def close(self) -> pa.Buffer:
        if self._next_group.num_rows:
            self._writer.write_table(self._next_group, self._rows_per_group)
        self._writer.close()
        return self._sink.getvalue()


def _quote(name: str | None) -> str:
    if not name:
        return _NO_VALUE
    # Readers pass over folders that begin like these.
    first = f"%{ord(name[0]):02X}" if name[0] in "._" else quote(name[0], safe="")
    return first + quote(name[1:], safe="")
