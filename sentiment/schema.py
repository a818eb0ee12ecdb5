"""Column names, label order and Arrow schemas: the only home of these strings.

Label order is 0 negative, 1 positive everywhere: in prepared data, in logits and in probabilities.
"""

from __future__ import annotations

import pyarrow as pa

LABELS = ("NEGATIVE", "POSITIVE")
NEGATIVE, POSITIVE = 0, 1

# Where a row came from: its file and its place in it (0 for the first data row). Both survive to the output.
SOURCE_FILE = "source_file"
SOURCE_ROW = "source_row"
# 1-based line in a text file (the first line of the record), 1-based row in a Parquet file.
LINE = "line"
# Why a row can't be used; null for a usable row.
REASON = "reason"
# The rejected row as it stood, cut to RAW_LIMIT characters.
RAW = "raw"
RAW_LIMIT = 4096

# Names the subfolder that a row is written to; null leaves it out. Not written itself.
DESTINATION = "__destination"

ROW_ID = "row_id"
TEXT = "text"
LABEL = "label"
IDS = "ids"

# What an evaluated row was labeled, 0 or 1.
TRUE_LABEL = "true_label"

# Added by scoring; its label is one of `LABELS`.
SCORE_LABEL = "label"
SCORE = "score"
P_POSITIVE = "p_positive"
MODEL_ID = "model_id"

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
SCORED = "scored"
REJECTED = "rejected"
# Written last by prepare and score: counts, inputs, settings.
MANIFEST = "manifest.json"

SOURCE_FIELDS = (
    pa.field(SOURCE_FILE, pa.string(), nullable=False),
    pa.field(SOURCE_ROW, pa.int64(), nullable=False),
)

PREPARED_SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.int64(), nullable=False),
        pa.field(LABEL, pa.int8(), nullable=False),
        pa.field(TEXT, pa.string(), nullable=False),
        pa.field(IDS, pa.list_(pa.int32()), nullable=False),
        *SOURCE_FIELDS,
    ]
)

# In rejected/, if the user names an id column.
ID_FIELD = pa.field("id", pa.string())

REJECTED_SCHEMA = pa.schema(
    [
        *SOURCE_FIELDS,
        pa.field(LINE, pa.int64(), nullable=False),
        pa.field(REASON, pa.string(), nullable=False),
        pa.field(RAW, pa.string()),
    ]
)

SCORE_FIELDS = (
    pa.field(SCORE_LABEL, pa.string(), nullable=False),
    pa.field(SCORE, pa.float32(), nullable=False),
    pa.field(P_POSITIVE, pa.float32(), nullable=False),
    pa.field(MODEL_ID, pa.string(), nullable=False),
)
