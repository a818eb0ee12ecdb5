"""The folder that `jobs/prepare.py` writes, read back for training.

train/ validation/ test/    Parquet shards: row_id, label, text, ids, source_file, source_row
rejected/                   rows that couldn't be used, with line and reason
tokenizer.json
manifest.json               counts, label balance, sha256 of the inputs, settings; written last
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from sentiment.batching import Examples
from sentiment.errors import DataError
from sentiment.schema import IDS, LABEL, MANIFEST, PREPARED_SCHEMA
from sentiment.tokenizers import WordTokenizer

TOKENIZER = "tokenizer.json"


class PreparedData:
    """A finished prepared folder.

    Attributes:
        path: The folder.
        manifest: What `manifest.json` says.
        digest: sha256 of the manifest; two folders with the same one hold the same rows.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the folder.

        Raises:
            DataError: It isn't one, or was never finished.
        """
        self.path = Path(path)
        try:
            content = (self.path / MANIFEST).read_bytes()
            self.manifest: dict[str, Any] = json.loads(content)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is no prepared data ({MANIFEST} is missing or broken): "
                f"run jobs/prepare.py --input … --output {self.path}"
            ) from error
        self.digest = hashlib.sha256(content).hexdigest()

    def tokenizer(self) -> WordTokenizer:
        """The tokenizer that the ids are from."""
        return WordTokenizer.load(self.path / TOKENIZER)

    def examples(self, split: str) -> Examples:
        """Load the ids and labels of a split, in the order of their row ids.

        Args:
            split: "train", "validation" or "test".
        """
        folder = self.path / split
        schema = pa.schema([PREPARED_SCHEMA.field(name) for name in ("row_id", LABEL, IDS)])
        if not any(folder.glob("*.parquet")):
            return Examples(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int32))
        table = pyarrow.dataset.dataset(folder, format="parquet", schema=schema).to_table()
        # Ray writes shards in the order in which they finish: the row id makes one order of them on any machine.
        table = table.sort_by("row_id").combine_chunks()
        ids = table[IDS].combine_chunks()
        if isinstance(ids, pa.ChunkedArray):
            ids = pa.concat_arrays(ids.chunks)
        return Examples(
            ids=ids.values.to_numpy()[ids.offsets[0].as_py() : ids.offsets[-1].as_py()],
            offsets=(ids.offsets.to_numpy() - ids.offsets[0].as_py()).astype(np.int64),
            labels_N=table[LABEL].to_numpy().astype(np.int32),
        )
