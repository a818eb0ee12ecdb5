"""Rows to Parquet, sorted into subfolders: what can be used beside what was rejected, in one pass.

A column of the rows names the subfolder of each. A write task writes one file for each subfolder it has rows for, under
a name that follows from the task's number: a task that Ray runs again replaces its files and adds none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink

from sentiment.corpora.folder import Folder
from sentiment.schema import DESTINATION


class FolderSink(Datasink[Counter[str]]):
    """Writes rows to subfolders.

    Args:
        folder: Where.
        schemas: Subfolder → the columns written there.
        rows_per_file: Rows of a file, about.

    Attributes:
        rows: Rows written to each subfolder, once the write is complete.
        files: Parquet files written.
    """

    def __init__(self, folder: Folder, schemas: Mapping[str, pa.Schema], rows_per_file: int) -> None:
        self._folder = folder
        self._schemas = dict(schemas)
        self._rows_per_file = rows_per_file
        self.rows: Counter[str] = Counter()

    @property
    def min_rows_per_write(self) -> int | None:
        """Ray hands over about so many rows at once."""
        return self._rows_per_file

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Make the subfolders, also those that stay empty: a reader needn't ask."""
        for name in self._schemas:
            self._folder.fs.create_dir(self._folder.inner(name), recursive=True)

    def write(self, blocks: Iterable[Any], ctx: Any) -> Counter[str]:
        """Write the blocks of one task; returns the rows of each subfolder."""
        rows: Counter[str] = Counter()
        # In memory until they are whole: a file has `rows_per_file` rows, about.
        files: dict[str, pa.BufferOutputStream] = {}
        with ExitStack() as stack:
            writers: dict[str, pq.ParquetWriter] = {}
            for block in blocks:
                table = BlockAccessor.for_block(block).to_arrow()
                if not table.num_rows:
                    continue
                for name, schema in self._schemas.items():
                    part = table.filter(pc.equal(table[DESTINATION], name)).select(schema.names).cast(schema)
                    if not part.num_rows:
                        continue
                    if name not in writers:
                        files[name] = pa.BufferOutputStream()
                        writers[name] = stack.enter_context(pq.ParquetWriter(files[name], schema, compression="zstd"))
                    writers[name].write_table(part)
                    rows[name] += part.num_rows
        for name, file in files.items():
            self._folder.write_bytes(f"{name}/part-{ctx.task_idx:06d}.parquet", file.getvalue())
        return rows

    def on_write_complete(self, write_result: Any) -> None:
        """Add up what the tasks wrote."""
        for rows in write_result.write_returns:
            self.rows += rows
