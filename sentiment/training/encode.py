"""Writes the shards that a BERT-GRU trains on, by a pool of encoder actors of Ray Data, before training starts.

    FOLDER/features-DIGEST/{train,validation,test}/PART-START.safetensors, see `sentiment.training.feature_cache`

An actor reads a slice of the prepared rows, tokenizes it, runs the frozen encoder over it (unless features aren't
cached) and writes one shard. Shards that exist are not written again: a job that was stopped resumes, and several runs
on the same data can share a folder. Whether features are cached is decided before Ray starts and anything is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from sentiment.data.prepared import PreparedData
from sentiment.devices import has_fast_bf16, limit_threads, pick_device, resolve_precision
from sentiment.errors import ConfigError, DataError, ResourceError, SentimentError
from sentiment.models.bert_gru import BertGruClassifier
from sentiment.models.config import encoder_config
from sentiment.models.encoders import find_again, load_encoder
from sentiment.observability.progress import Progress
from sentiment.schema import LABEL, ROW_ID, SPLITS, TEXT, TRAIN
from sentiment.session import capacity
from sentiment.settings import TrainBertSettings, TrainSettings
from sentiment.storage.uris import is_uri
from sentiment.training.bert_models import BertRun
from sentiment.training.feature_cache import FrozenEncoder, Slice, write_shard

_log = logging.getLogger(__name__)

# A shard holds about so many tokens: 50 MB of a base encoder's features, what an actor has in memory at a time.
_SHARD_TOKENS = 32_768
_MAX_SHARD_ROWS = 4096
# Texts that the mean length is taken from, out of so many files at most.
_SAMPLE_ROWS, _SAMPLE_FILES = 1024, 8
# Of the free disk: what else is written to it needs room too.
_DISK_SHARE = 0.8
_ERROR = "error"


def features_folder(settings: TrainBertSettings) -> Path:
    """Where features go; made, if it is the user's own folder.

    Raises:
        ConfigError: They can't go there.
    """
    if settings.features is None:
        if is_uri(settings.output):
            raise ConfigError(f"--output {settings.output}: --features is needed too, a folder that all nodes see")
        return Path(settings.output, "features").absolute()
    if is_uri(settings.features):
        raise ConfigError(f"--features {settings.features}: a local or shared folder is needed, not a URI")
    folder = Path(settings.features).expanduser().absolute()
    if folder.is_relative_to(Path(settings.output).absolute()):
        raise ConfigError(f"--features {folder} is in --output, which isn't kept; name a folder beside it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--features {folder}: {error.strerror}; name another folder") from error
    return folder


def plan_encoding(run: BertRun, settings: TrainBertSettings, folder: Path) -> BertRun:
    """Decide whether features are cached. Changes nothing on disk.

    Args:
        run: What is to be trained.
        settings: What is asked for.
        folder: Where shards go; all nodes must see it.

    Returns:
        The run with its shards' folder and slices.

    Raises:
        ResourceError: Features are to be cached and the disk has no room for them.
    """
    prepared, recipe, asked = PreparedData(run.data), run.recipe, settings.cache_features
    # Mean tokens of a text as the model reads it, from a sample of the training rows.
    files = list(prepared.files(TRAIN))[:_SAMPLE_FILES]
    rows_per_file = -(-_SAMPLE_ROWS // len(files))
    texts = [text for file in files for text in prepared.rows_of(TRAIN, file, 0, rows_per_file)[TEXT].to_pylist()]
    tokens_per_row = sum(map(len, run.tokenizer.encode(texts, recipe.max_length))) / len(texts)
    rows_per_shard = max(1, min(_MAX_SHARD_ROWS, int(_SHARD_TOKENS / tokens_per_row)))
    slices = [
        Slice(split, file, start, min(rows_per_shard, rows - start))
        for split in SPLITS
        for file, rows in prepared.files(split).items()
        for start in range(0, rows, rows_per_shard)
    ]

    def shards(*, cached: bool) -> Path:
        """Shards made of the same can be shared."""
        layout = [dataclasses.astuple(part) for part in slices]
        text = [run.tokenizer_sha256, recipe.max_length, recipe.truncation]
        decisive = [prepared.digest, layout, text, cached]
        if cached:
            decisive += [run.encoder.sha256, recipe.unfreeze_layers, run.precision, settings.use_gpu]
        return folder / f"features-{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]}"

    # What "auto" comes to is known where the GPUs are, and they may be elsewhere: most have bf16.
    is_half = run.precision == "bf16" or (
        run.precision == "auto" and (settings.use_gpu or has_fast_bf16(torch.device("cpu")))
    )
    width, cache = encoder_config(run.encoder_config).hidden_size, shards(cached=True)
    size = int(sum(part.rows for part in slices) * tokens_per_row * width * (2 if is_half else 4))
    missing = max(0, size - sum(path.stat().st_size for path in cache.glob("*/*.safetensors")))
    free = shutil.disk_usage(next(parent for parent in cache.parents if parent.exists())).free
    sizes = f"about {size / 1e9:.2f} GB, {missing / 1e9:.2f} GB of it missing, {free / 1e9:.1f} GB free"
    fits = missing <= _DISK_SHARE * free
    if asked == "always" and not fits:
        raise ResourceError(
            f"--cache-features always: the features don't fit in {folder} ({sizes}); name another folder with "
            "--features, cut texts with --max-length, or use --cache-features never"
        )
    is_cached = asked == "always" or (asked == "auto" and fits)
    words = "encoded once and kept" if is_cached else "encoded anew in each epoch"
    return dataclasses.replace(
        run,
        caches_features=is_cached,
        shards=str(cache if is_cached else shards(cached=False)),
        slices=slices,
        cache_summary=f"features: {words} ({sizes}; --cache-features {asked})",
    )


class Encoder:
    """Actor of the pool: tokenizes slices and runs the frozen encoder.

    Args:
        run: What is trained, and where the shards go.
        use_gpu: Whether this actor was given a GPU.
        num_threads: Threads of torch.
        board: Where rows are reported.
    """

    def __init__(self, run: BertRun, use_gpu: bool, num_threads: int, board: Any) -> None:
        limit_threads(num_threads)
        self._run, self._board, self._use_gpu = run, board, use_gpu
        self._encoder: FrozenEncoder | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the shards of slices; what a user can correct is returned, for raised it would come out wrapped."""
        errors: list[str | None] = []
        for row in table.to_pylist():
            try:
                self._encode(Slice(**row))
                errors.append(None)
                self._board.add.remote(row["rows"])
            except (SentimentError, OSError) as error:
                errors.append(str(error))
        return table.append_column(_ERROR, pa.array(errors, pa.string()))

    def _encode(self, part: Slice) -> None:
        run, recipe, tokenizer = self._run, self._run.recipe, self._run.tokenizer
        if run.caches_features and self._encoder is None:  # Not when the actor is made: there errors can't be returned.
            device = pick_device(self._use_gpu)
            model = BertGruClassifier(run.encoder_config)
            model.encoder = load_encoder(find_again(run.encoder))
            lower, _ = model.halves(recipe.unfreeze_layers)
            self._encoder = FrozenEncoder(lower.to(device), device, resolve_precision(run.precision, device))
        rows = PreparedData(run.data).rows_of(part.split, part.file, part.start, part.rows)
        ids = tokenizer.encode(rows[TEXT].to_pylist(), recipe.max_length, truncation=recipe.truncation)
        features_SE = self._encoder.rows(ids, tokenizer.pad_id) if self._encoder else None
        labels_N = rows[LABEL].to_numpy().astype(np.int32)
        write_shard(part.shard(run.shards), rows[ROW_ID].to_numpy(), labels_N, ids, features_SE)


def encode(run: BertRun, settings: TrainSettings) -> None:
    """Write the shards that are missing, with as many actors as there will be workers.

    Raises:
        DataError: An actor can't read, or can't write.
    """
    _log.info(run.cache_summary)
    missing = [dataclasses.asdict(part) for part in run.slices if not part.shard(run.shards).exists()]
    if not missing:
        return
    least, most = settings.workers
    gpus = 1 if settings.use_gpu else 0
    with Progress("encode", "rows") as progress:
        progress.actor.show.remote("encode", 0, sum(part["rows"] for part in missing))
        done = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            Encoder,
            fn_constructor_kwargs={
                "run": run,
                "use_gpu": settings.use_gpu,
                "num_threads": settings.cpus_per_worker,
                "board": progress.actor,
            },
            batch_format="pyarrow",
            batch_size=1,
            compute=ActorPoolStrategy(size=max(least, min(most, capacity(settings.cpus_per_worker, gpus)))),
            num_cpus=settings.cpus_per_worker,
            num_gpus=gpus,
        )
        for row in done.iter_rows():
            if row[_ERROR] is not None:
                raise DataError(f"encoding {row['split']}/{row['file']}: {row[_ERROR]}")
