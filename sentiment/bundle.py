"""A bundle: one folder that holds everything needed to predict, and says so.

    config.json         recipe, model shape, maximum length, label order, format version
    model.safetensors   weights; of a BERT-GRU, with the encoder or (by reference) without
    tokenizer.json      the tokenizer, as the `tokenizers` library saves it
    metrics.json        figures on validation and test rows, training history
    README.md           model card
    MANIFEST.json       size and sha256 of each file; written last, so a folder without it is no bundle

No pickle in either direction. The model id is the recipe's name and a digest of the manifest, so two bundles with the
same id predict the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentiment.encoder_tokenizer import EncoderTokenizer
from sentiment.errors import BundleError, DataError, brief
from sentiment.schema import LABELS
from sentiment.shapes import BertGruConfig, ModelConfig
from sentiment.stores import fetch
from sentiment.tokenizers import Tokenizer, WordTokenizer
from sentiment.uris import is_uri

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
METRICS, CARD, MANIFEST = "metrics.json", "README.md", "MANIFEST.json"

Model = TypeVar("Model", bound=BaseModel)


class BundleConfig(BaseModel):
    """`config.json` of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    recipe: str
    model: ModelConfig
    max_length: int = Field(gt=0)
    labels: tuple[str, ...] = LABELS


class _FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    files: dict[str, _FileEntry]


class Bundle:
    """A verified bundle on disk.

    Attributes:
        path: The folder.
        model_id: Recipe and digest, e.g. `bilstm-3f1c9a0b2d4e`.
        config: Shape and limits.
    """

    def __init__(self, path: Path, model_id: str, config: BundleConfig) -> None:
        self.path = path
        self.model_id = model_id
        self.config = config

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle and check every file against the manifest.

        Args:
            path: Folder, or a URI of one, which is copied to this machine's cache first (`sentiment.stores.fetch`).

        Raises:
            BundleError: The folder is no bundle, a file is missing, altered or of another format; says which.
        """
        if not is_uri(str(path)):
            return cls._open(Path(path))
        copy = _fetched(str(path))
        try:
            return cls._open(copy)
        except BundleError:
            # The store may have the right bytes where the copy hasn't.
            shutil.rmtree(copy, ignore_errors=True)
            return cls._open(_fetched(str(path)))

    @classmethod
    def _open(cls, path: Path) -> Bundle:
        if not path.is_dir():
            raise BundleError(f"no bundle at {path}: there is no such folder")
        manifest = _read_json(path / MANIFEST, _Manifest)
        for name, entry in manifest.files.items():
            _verify(path, name, entry)
        missing = {CONFIG, WEIGHTS, TOKENIZER} - manifest.files.keys()
        if missing:
            raise BundleError(f"{path / MANIFEST} doesn't list {', '.join(sorted(missing))}: train again")
        config = _read_json(path / CONFIG, BundleConfig)
        if manifest.model_id != _model_id(config.recipe, manifest.files):
            raise BundleError(f"{path / MANIFEST} was altered: its model id doesn't follow from its files")
        return cls(path, manifest.model_id, config)

    def weights(self) -> dict[str, Tensor]:
        """Load the state dict, on the CPU.

        Raises:
            BundleError: The file isn't safetensors.
        """
        try:
            return load_file(self.path / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{self.path / WEIGHTS} can't be read: {error}") from error

    def tokenizer(self) -> WordTokenizer | EncoderTokenizer:
        """Load the tokenizer, of the model's kind.

        Raises:
            BundleError: It is damaged or of another kind.
        """
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
    """Write a bundle, the manifest last; what an earlier one left in the folder is replaced.

    Args:
        path: Folder, made if need be.
        config: Shape and limits.
        weights: State dict of the model that `config.model` describes; of an encoder that the config refers to, only
            what was trained.
        tokenizer: The one it was trained with.
        metrics: Figures for `metrics.json`.
        card: Text of the model card.

    Returns:
        The bundle as read back.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST).unlink(missing_ok=True)
    (path / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    save_file(weights, path / WEIGHTS)
    tokenizer.save(path / TOKENIZER)
    (path / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    (path / CARD).write_text(card, encoding="utf-8")
    files = {name: _entry(path / name) for name in (CONFIG, WEIGHTS, TOKENIZER, METRICS, CARD)}
    manifest = _Manifest(model_id=_model_id(config.recipe, files), files=files)
    # Written beside and renamed: the manifest is whole or not there.
    beside = path / f".{MANIFEST}.tmp"
    beside.write_text(manifest.model_dump_json(indent=2) + "\n")
    beside.replace(path / MANIFEST)
    return Bundle.open(path)


def _fetched(uri: str) -> Path:
    try:
        return fetch(uri, MANIFEST, _files_in)
    except (DataError, OSError) as error:
        raise BundleError(f"no bundle at {uri}: {brief(error)}") from error


def _files_in(content: bytes) -> list[str]:
    try:
        names = list(_Manifest.model_validate_json(content).files)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST} can't be read: {_first_problem(error)}") from error
    for name in names:
        _check_name(MANIFEST, name)
    return names


def _model_id(recipe: str, files: dict[str, _FileEntry]) -> str:
    """Recipe and a digest over the files that decide a prediction."""
    digest = hashlib.sha256("".join(files[name].sha256 for name in (CONFIG, WEIGHTS, TOKENIZER)).encode())
    return f"{recipe}-{digest.hexdigest()[:12]}"


def _entry(path: Path) -> _FileEntry:
    with path.open("rb") as file:
        return _FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _check_name(manifest: Path | str, name: str) -> None:
    if Path(name).name != name:
        raise BundleError(f"{manifest} lists {name!r}, which isn't a file of the bundle's own folder")


def _verify(folder: Path, name: str, expected: _FileEntry) -> None:
    _check_name(folder / MANIFEST, name)
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing: the bundle is incomplete; copy or train it again")
    if _entry(path) != expected:
        raise BundleError(f"{path} was altered since the bundle was written (sha256 differs); copy or train it again")


def _read_json(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: the folder is no bundle, or its writing was cut short") from error
    except (ValidationError, OSError) as error:
        raise BundleError(f"{path} can't be read as {model.__name__.strip('_')}: {_first_problem(error)}") from error


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    return str(error)
