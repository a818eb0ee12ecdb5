"""A bundle: one directory that holds everything needed to predict.

    config.json         recipe, model shape, maximum length, label order, format version
    model.safetensors   weights; of a BERT-GRU, with the encoder or (by reference) without
    tokenizer.json      the tokenizer, as the `tokenizers` library saves it
    metrics.json        figures on validation and test rows, training history
    README.md           model card
    MANIFEST.json       size and sha256 of each file; written last, so a directory without it is no bundle

No pickle in either direction. A bundle may come from anywhere: what it says is checked against limits and against its
files before memory is taken for any of it (docs/bundles.md). The model id is the recipe's name and a digest of the
manifest, so two bundles with the same id predict the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentiment.errors import BundleError, DataError, brief
from sentiment.models.config import BertGruConfig, Length, ModelConfig
from sentiment.storage.filesystems import fetch
from sentiment.storage.uris import is_uri
from sentiment.tokenizers import EncoderTokenizer, Tokenizer, WordTokenizer
from sentiment.untrusted import (
    MAX_CONFIG_BYTES,
    MAX_TEXT_BYTES,
    MAX_WEIGHTS_BYTES,
    check_numbers,
    read_file,
    size_of,
)

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
METRICS, CARD, MANIFEST = "metrics.json", "README.md", "MANIFEST.json"

_MAX_BYTES = {
    CONFIG: MAX_CONFIG_BYTES,
    WEIGHTS: MAX_WEIGHTS_BYTES,
    **dict.fromkeys((TOKENIZER, METRICS, CARD), MAX_TEXT_BYTES),
}

Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleConfig(_Strict):
    """`config.json` of a bundle."""

    format: Literal[1] = 1
    # It becomes part of the model id, which goes into headers and names of files.
    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: ModelConfig
    max_length: Length
    labels: tuple[Literal["NEGATIVE"], Literal["POSITIVE"]] = ("NEGATIVE", "POSITIVE")


class _File(_Strict):
    bytes: NonNegativeInt
    sha256: str

    @classmethod
    def of(cls, path: Path) -> _File:
        with path.open("rb") as file:
            return cls(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class _Manifest(_Strict):
    model_id: str
    files: dict[str, _File]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk; its `model_id` is recipe and digest, such as `bilstm-3f1c9a0b2d4e`."""

    path: Path
    model_id: str
    config: BundleConfig

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle, given as a directory or URI, and check every file against the manifest.

        A URI's files are copied to this machine's cache first.

        Raises:
            BundleError: The directory is no bundle, a file is missing, altered or of another format; says which.
        """
        uri = str(path)
        if not is_uri(uri):
            return cls._open(Path(path))
        copy = _fetch(uri)
        try:
            return cls._open(copy)
        except BundleError:
            # The store may have the right bytes where the copy hasn't.
            shutil.rmtree(copy, ignore_errors=True)
            return cls._open(_fetch(uri))

    @classmethod
    def _open(cls, path: Path) -> Bundle:
        if not path.is_dir():
            raise BundleError(f"no bundle at {path}: there is no such folder")
        manifest = _parse_manifest(path / MANIFEST, _read(path / MANIFEST))
        for name, expected in manifest.files.items():
            file = path / name
            _check_location(file)
            # By size first: a file of any size would take its time to be read.
            if size_of(file, _MAX_BYTES[name]) != expected.bytes or _File.of(file) != expected:
                raise BundleError(
                    f"{file} was altered since the bundle was written (sha256 differs); copy or train it again"
                )
        config = _parse(path / CONFIG, _read(path / CONFIG), BundleConfig)
        if manifest.model_id != _model_id(config.recipe, manifest.files):
            raise BundleError(f"{path / MANIFEST} was altered: its model id doesn't follow from its files")
        return cls(path, manifest.model_id, config)

    def weights(self) -> dict[str, Tensor]:
        """Load the state dict on the CPU; BundleError if it isn't safetensors, or holds NaN or infinite numbers."""
        try:
            weights = load_file(self.path / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{self.path / WEIGHTS} can't be read: {error}") from error
        check_numbers(self.path / WEIGHTS, weights)
        return weights

    def tokenizer(self) -> WordTokenizer | EncoderTokenizer:
        """Load the tokenizer; BundleError if it is damaged or not of the model's kind."""
        kind = EncoderTokenizer if isinstance(self.config.model, BertGruConfig) else WordTokenizer
        return kind.load(self.path / TOKENIZER)


def write_bundle(
    path: Path,
    *,
    config: BundleConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    metrics: dict[str, Any],
    card: str,
) -> Bundle:
    """Write a bundle, the manifest last, and read it back; what an earlier one left in the directory is replaced.

    Args:
        path: Directory, made if need be.
        config: Shape and limits.
        weights: State dict of the model; of an encoder that the config refers to, only what was trained.
        tokenizer: The one it was trained with.
        metrics: Figures for `metrics.json`.
        card: Text of the model card.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST).unlink(missing_ok=True)
    (path / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    save_file(weights, path / WEIGHTS)
    tokenizer.save(path / TOKENIZER)
    (path / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    (path / CARD).write_text(card, encoding="utf-8")
    files = {name: _File.of(path / name) for name in (CONFIG, WEIGHTS, TOKENIZER, METRICS, CARD)}
    manifest = _Manifest(model_id=_model_id(config.recipe, files), files=files)
    # Renamed, so that nobody sees half of it.
    temporary = path / f".{MANIFEST}.tmp"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    temporary.replace(path / MANIFEST)
    return Bundle.open(path)


def _fetch(uri: str) -> Path:
    def sizes_in(content: bytes) -> dict[str, int]:
        return {name: file.bytes for name, file in _parse_manifest(MANIFEST, content).files.items()}

    try:
        return fetch(uri, MANIFEST, MAX_CONFIG_BYTES, sizes_in)
    except (DataError, OSError) as error:
        raise BundleError(f"no bundle at {uri}: {brief(error)}") from error


def _model_id(recipe: str, files: dict[str, _File]) -> str:
    """Recipe and a digest over the files that decide a prediction."""
    digest = hashlib.sha256("".join(files[name].sha256 for name in (CONFIG, WEIGHTS, TOKENIZER)).encode())
    return f"{recipe}-{digest.hexdigest()[:12]}"


def _read(path: Path) -> bytes:
    if not path.is_symlink() and not path.exists():
        inner = path.parent / "bundle"
        hint = f"; did you mean {inner}?" if (inner / path.name).is_file() else ""
        raise BundleError(f"{path} is missing: the folder is no bundle, or its writing was cut short{hint}")
    _check_location(path)
    return read_file(path, MAX_CONFIG_BYTES)


def _check_location(path: Path) -> None:
    """Refuse a link that leads out of the bundle, but for those of the Hugging Face hub's cache."""
    try:
        directory, target = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path} can't be read: {brief(error)}") from error
    is_cached = directory.parent.name == "snapshots" and target.parent == directory.parent.parent / "blobs"
    if not target.is_relative_to(directory) and not is_cached:
        raise BundleError(f"{path} is a link to {target}, out of the bundle; copy the file there")


def _parse_manifest(path: Path | str, content: bytes) -> _Manifest:
    """Refuse a manifest that lists too little, or anything that isn't a bundle's, such as a path to elsewhere."""
    manifest = _parse(path, content, _Manifest)
    for name, file in manifest.files.items():
        if name not in _MAX_BYTES:
            raise BundleError(f"{path} lists {name!r:.80}, which isn't a file of a bundle: {', '.join(_MAX_BYTES)}")
        if file.bytes > _MAX_BYTES[name]:
            raise BundleError(f"{path}: {name} has {file.bytes:,} bytes; accepted are up to {_MAX_BYTES[name]:,}")
    if missing := {CONFIG, WEIGHTS, TOKENIZER} - manifest.files.keys():
        raise BundleError(f"{path} doesn't list {', '.join(sorted(missing))}: train again")
    return manifest


def _parse(path: Path | str, content: bytes, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "file"
        name = model.__name__.strip("_")
        raise BundleError(f"{path} can't be read as {name}: {where}: {first['msg'][:400]}") from error
