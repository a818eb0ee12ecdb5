"""The job `prepare`: Ray Data from labeled files to encoded, split, de-duplicated Parquet.

read → normalize, label, split by hash     tasks, kept in Ray's object store
find duplicates                            driver: about 90 bytes a row (100 M rows: 9 GB)
train the tokenizer on train rows alone    driver, streaming; counting and splitting in Rust
encode → write                             tasks

A row's split follows from a hash of its normalized text, so a text and its duplicates fall on the same side, on any
machine and whatever else is in the corpus.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink
from ray.exceptions import RayTaskError

from sentiment.data.byte_stream import NOT_REGULAR, InputFile, UnreachableError, open_random_access
from sentiment.data.formats import FORMATS
from sentiment.data.listing import LOST_LINK, identify
from sentiment.data.manifest import commonest, kind_of_reason, manifest_head, reason_lines, some_of
from sentiment.data.parquet_writer import ParquetWriter
from sentiment.data.prepared import TOKENIZER
from sentiment.data.ray_source import read, read_groups
from sentiment.data.read_plan import ReadPlan, plan, texts_of
from sentiment.data.schema_inference import RAW_LABEL
from sentiment.data.validation import ROWS_PER_BATCH, raw_text
from sentiment.data.workers import ReaderDiedError, WorkerWatch, ask, find_crashing, watched_workers
from sentiment.errors import DataError, ResourceError, brief
from sentiment.labels import NEUTRAL, refuse_labels, refuse_one_class, unknown_labels
from sentiment.observability.status import status_line
from sentiment.schema import (
    DESTINATION,
    IDS,
    LABEL,
    LABELS,
    LINE,
    MANIFEST,
    NEGATIVE,
    POSITIVE,
    PREPARED_SCHEMA,
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
    TRAIN,
    VALIDATION,
)
from sentiment.session import ray_session
from sentiment.settings import PrepareSettings, RaySettings
from sentiment.storage.lock import Lock
from sentiment.storage.output_directory import OutputDirectory
from sentiment.text import NO_TEXT, fingerprint, normalize, split_of
from sentiment.tokenizers import WordTokenizer

_log = logging.getLogger(__name__)

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


_SCHEMAS = {**dict.fromkeys(SPLITS, PREPARED_SCHEMA), REJECTED: REJECTED_SCHEMA}
_THEN = "once that is mended, start anew with --overwrite"


def prepare(settings: PrepareSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Prepare labeled files for training and report.

    Returns:
        The job's JSON: rows in, of each split, duplicates, rejected, neutral, and where things are.

    Raises:
        SentimentError: Inputs or output are not as they must be.
    """
    started = time.monotonic()
    with status_line("checking the input"):
        plans = _plans(settings)
    output = OutputDirectory(settings.output)
    output.check(overwrite=settings.overwrite, inputs=[*settings.input, *settings.test_input])
    with (
        ray_session(ray_settings),
        Lock(output) as lock,
        _explaining(output),
        watched_workers(ray_settings.worker_timeout_s) as workers,
    ):
        output.claim(overwrite=settings.overwrite)
        lock.renew()  # It was removed with all else.
        checksums = [_sha256.remote(group.files, workers) for each in plans for group in read_groups(each)]
        with status_line(f"reading {sum(len(each.files) for each in plans):,} file(s)"):
            rows = _read_clean(plans, settings, workers)
            survey = _survey(rows)
        usable = len(survey.row_ids)
        refuse_labels(survey.reasons, usable + survey.reasons.total(), usable)
        duplicates = survey.duplicates()
        splits = survey.balance(duplicates)
        refuse_one_class([splits[TRAIN][label.lower()] for label in LABELS], "rows to train on")
        _log.info(f"{usable:,} usable rows, {len(duplicates):,} duplicates")
        if unknown := unknown_labels(survey.reasons):
            _log.info(f"rejected for {unknown}")
        with status_line("counting words"):
            texts = _train_texts(rows, duplicates)
            tokenizer = WordTokenizer.train(texts, settings.vocabulary_size, settings.min_frequency)
        output.write_text(TOKENIZER, tokenizer.to_json())
        encoding = functools.partial(encode, tokenizer=tokenizer.to_json(), duplicates=duplicates)
        sink = _PrepareSink(output, settings.rows_per_file, encoding, workers)
        with status_line("writing Parquet"):
            rows.write_datasink(sink)
            inputs = ray.get(checksums)
        counts = {
            "rows_in": usable + survey.reasons.total(),
            **{split: splits[split]["rows"] for split in SPLITS},
            "duplicates": len(duplicates),
            "neutral": survey.reasons[NEUTRAL],
            "rejected": survey.reasons.total() - survey.reasons[NEUTRAL],
        }
        kinds: Counter[str] = Counter()
        for reason, count in survey.reasons.items():
            if reason != NEUTRAL:
                kinds[kind_of_reason(reason)] += count
        rejected_by_reason = dict(kinds.most_common())
        _check(counts, rejected_by_reason, sink.rows, output)
        manifest = {
            "counts": counts,
            "splits": splits,
            "rejected_by_reason": rejected_by_reason,
            "vocabulary": tokenizer.vocabulary_size,
            **manifest_head(plans[0], settings),
            "inputs": inputs,
            "skipped": some_of([line for each in plans for line in each.skipped]),
        }
        lock.check_now()
        output.write_json(MANIFEST, manifest)
    if counts["rejected"]:
        _log.info(reason_lines(rejected_by_reason))
    _log.info(", ".join(f"{split} {counts[split]:,}" for split in SPLITS) + f", rejected {counts['rejected']:,}")
    return {**counts, "output": output.uri, "duration_s": round(time.monotonic() - started, 1)}


@contextmanager
def _explaining(output: OutputDirectory) -> Iterator[None]:
    """An input that can't be reached and an output that is full are the user's to mend, not a traceback."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, UnreachableError):
            said = str(error.cause).splitlines()[0]  # Ray writes advice for programmers behind it.
            raise DataError(f"{said}; {_THEN}") from None
        if isinstance(error.cause, OSError):  # An input's is told as above, or becomes rejected rows.
            raise DataError(f"can't write to {output.uri} ({brief(error.cause)}); {_THEN}") from None
        raise


def _plans(settings: PrepareSettings) -> list[ReadPlan]:
    """Plan the inputs and, if there is one, the official test set: `--test-input`, or the test half of `aclImdb`."""
    plan_of = functools.partial(
        plan,
        text_column=settings.text_column,
        label_column=settings.label_column,
        need_label=True,
        encoding=settings.encoding,
    )
    main = plan_of(settings.input)
    if settings.test_input:
        official = plan_of(settings.test_input)
        test_files = set(map(identify, official.files))
        kept = [file for file in main.files if identify(file) not in test_files]
        if not kept:
            raise DataError("--test-input takes all that --input has; nothing is left to train on")
        return [replace(main, files=tuple(kept)), official]
    halves: dict[bool, list[InputFile]] = {False: [], True: []}
    for file in main.files:
        layout = FORMATS[file.format].layout
        halves[layout is not None and file.problem is None and layout.findall(file.inner)[0][0] == TEST].append(file)
    if not halves[True] or not halves[False]:
        return [main]
    _log.info("aclImdb: its test half is kept apart")
    return [replace(main, files=tuple(halves[False])), main.with_files(halves[True])]


def _read_clean(plans: Sequence[ReadPlan], settings: PrepareSettings, workers: WorkerWatch) -> ray.data.Dataset:
    """Read and clean all inputs into the object store; files that crash their readers are rejected."""
    while True:
        try:
            with workers.naming_suspects():
                rows = _clean(plans, settings, workers).materialize()
            # Ray loses an error, and all that is left to read, if an earlier reader of the file has given blocks.
            unread: list[str] = ask(workers.log.unread.remote(), [])
            if unread:
                raise DataError(
                    f"not read to the end: {', '.join(unread[:3])}{' and others' * (len(unread) > 3)} (the reader was "
                    f"lost, and the next one failed); {_THEN}"
                )
            return rows
        except ReaderDiedError as error:
            paths = error.paths
        _log.warning(f"readers died at {', '.join(paths)}: reading it alone")
        suspects = [group for each in plans for group in read_groups(each) if group.files[0].path in paths]
        crashing = [file for group in suspects for file in find_crashing(group)]
        if not crashing:
            raise ResourceError(
                f"readers die again and again at {', '.join(paths)}, though alone it can be read: if memory is what "
                "they lack, try fewer --num-cpus; then start anew with --overwrite"
            )
        for file in crashing:
            _log.warning(f"{file.path} is rejected: {file.problem}")
        plans = [each.with_problems(crashing) for each in plans]


def _clean(plans: Sequence[ReadPlan], settings: PrepareSettings, workers: WorkerWatch) -> ray.data.Dataset:
    datasets: list[ray.data.Dataset] = []
    first = 0
    for each in plans:
        numbers = {file.path: number for number, file in enumerate(each.files, first)}
        shares = (settings.validation_share, settings.test_share if len(plans) == 1 else 0.0)
        cleaning = functools.partial(
            clean,
            text_columns=each.text_columns,
            numbers=numbers,
            shares=None if datasets else shares,
            seed=settings.seed,
        )
        called = functools.partial(workers.call, cleaning)
        rows = read(each, around=workers.reading)
        datasets.append(rows.map_batches(called, batch_format="pyarrow", batch_size=None))
        first += len(each.files)
    return datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]


def _survey(rows: ray.data.Dataset) -> Survey:
    """Bring the few bytes a row that the driver needs together."""
    reasons: Counter[str] = Counter()
    kinds = {ROW_ID: np.int64, LABEL: np.int64, HASH: np.int64, DESTINATION: np.int64, OFFICIAL: np.bool_}
    parts: dict[str, list[Any]] = {name: [np.empty(0, kind)] for name, kind in kinds.items()}
    for table in rows.select_columns([*kinds, REASON]).iter_batches(batch_size=None, batch_format="pyarrow"):
        for counted in pc.value_counts(table[REASON].drop_null()).to_pylist():
            reasons[counted["values"]] += counted["counts"]
        usable = table.filter(pc.is_null(table[REASON]))
        for name, kind in kinds.items():
            column = pc.index_in(usable[name], pa.array(SPLITS)) if name == DESTINATION else usable[name]
            parts[name].append(column.to_numpy().astype(kind))
    row_ids, labels, hashes, splits, is_official = (np.concatenate(part) for part in parts.values())
    return Survey(row_ids, labels, hashes, splits, is_official, reasons)


def _train_texts(rows: ray.data.Dataset, duplicates: Int64Array) -> Iterator[str]:
    """Stream the texts that the vocabulary is made of."""
    batches = rows.select_columns([ROW_ID, TEXT, DESTINATION]).iter_batches(batch_size=None, batch_format="pyarrow")
    for table in batches:
        is_train = pc.fill_null(pc.equal(table[DESTINATION], TRAIN), False).to_numpy()
        keep = is_train & ~is_member(table[ROW_ID].to_numpy(), duplicates)
        yield from table[TEXT].filter(pa.array(keep)).to_pylist()


class _PrepareSink(Datasink[Counter[str]]):  # type: ignore[misc]
    """Encodes clean rows and writes them to the subfolders that DESTINATION names, about `rows_per_file` to a file.

    Encoding isn't a step of its own before it: Ray keeps all blocks that a write task is given until the task ends.
    Clean ones lie in the object store anyway; encoded ones would fill the memory of the process.

    Attributes:
        rows: Rows written to each subfolder, once the write is complete.
    """

    def __init__(
        self,
        output: OutputDirectory,
        rows_per_file: int,
        encoding: Callable[[pa.Table], pa.Table],
        workers: WorkerWatch,
    ) -> None:
        # Row groups as small as this let training read a part of a file.
        self._writer = ParquetWriter(output, _SCHEMAS, rows_per_group=ROWS_PER_BATCH)
        self._rows_per_file, self._encoding, self._workers = rows_per_file, encoding, workers
        self.rows: Counter[str] = Counter()

    @property
    def min_rows_per_write(self) -> int | None:
        """Ray hands over about so many rows at once."""
        return self._rows_per_file

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Make the subfolders."""
        self._writer.make_folders()

    def write(self, blocks: Iterable[Any], ctx: Any) -> Counter[str]:
        """Write the blocks of one task; returns the rows of each subfolder."""
        with self._workers.alive():
            written = self._writer.write_stream(f"{ctx.task_idx:06d}", self._encoded(blocks))
        return Counter({posixpath.dirname(path): rows for path, (rows, _) in written.items()})

    def _encoded(self, blocks: Iterable[Any]) -> Iterator[dict[str, pa.Table]]:
        """Encoded rows by subfolder, a row group's worth at a time."""
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            for start in range(0, table.num_rows, ROWS_PER_BATCH):
                encoded = self._encoding(table.slice(start, ROWS_PER_BATCH))
                yield {name: encoded.filter(pc.equal(encoded[DESTINATION], name)) for name in _SCHEMAS}

    def on_write_complete(self, write_result: Any) -> None:
        """Add up what the tasks wrote."""
        for rows in write_result.write_returns:
            self.rows += rows


@ray.remote(num_cpus=0.25)  # type: ignore[untyped-decorator]
def _sha256(files: tuple[InputFile, ...], workers: WorkerWatch) -> dict[str, Any]:
    return workers.call(_checksum, files)


def _checksum(files: tuple[InputFile, ...]) -> dict[str, Any]:
    """Checksum of a file as stored, or of a thousand one-review files in a row; null where nothing is stored."""
    digest, size = hashlib.sha256(), 0
    stored = [file for file in files if file.problem not in (LOST_LINK, NOT_REGULAR)]
    for file in stored:
        try:
            with open_random_access(InputFile(file.path, file.root, file.inner, file.format)) as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:  # Its bytes are all that is asked for: there is no damage that this could be.
            raise UnreachableError(f"{file.path} can't be read now: {brief(error)}") from error
    more = {} if len(files) == 1 else {"files": len(files), "last": files[-1].path}
    return {"path": files[0].path, **more, "bytes": size, "sha256": digest.hexdigest() if stored else None}


def _check(counts: dict[str, int], reasons: dict[str, int], rows: Counter[str], output: OutputDirectory) -> None:
    """Hold what was written against what was read: nothing may be lost between the two."""
    written = {name: rows[name] for name in _SCHEMAS}
    expected = {name: counts[name] for name in written}
    if written != expected:
        raise RuntimeError(f"rows written to {output.uri} {written} are not those that were read {expected}")
    if not counts[TRAIN]:
        why = f": {commonest(reasons)}; {output.uri}/{REJECTED} has them all" if reasons else ""
        raise DataError(f"no row can be trained on, of {counts['rows_in']:,}{why}")
    if not counts[VALIDATION]:
        _log.warning("no validation rows; training will need some")


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


def clean(
    table: pa.Table,
    text_columns: Sequence[str],
    numbers: Mapping[str, int],
    shares: tuple[float, float] | None,
    seed: int,
) -> pa.Table:
    """Normalize the texts of a block and settle each row's split.

    Args:
        table: Rows as they were read.
        numbers: Number of each file, for row ids.
        shares: Of validation and test; None for the official test set.
        seed: Of the split.

    Returns:
        Rows of `_CLEAN_SCHEMA`; destination is a split, `rejected`, or null for neutral rows.
    """
    raw_texts = texts_of(table, text_columns).to_pylist()
    texts = [None if text is None else normalize(text) for text in raw_texts]
    reasons, raws = table[REASON].to_pylist(), table[RAW].to_pylist()
    destinations: list[str | None] = []
    hashes: list[int | None] = []
    for index, text in enumerate(texts):
        if text == "" and reasons[index] is None:
            # Nothing but what the normalizer takes out, such as control characters.
            reasons[index], raws[index] = NO_TEXT, raw_text(raw_texts[index].encode())
        if reasons[index] is not None or text is None:
            hashes.append(None)
            destinations.append(None if reasons[index] == NEUTRAL else REJECTED)
            continue
        text_hash = fingerprint(text)
        hashes.append(text_hash)
        destinations.append(TEST if shares is None else SPLITS[split_of(text_hash, *shares, seed)])
    files = pa.array([numbers[path] << _ROWS_PER_FILE_BITS for path in table[SOURCE_FILE].to_pylist()], pa.int64())
    columns = {
        ROW_ID: pc.add(files, table[SOURCE_ROW].combine_chunks()),
        LABEL: table[RAW_LABEL],
        TEXT: texts,
        HASH: hashes,
        OFFICIAL: pa.repeat(shares is None, table.num_rows),
        DESTINATION: destinations,
        REASON: reasons,
        RAW: raws,
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
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[places] == values
    return found


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> WordTokenizer:
    """Once a worker process, not once a block."""
    return WordTokenizer.from_json(content)
