"""Files as they are read, with the text of each row in one column, whatever it is called in its file."""

from __future__ import annotations

import pyarrow as pa

from sentiment.data.formats import batches_of
from sentiment.data.read_plan import ReadPlan, texts_of
from sentiment.data.validation import ROWS_PER_BATCH

# A column that no reader makes.
TEXT = "the text"


def with_text(table: pa.Table, plan: ReadPlan) -> pa.Table:
    return table.append_column(TEXT, texts_of(table, plan.text_columns))


def read_tables(plan: ReadPlan, max_rows: int = ROWS_PER_BATCH) -> list[pa.Table]:
    tables = [batch.build() for batch in batches_of(plan, max_rows)]
    assert all(table.schema == plan.schema for table in tables)
    return [with_text(table, plan) for table in tables]
