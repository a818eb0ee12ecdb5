"""The last check of scoring can fail: rows lost, doubled, or swapped between the readers' count and the files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.ray_scoring import _check_complete
from sentiment.corpora.folder import Folder
from sentiment.schema import REJECTED, SCORED, SOURCE_FIELDS


def write(folder: Path, scored: list[tuple[str, int]], rejected: list[tuple[str, int]]) -> Folder:
    for name, rows in ((SCORED, scored), (REJECTED, rejected)):
        (folder / name).mkdir(parents=True)
        columns = [pa.array([row[at] for row in rows], field.type) for at, field in enumerate(SOURCE_FIELDS)]
        pq.write_table(pa.table(columns, schema=pa.schema(SOURCE_FIELDS)), folder / name / "part-000000.parquet")
    return Folder(str(folder))


def test_each_row_once_passes(tmp_path: Path) -> None:
    output = write(tmp_path, [("a", 0), ("a", 2), ("b", 0)], [("a", 1)])
    _check_complete(output, {"a": 3, "b": 1, "empty": 0})


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        ([("a", 0), ("a", 0), ("a", 3), ("a", 3)], {"a": 4}),  # count, sum and maximum are right
        ([("a", 0), ("a", 1)], {"a": 3}),  # the tail is lost
        ([("a", 0), ("a", 1)], {"a": 2, "b": 1}),  # a file is lost
        ([("a", 0), ("a", 1), ("a", 1)], {"a": 2}),  # a row is doubled
        ([("a", 0), ("b", 0)], {"a": 1}),  # a file that nobody read
        ([("a", 0), ("a", 7)], {"a": 2}),
    ],
)
def test_anything_else_fails(tmp_path: Path, rows: list[tuple[str, int]], read: dict[str, int]) -> None:
    output = write(tmp_path, rows[:1], rows[1:])
    with pytest.raises(RuntimeError, match="each row of"):
        _check_complete(output, read)
