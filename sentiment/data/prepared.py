"""The folder that `sentiment prepare` writes, read back for training.

train/ validation/ test/    Parquet shards: row_id, label, text, ids, source_file, source_row
rejected/                   rows that couldn't be used, with line and reason
tokenizer.json
manifest.json               counts, label balance, sha256 of the inputs, settings; written last
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sentiment.batching import Examples
from sentiment.errors import DataError, brief
from sentiment.labels import refuse_one_class
from sentiment.schema import IDS, LABEL, LABELS, MANIFEST, PREPARED_SCHEMA, ROW_ID, TEXT, TRAIN
from sentiment.storage.output_directory import OutputDirectory
from sentiment.storage.uris import is_uri
from sentiment.tokenizers import WordTokenizer

TOKENIZER = "tokenizer.json"


class PreparedData:
    """A finished prepared folder.

    Args:
        uri: Path or URI.

    Attributes:
        uri: Absolute where it is a local path.
        manifest: What `manifest.json` says.
    """

    def __init__(self, uri: str | Path) -> None:
        """Open the folder.

        Raises:
            DataError: It isn't one, or was never finished.
        """
        self._folder = OutputDirectory(str(uri))
        self.uri = str(uri) if is_uri(str(uri)) else self._folder.base
        try:
            self.manifest: dict[str, Any] = json.loads(self._folder.read(MANIFEST))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{uri} is no prepared data ({MANIFEST} is missing or broken): "
                f"run `sentiment prepare --input … --output {uri}`"
            ) from error

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides the ids: contents of the inputs, settings, counts, the tokenizer.

        Two folders with the same one hold the same rows; preparing the same files again gives the same.
        """
        settings = {
            name: value
            for name, value in self.manifest.get("settings", {}).items()
            if name not in ("input", "test_input", "rows_per_file")
        }
        inputs = [source.get("sha256") for source in self.manifest.get("inputs", [])]
        counts = [self.manifest.get(name) for name in ("counts", "splits")]
        decisive = json.dumps([settings, inputs, counts], sort_keys=True)
        return hashlib.sha256(decisive.encode() + self._tokenizer_json()).hexdigest()

    def require(self, *splits: str) -> None:
        """Refuse data that lacks rows of a split or of a label, or that isn't for training.

        Raises:
            DataError: Says which, and what to do.
        """
        if "splits" not in self.manifest:
            raise DataError(f"{self.uri} was written by another job; give what `sentiment prepare` wrote")
        for split in splits:
            if not self.manifest["splits"][split]["rows"]:
                raise DataError(f"{self.uri} has no {split} rows: prepare more rows, or another share of them")
        train = self.manifest["splits"][TRAIN]
        refuse_one_class([train[label.lower()] for label in LABELS], f"train rows of {self.uri}")

    def tokenizer(self) -> WordTokenizer:
        """The tokenizer that the ids are from.

        Raises:
            DataError: It is missing.
            BundleError: It is no tokenizer of ours.
        """
        return WordTokenizer.from_json(self._tokenizer_json().decode())

    def _tokenizer_json(self) -> bytes:
        try:
            return self._folder.read(TOKENIZER)
        except OSError as error:
            raise DataError(f"{self.uri}/{TOKENIZER} is missing: run `sentiment prepare` again") from error

    def examples(self, split: str) -> Examples:
        """Load the ids and labels of a split, in the order of their row ids.

        Args:
            split: "train", "validation" or "test".
        """
        table = self._read(split, LABEL, IDS)
        if not table.num_rows:
            return Examples(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int32))
        ids = table[IDS].combine_chunks()
        if isinstance(ids, pa.ChunkedArray):
            ids = pa.concat_arrays(ids.chunks)
        return Examples(
            ids=ids.values.to_numpy()[ids.offsets[0].as_py() : ids.offsets[-1].as_py()],
            offsets=(ids.offsets.to_numpy() - ids.offsets[0].as_py()).astype(np.int64),
            labels_N=table[LABEL].to_numpy().astype(np.int32),
        )

    def texts(self, split: str) -> pa.Table:
        """Load the normalized texts and labels of a split, in the order of their row ids.

        Args:
            split: "train", "validation" or "test".
        """
        return self._read(split, TEXT, LABEL)

    def files(self, split: str) -> dict[str, int]:
        """Names of a split's Parquet files and the rows of each."""
        names = [posixpath.basename(path) for path in self._paths(split)]
        return {
            name: pq.read_metadata(self._folder.inner(f"{split}/{name}"), filesystem=self._folder.fs).num_rows
            for name in sorted(names)
        }

    def rows_of(self, split: str, file: str, start: int, rows: int) -> pa.Table:
        """Load row ids, labels and normalized texts of some rows of a file, in the file's order."""
        path = self._folder.inner(f"{split}/{file}")
        with pq.ParquetFile(path, filesystem=self._folder.fs) as parquet:
            counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            ends = np.cumsum(counts)
            begin, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, start + rows))
            groups = [group for group in range(begin, last + 1) if group < len(counts)]
            table = parquet.read_row_groups(groups, columns=[ROW_ID, LABEL, TEXT])
        first = int(ends[groups[0]] - counts[groups[0]]) if groups else 0
        return table.slice(start - first, rows).combine_chunks()

    def _paths(self, split: str) -> list[str]:
        # An object store has no empty folders: a split without rows may not be there at all.
        shards = pafs.FileSelector(self._folder.inner(split), allow_not_found=True)
        return [
            info.path
            for info in self._folder.fs.get_file_info(shards)
            if info.extension == "parquet" and info.base_name[0] != "."
        ]

    def _read(self, split: str, *columns: str) -> pa.Table:
        schema = pa.schema([PREPARED_SCHEMA.field(name) for name in (ROW_ID, *columns)])
        dataset = pyarrow.dataset.dataset(
            self._paths(split), filesystem=self._folder.fs, format="parquet", schema=schema
        )
        # Ray writes shards in the order in which they finish: the row id makes one order of them on any machine.
        try:
            return dataset.to_table().sort_by(ROW_ID).combine_chunks()
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.uri}/{split} can't be loaded: {brief(error)}; more than two billion tokens or characters in a "
                "split are too many: prepare fewer rows"
            ) from error
