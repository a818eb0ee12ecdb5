"""Texts to what a BERT-GRU trains on, by a pool of encoder actors of Ray Data, before training starts.

An actor reads a slice of the prepared rows, tokenises it, runs the frozen encoder over it (unless features aren't kept)
and writes one shard. A shard that is there is done: a job that was stopped goes on where it was, and several runs on
the same data can share a folder.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from jobs.bert_run import BertRun
from jobs.encoding_plan import Encoding, Slice
from jobs.progress import Progress
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import limit_threads, pick_device, resolve_precision
from sentiment.encoders import find_again, load_encoder
from sentiment.errors import DataError, SentimentError
from sentiment.features import FrozenEncoder, write_shard
from sentiment.models.bert_gru import BertGruClassifier
from sentiment.schema import LABEL, ROW_ID, TEXT
from sentiment.session import room
from sentiment.settings import TrainBertSettings

_ERROR = "error"


class Encoder:
    """Actor of the pool: tokenises slices and runs the frozen encoder.

    Args:
        run: What is trained, and where the shards go.
        keep: Write features, not token ids.
        use_gpu: Whether this actor was given a GPU.
        num_threads: Threads of torch.
        board: Where rows are reported.
    """

    def __init__(self, run: BertRun, keep: bool, use_gpu: bool, num_threads: int, board: Any) -> None:
        limit_threads(num_threads)
        self._run, self._board, self._keep, self._use_gpu = run, board, keep, use_gpu
        self._prepared: PreparedData | None = None
        self._encoder: FrozenEncoder | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Turn slices into shards; what a user can mend is returned, for raised it would come out wrapped."""
        errors: list[str | None] = []
        for row in table.to_pylist():
            try:
                self._encode(Slice(**row))
                errors.append(None)
                self._board.add.remote(row["rows"])
            except (SentimentError, OSError) as error:
                errors.append(str(error))
        return table.append_column(_ERROR, pa.array(errors, pa.string()))

    def _load(self) -> PreparedData:
        """With the first slice, not when the actor is made: there errors can be returned."""
        run = self._run
        if self._keep:
            device = pick_device(self._use_gpu)
            model = BertGruClassifier(run.encoder_config)
            model.encoder = load_encoder(find_again(run.encoder))
            lower, _ = model.halves(run.recipe.unfreeze_layers)
            self._encoder = FrozenEncoder(lower.to(device), device, resolve_precision(run.precision, device))
        return PreparedData(run.data)

    def _encode(self, part: Slice) -> None:
        prepared = self._prepared = self._prepared or self._load()
        rows = prepared.rows_of(part.split, part.file, part.start, part.rows)
        recipe, tokenizer = self._run.recipe, self._run.tokenizer
        ids = tokenizer.encode(rows[TEXT].to_pylist(), recipe.max_length, truncation=recipe.truncation)
        features_SE = self._encoder.rows(ids, tokenizer.pad_id) if self._encoder else None
        labels_N = rows[LABEL].to_numpy().astype(np.int32)
        write_shard(part.shard(Path(self._run.shards)), rows[ROW_ID].to_numpy(), labels_N, ids, features_SE)


def encode(encoding: Encoding, settings: TrainBertSettings) -> None:
    """Write the shards, or what is missing of them, with as many actors as there will be workers.

    Raises:
        DataError: An actor can't read, or can't write.
    """
    print(encoding.line, file=sys.stderr, flush=True)
    parts = [dataclasses.asdict(part) for part in encoding.missing]
    if not parts:
        return
    least, most = settings.workers
    gpus = 1 if settings.use_gpu else 0
    actors = max(least, min(most, room(settings.cpus_per_worker, gpus)))
    with Progress("encode", "rows") as progress:
        progress.board.show.remote("encode", 0, sum(part["rows"] for part in parts))
        done = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            Encoder,
            fn_constructor_kwargs={
                "run": encoding.run,
                "keep": encoding.keep,
                "use_gpu": settings.use_gpu,
                "num_threads": settings.cpus_per_worker,
                "board": progress.board,
            },
            batch_format="pyarrow",
            batch_size=1,
            compute=ActorPoolStrategy(size=actors),
            num_cpus=settings.cpus_per_worker,
            num_gpus=gpus,
        )
        for row in done.iter_rows():
            if row[_ERROR] is not None:
                raise DataError(f"encoding {row['split']}/{row['file']}: {row[_ERROR]}")
