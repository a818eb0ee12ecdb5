"""Rows as they were read to rows to train on: normalised, split, without duplicates, encoded. Pure functions of blocks.

A row's split follows from a hash of its normalised text, so a text and its duplicates fall on the same side, on any
machine and whatever else is in the corpus.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sentiment.corpora.columns import RAW_LABEL, RAW_TEXT
from sentiment.corpora.labels import NEUTRAL
from sentiment.corpora.lines import raw_text
from sentiment.corpora.tables import NO_TEXT
from sentiment.schema import (
    DESTINATION,
    IDS,
    LABEL,
    LINE,
    NEGATIVE,
    POSITIVE,
    RAW,
    REASON,
    REJECTED,
    REJECTED_SCHEMA,
    ROW_ID,
    SOURCE_FILE,
    SOURCE_ROW,
    SPLITS,
    TEST,
    TEXT,
)
from sentiment.text import fingerprint, normalise, split_of
from sentiment.tokenizers import WordTokenizer

Int64Array = npt.NDArray[np.int64]

HASH, OFFICIAL = "__hash", "__official"
# row_id = number of the file · 2^40 + place in the file: unique, and the same on any machine with no counting ahead.
_ROWS_PER_FILE_BITS = 40
_CLEAN_SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.int64()),
        pa.field(LABEL, pa.int8()),
        pa.field(TEXT, pa.string()),
        pa.field(HASH, pa.int64()),
        pa.field(OFFICIAL, pa.bool_()),
        pa.field(DESTINATION, pa.string()),
        *(pa.field(field.name, field.type) for field in REJECTED_SCHEMA),
    ]
)


@dataclass(frozen=True)
class Survey:
    """What the driver knows of every row: a few bytes each.

    Attributes:
        row_ids, labels, hashes: Of the usable rows.
        split_of_row: Index into `SPLITS`.
        is_official: Rows of `--test-input`.
        reasons: Unusable rows by reason.
    """

    row_ids: Int64Array
    labels: Int64Array
    hashes: Int64Array
    split_of_row: Int64Array
    is_official: npt.NDArray[np.bool_]
    reasons: Counter[str]

    def duplicates(self) -> Int64Array:
        """Row ids to leave out, ascending: every row whose text came before.

        Official test rows come first and all of them stay, so that figures on them can be compared with others'.
        """
        order = np.lexsort((self.row_ids, ~self.is_official))
        is_first = np.zeros(len(order), dtype=bool)
        is_first[order[np.unique(self.hashes[order], return_index=True)[1]]] = True
        return np.sort(self.row_ids[~is_first & ~self.is_official])

    def balance(self, duplicates: Int64Array) -> dict[str, dict[str, int]]:
        """Rows and labels of each split once duplicates are left out."""
        keep = ~is_member(self.row_ids, duplicates)
        result = {}
        for index, split in enumerate(SPLITS):
            labels = self.labels[keep & (self.split_of_row == index)]
            negative, positive = int((labels == NEGATIVE).sum()), int((labels == POSITIVE).sum())
            result[split] = {"rows": negative + positive, "negative": negative, "positive": positive}
        return result


def clean(table: pa.Table, numbers: dict[str, int], shares: tuple[float, float] | None, seed: int) -> pa.Table:
    """Normalise the texts of a block and settle each row's split.

    Args:
        table: Rows as the readers make them.
        numbers: Number of each file, for row ids.
        shares: Of validation and test; None for the official test set.
        seed: Of the split.

    Returns:
        Rows of `_CLEAN_SCHEMA`; destination is a split, `rejected`, or null for neutral rows.
    """
    texts = [None if text is None else normalise(text) for text in table[RAW_TEXT].to_pylist()]
    reasons, raws = table[REASON].to_pylist(), table[RAW].to_pylist()
    destinations: list[str | None] = []
    hashes: list[int | None] = []
    for at, text in enumerate(texts):
        if text == "" and reasons[at] is None:
            # Nothing but what the normaliser takes out, such as control characters.
            reasons[at], raws[at] = NO_TEXT, raw_text(table[RAW_TEXT][at].as_py().encode())
        if reasons[at] is not None or text is None:
            hashes.append(None)
            destinations.append(None if reasons[at] == NEUTRAL else REJECTED)
            continue
        text_hash = fingerprint(text)
        hashes.append(text_hash)
        destinations.append(TEST if shares is None else SPLITS[split_of(text_hash, *shares, seed)])
    files = pa.array([numbers[path] << _ROWS_PER_FILE_BITS for path in table[SOURCE_FILE].to_pylist()], pa.int64())
    columns = {
        ROW_ID: pc.add(files, table[SOURCE_ROW].combine_chunks()),
        LABEL: table[RAW_LABEL],
        TEXT: pa.array(texts, pa.string()),
        HASH: pa.array(hashes, pa.int64()),
        OFFICIAL: pa.repeat(shares is None, table.num_rows),
        DESTINATION: pa.array(destinations, pa.string()),
        REASON: pa.array(reasons, pa.string()),
        RAW: pa.array(raws, pa.string()),
        **{name: table[name] for name in (SOURCE_FILE, LINE, SOURCE_ROW)},
    }
    return pa.table([columns[name] for name in _CLEAN_SCHEMA.names], schema=_CLEAN_SCHEMA)


def encode(table: pa.Table, tokenizer: str, duplicates: Int64Array) -> pa.Table:
    """Add token ids to a block of clean rows and leave duplicates out.

    Args:
        table: Rows of `_CLEAN_SCHEMA`.
        tokenizer: As JSON.
        duplicates: Row ids to leave out, ascending.
    """
    table = table.filter(pa.array(~is_member(table[ROW_ID].to_numpy(), duplicates)))
    ids = _tokenizer(tokenizer).encode([text or "" for text in table[TEXT].to_pylist()])
    return table.append_column(IDS, pa.array(ids, pa.list_(pa.int32())))


def is_member(values: Int64Array, ascending: Int64Array) -> npt.NDArray[np.bool_]:
    """Which values are in an ascending array; `np.isin` would sort that array again for each block."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[at] == values
    return found


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> WordTokenizer:
    """Once a worker process, not once a block."""
    return WordTokenizer.from_json(content)
