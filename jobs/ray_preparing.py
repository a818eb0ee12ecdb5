"""Ray Data from labelled files to encoded, split, de-duplicated Parquet.

read → normalise, label, split by hash     tasks, kept in Ray's object store
find duplicates                            driver: about 90 bytes a row (100 M rows: 9 GB)
train the tokenizer on train rows alone    driver, streaming; counting and splitting in Rust
encode → write                             tasks
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayTaskError

from jobs.lock import Lock
from jobs.report import kind_of_reason, manifest_head, some_of
from sentiment.corpora.cleaning import HASH, OFFICIAL, Int64Array, Survey, clean, encode, is_member
from sentiment.corpora.folder import Folder
from sentiment.corpora.inputs import LOST_LINK, place_of
from sentiment.corpora.labels import NEUTRAL, refuse_scale
from sentiment.corpora.planning import ReadPlan, SourceFile, plan
from sentiment.corpora.prepared import TOKENIZER
from sentiment.corpora.reading import group_files, read
from sentiment.corpora.sink import FolderSink
from sentiment.corpora.streams import NOT_REGULAR, UnreachableError, open_random_access
from sentiment.errors import DataError, brief
from sentiment.schema import (
    DESTINATION,
    LABEL,
    MANIFEST,
    PREPARED_SCHEMA,
    REASON,
    REJECTED,
    REJECTED_SCHEMA,
    ROW_ID,
    SPLITS,
    TEST,
    TEXT,
    TRAIN,
    VALIDATION,
)
from sentiment.session import ray_session
from sentiment.settings import PrepareSettings, RaySettings
from sentiment.tokenizers import WordTokenizer


def prepare(settings: PrepareSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Prepare labelled files for training and report.

    Args:
        settings: Section `prepare`.
        ray_settings: Section `ray`.

    Returns:
        The job's JSON: rows in, of each split, duplicates, rejected, neutral, and where things are.

    Raises:
        SentimentError: Inputs or output are not as they must be.
    """
    started = time.monotonic()
    main, official = _plans(settings)
    output = Folder(settings.output)
    output.check(overwrite=settings.overwrite, inputs=[*settings.input, *settings.test_input])
    with ray_session(ray_settings), Lock(output) as lock, _told(output):
        output.claim(overwrite=settings.overwrite)
        lock.renew()  # It was removed with all else.
        checksums = [_sha256.remote(group) for each in (main, official) if each for group in group_files(each)]
        rows = _read_clean(main, official, settings)
        survey = _survey(rows)
        refuse_scale(survey.reasons, len(survey.row_ids) + survey.reasons.total())
        duplicates = survey.duplicates()
        _say(f"{len(survey.row_ids):,} usable rows, {len(duplicates):,} duplicates")
        texts = _train_texts(rows, duplicates)
        tokenizer = WordTokenizer.train(texts, settings.vocabulary_size, settings.min_frequency)
        output.write_text(TOKENIZER, tokenizer.to_json())
        sink = FolderSink(
            output, {**dict.fromkeys(SPLITS, PREPARED_SCHEMA), REJECTED: REJECTED_SCHEMA}, settings.rows_per_file
        )
        settled = functools.partial(encode, tokenizer=tokenizer.to_json(), duplicates=duplicates)
        rows.map_batches(settled, batch_format="pyarrow", batch_size=None).write_datasink(sink)
        inputs = ray.get(checksums)
        splits = survey.balance(duplicates)
        counts = {
            "rows_in": len(survey.row_ids) + survey.reasons.total(),
            **{split: splits[split]["rows"] for split in SPLITS},
            "duplicates": len(duplicates),
            "neutral": survey.reasons[NEUTRAL],
            "rejected": survey.reasons.total() - survey.reasons[NEUTRAL],
        }
        _check(counts, sink, output)
        manifest = {
            "counts": counts,
            "splits": splits,
            "rejected_by_reason": _by_kind(survey.reasons),
            "vocabulary": tokenizer.vocabulary_size,
            **manifest_head(main, settings),
            "inputs": inputs,
            "skipped": some_of([line for each in (main, official) if each for line in each.skipped]),
        }
        lock.check_now()
        output.write_json(MANIFEST, manifest)
    _say(", ".join(f"{split} {counts[split]:,}" for split in SPLITS) + f", rejected {counts['rejected']:,}")
    return {**counts, "output": output.uri, "duration_s": round(time.monotonic() - started, 1)}


@contextmanager
def _told(output: Folder) -> Iterator[None]:
    """An input that can't be reached and an output that is full are the user's to mend, not a traceback."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, UnreachableError):
            said = str(error.cause).splitlines()[0]  # Ray writes advice for programmers behind it.
            raise DataError(f"{said}; once that is mended, start anew with --overwrite") from None
        if isinstance(error.cause, OSError):  # An input's is told as above, or becomes rejected rows.
            raise DataError(
                f"can't write to {output.uri} ({brief(error.cause)}); once that is mended, start anew with --overwrite"
            ) from None
        raise


def _plans(settings: PrepareSettings) -> tuple[ReadPlan, ReadPlan | None]:
    """Plan the inputs and the official test set: `--test-input`, or the test half of an `aclImdb` folder."""
    look = functools.partial(
        plan,
        text_column=settings.text_column,
        label_column=settings.label_column,
        need_label=True,
        encoding=settings.encoding,
    )
    main = look(settings.input)
    if settings.test_input:
        official = look(settings.test_input)
        apart = {place_of(file.root, file.inner) for file in official.files}
        kept = tuple(file for file in main.files if place_of(file.root, file.inner) not in apart)
        if not kept:
            raise DataError("--test-input takes all that --input has; nothing is left to train on")
        return dataclasses.replace(main, files=kept), official
    halves: dict[bool, list[SourceFile]] = {True: [], False: []}
    for file in main.files:
        halves[file.form == "imdb" and PurePosixPath(file.inner).parent.parent.name == TEST].append(file)
    if not halves[True] or not halves[False]:
        return main, None
    _say("aclImdb: its test half is kept apart")
    return dataclasses.replace(main, files=tuple(halves[False])), dataclasses.replace(main, files=tuple(halves[True]))


def _read_clean(main: ReadPlan, official: ReadPlan | None, settings: PrepareSettings) -> ray.data.Dataset:
    """Read and clean all inputs into the object store."""
    numbers = {file.path: number for number, file in enumerate(main.files)}
    shares = (settings.validation_share, 0.0 if official else settings.test_share)
    cleaned = functools.partial(clean, numbers=numbers, shares=shares, seed=settings.seed)
    rows = read(main).map_batches(cleaned, batch_format="pyarrow", batch_size=None)
    if official:
        numbers = {file.path: len(main.files) + number for number, file in enumerate(official.files)}
        cleaned = functools.partial(clean, numbers=numbers, shares=None, seed=settings.seed)
        rows = rows.union(read(official).map_batches(cleaned, batch_format="pyarrow", batch_size=None))
    return rows.materialize()


def _survey(rows: ray.data.Dataset) -> Survey:
    """Bring the few bytes a row that the driver needs together."""
    reasons: Counter[str] = Counter()
    parts: dict[str, list[Any]] = {name: [] for name in (ROW_ID, LABEL, HASH, OFFICIAL, DESTINATION)}
    for table in rows.select_columns([*parts, REASON]).iter_batches(batch_size=None, batch_format="pyarrow"):
        for counted in pc.value_counts(table[REASON].drop_null()).to_pylist():
            reasons[counted["values"]] += counted["counts"]
        usable = table.filter(pc.is_null(table[REASON]))
        for name in (ROW_ID, LABEL, HASH, OFFICIAL):
            parts[name].append(usable[name].to_numpy())
        parts[DESTINATION].append(pc.index_in(usable[DESTINATION], pa.array(SPLITS)).to_numpy())

    def joined(name: str, kind: type) -> Any:
        return np.concatenate([np.empty(0, kind), *parts[name]]).astype(kind)

    return Survey(
        joined(ROW_ID, np.int64),
        joined(LABEL, np.int64),
        joined(HASH, np.int64),
        joined(DESTINATION, np.int64),
        joined(OFFICIAL, np.bool_),
        reasons,
    )


def _train_texts(rows: ray.data.Dataset, duplicates: Int64Array) -> Iterator[str]:
    """Stream the texts that the vocabulary is made of."""
    batches = rows.select_columns([ROW_ID, TEXT, DESTINATION]).iter_batches(batch_size=None, batch_format="pyarrow")
    for table in batches:
        is_train = pc.fill_null(pc.equal(table[DESTINATION], TRAIN), False).to_numpy()
        keep = is_train & ~is_member(table[ROW_ID].to_numpy(), duplicates)
        yield from table[TEXT].filter(pa.array(keep)).to_pylist()


@ray.remote(num_cpus=0.25)
def _sha256(files: tuple[SourceFile, ...]) -> dict[str, Any]:
    """Checksum of a file as stored, or of a thousand one-review files in a row; null where nothing is stored."""
    digest, size = hashlib.sha256(), 0
    stored = [file for file in files if file.problem not in (LOST_LINK, NOT_REGULAR)]
    for file in stored:
        try:
            with open_random_access(file.root, file.inner, None) as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:  # Its bytes are all that is asked for: there is no damage that this could be.
            raise UnreachableError(f"{file.path} can't be read now: {brief(error)}") from error
    more = {} if len(files) == 1 else {"files": len(files), "last": files[-1].path}
    return {"path": files[0].path, **more, "bytes": size, "sha256": digest.hexdigest() if stored else None}


def _by_kind(reasons: Counter[str]) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for reason, count in reasons.items():
        if reason != NEUTRAL:
            kinds[kind_of_reason(reason)] += count
    return dict(kinds.most_common())


def _check(counts: dict[str, int], sink: FolderSink, output: Folder) -> None:
    """Hold what was written against what was read: nothing may be lost between the two."""
    written = {name: sink.rows[name] for name in (*SPLITS, REJECTED)}
    expected = {name: counts[name] for name in written}
    if written != expected:
        raise RuntimeError(f"rows written to {output.uri} {written} are not those that were read {expected}")
    if not counts[TRAIN]:
        raise DataError(f"no row can be trained on; {output.uri}/{REJECTED} says why")
    if not counts[VALIDATION]:
        _say("warning: no validation rows; training will need some")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
