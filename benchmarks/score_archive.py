"""Archives for `benchmarks/score.py`: the texts of a real file, and files of any number of rows made of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from sentiment.corpora.columns import RAW_TEXT
from sentiment.corpora.files import read_file
from sentiment.corpora.planning import plan

SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("text", pa.string())])
# Rows of a Parquet row group: the smallest archive has a few of them, so that its readers hold as much as any other's.
_GROUP_ROWS = 32_768


def texts_of(archive: Path) -> Iterator[str]:
    """Read an archive as the job does.

    Args:
        archive: A file in any form that jobs/score.py reads.

    Yields:
        The usable texts, in the order of the file.
    """
    reads = plan([str(archive)])
    for table in read_file(reads.files[0], reads):
        yield from (text for text in table[RAW_TEXT].to_pylist() if text is not None)


def sample_of(archive: Path, rows: int) -> list[str]:
    """Take rows at even distances, in the order of the file: a sample has the whole file's lengths.

    Args:
        archive: The file.
        rows: How many; all if there are no more.
    """
    texts = list(texts_of(archive))
    return texts[:: max(1, len(texts) // rows)][:rows]


def archive_of(source: Path, rows: int | None, folder: Path, form: str = "parquet") -> Path:
    """Give an archive so many rows.

    Args:
        source: The real file.
        rows: How many; None: the file as it is. More than it has are its rows again, under fresh ids.
        folder: For a file that has to be made.
        form: parquet or csv.

    Returns:
        The archive, with the columns id and text if it was made.
    """
    if rows is None:
        return source
    made = folder / f"{rows}.{form}"
    texts = list(islice(texts_of(source), rows))
    # Written group by group: an archive of any size needs no more memory than the real file.
    with _writer(made, form) as writer:
        for start in range(0, rows, _GROUP_ROWS):
            here = range(start, min(rows, start + _GROUP_ROWS))
            columns = [pa.array(here, pa.int64()), pa.array([texts[at % len(texts)] for at in here], pa.string())]
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return made


def _writer(path: Path, form: str) -> pq.ParquetWriter | pa_csv.CSVWriter:
    if form == "csv":
        return pa_csv.CSVWriter(path, SCHEMA)
    return pq.ParquetWriter(path, SCHEMA, compression="zstd")
