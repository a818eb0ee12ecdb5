"""What a BERT-GRU is to be trained on: whether features are kept, and which slices of the data become which shards.

Decided before Ray starts, and before anything is written.

FOLDER/features-DIGEST/{train,validation,test}/PART-START.safetensors, see `sentiment.features`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from jobs.bert_run import BertRun
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import has_fast_bf16
from sentiment.errors import ConfigError, ResourceError
from sentiment.models.bert_gru import encoder_config
from sentiment.schema import SPLITS, TEXT, TRAIN
from sentiment.settings import TrainBertSettings
from sentiment.uris import is_uri

# A shard holds about so many tokens: 50 MB of a base encoder's features, what an actor has in memory at a time.
_SHARD_TOKENS = 32_768
_MAX_SHARD_ROWS = 4096
# Texts that the mean length is taken from, out of so many files at most.
_SAMPLE, _SAMPLE_FILES = 1024, 8
# Of the free disk: what else is written there needs room too.
_DISK_SHARE = 0.8


@dataclass(frozen=True)
class Slice:
    """Rows of one prepared Parquet file, and the shard that they become."""

    split: str
    file: str
    start: int
    rows: int

    def shard(self, folder: Path) -> Path:
        """Where it is written."""
        return folder / self.split / f"{Path(self.file).stem}-{self.start:09}.safetensors"


@dataclass(frozen=True)
class Encoding:
    """What is to be encoded.

    Attributes:
        run: The run, with its shards' place.
        keep: Write features, not token ids.
        slices: All rows of all splits.
        line: What was decided, for people.
    """

    run: BertRun
    keep: bool
    slices: list[Slice]
    line: str

    @property
    def missing(self) -> list[Slice]:
        """Slices whose shards aren't there."""
        shards = Path(self.run.shards)
        return [part for part in self.slices if not part.shard(shards).exists()]


def features_folder(settings: TrainBertSettings) -> Path:
    """Where features go; made, if it is the user's own folder.

    Raises:
        ConfigError: They can't go there.
    """
    if settings.features is None and is_uri(settings.output):
        raise ConfigError(f"--output {settings.output}: --features is needed too, a folder that all nodes see")
    if settings.features is None:
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


def plan_encoding(run: BertRun, settings: TrainBertSettings, folder: Path) -> Encoding:
    """Decide whether features are kept. Changes nothing.

    Args:
        run: What is to be trained.
        settings: What is asked for.
        folder: Where shards go; all nodes must see it.

    Raises:
        ResourceError: Features are to be kept and the disk has no room for them.
    """
    prepared = PreparedData(run.data)
    tokens_a_row = _tokens_a_row(run, prepared)
    slices = _slices(prepared, max(1, min(_MAX_SHARD_ROWS, int(_SHARD_TOKENS / tokens_a_row))))
    width = encoder_config(run.encoder_config).hidden_size
    # What "auto" comes to is known where the GPUs are, and they may be elsewhere: most have bf16.
    is_half = run.precision == "bf16" or (
        run.precision == "auto" and (settings.use_gpu or has_fast_bf16(torch.device("cpu")))
    )
    size = int(sum(part.rows for part in slices) * tokens_a_row * width * (2 if is_half else 4))
    kept = folder / f"features-{_digest(run, slices, settings.use_gpu, keep=True)}"
    keep, line = _decide(settings.cache_features, size, kept)
    shards = kept if keep else folder / f"features-{_digest(run, slices, settings.use_gpu, keep=False)}"
    return Encoding(dataclasses.replace(run, shards=str(shards)), keep, slices, line)


def _decide(asked: Literal["auto", "always", "never"], size: int, kept: Path) -> tuple[bool, str]:
    """Whether to keep features that take `size` bytes in `kept`, and what to say of it."""
    there = next(parent for parent in (kept, *kept.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    missing = max(0, size - sum(path.stat().st_size for path in kept.glob("*/*.safetensors")))
    fits = missing <= _DISK_SHARE * free
    sizes = f"about {size / 1e9:.2f} GB, {missing / 1e9:.2f} GB of it missing, {free / 1e9:.1f} GB free"
    if asked == "always" and not fits:
        raise ResourceError(
            f"--cache-features always: the features don't fit in {kept.parent} ({sizes}); name another folder with "
            "--features, cut texts with --max-length, or use --cache-features never"
        )
    keep = asked == "always" or (asked == "auto" and fits)
    words = "encoded once and kept" if keep else "encoded anew in each epoch"
    return keep, f"features: {words} ({sizes}; --cache-features {asked})"


def _digest(run: BertRun, slices: list[Slice], use_gpu: bool, *, keep: bool) -> str:
    """Shards made of the same can be shared."""
    recipe = run.recipe
    layout = [dataclasses.astuple(part) for part in slices]
    text = [run.tokenizer_sha256, recipe.max_length, recipe.truncation]
    decisive = [PreparedData(run.data).digest, layout, text, keep]
    if keep:
        decisive += [run.encoder.sha256, recipe.unfreeze_layers, run.precision, use_gpu]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]


def _tokens_a_row(run: BertRun, prepared: PreparedData) -> float:
    """Mean tokens of a text as the model reads it, from a sample of the training rows."""
    files = list(prepared.files(TRAIN))[:_SAMPLE_FILES]
    each = -(-_SAMPLE // len(files))
    texts = [text for file in files for text in prepared.rows_of(TRAIN, file, 0, each)[TEXT].to_pylist()]
    ids = run.tokenizer.encode(texts, run.recipe.max_length)
    return sum(map(len, ids)) / len(ids)


def _slices(prepared: PreparedData, rows_a_shard: int) -> list[Slice]:
    return [
        Slice(split, file, start, min(rows_a_shard, rows - start))
        for split in SPLITS
        for file, rows in prepared.files(split).items()
        for start in range(0, rows, rows_a_shard)
    ]
