"""Untrusted files: regular files within limits alone are read, and checked before anything is made of them.

A model directory may come from anywhere. Opening a pipe waits for ever, a device never ends, and a few bytes of JSON
can ask for more memory than a machine has; none of it may do more than end in one clear line.

A `tokenizer.json` is a program: components that rewrite, cut and frame a text, made of patterns and strings. It can
expand one letter to gigabytes, backtrack for years over a line, or pad each text to a billion tokens, and the library
in Rust then aborts the process. So only components are accepted that take linear time on any text and let it grow by a
small factor: those of the encoders of `sentiment.models.config.KINDS` on the Hugging Face hub, and
those of `sentiment.tokenizers`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentiment.errors import BundleError, brief
from sentiment.models.config import MAX_VOCABULARY

if TYPE_CHECKING:
    from torch import Tensor

# Of a config, a manifest or an index; ours have a few kilobytes, an index of a thousand shards a hundred.
MAX_CONFIG_BYTES = 1 << 20
# Of a tokenizer, a vocabulary, figures or a card; the tokenizer of XLM-R has 17 MB, of XLM-V with a million words 55.
MAX_TEXT_BYTES = 64 << 20
# Of weights; DeBERTa-v2-xxlarge, the largest encoder of a kind that is read, has 6.3 GB in float32.
MAX_WEIGHTS_BYTES = 8 << 30
# Of a safetensors file's header: a tensor takes about 120 bytes in it.
_MAX_HEADER_BYTES = 4 << 20
# The functions by which torch.nn and transformers initialize weights.
_FILLERS = ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "mul_", "zero_", "fill_")


def size_of(path: Path, max_bytes: int) -> int:
    """Size of a file in bytes, once it is clear that it may be opened.

    Raises:
        BundleError: It is missing, no regular file (a pipe, a device, a directory), or larger than `max_bytes`.
    """
    try:
        exists, is_file = path.exists(), path.is_file()
        size = path.stat().st_size if is_file else 0
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise BundleError(f"{path} can't be read: {error}") from error
    if not exists:
        raise BundleError(f"{path} is missing: copy, save or train the model again")
    if not is_file:
        raise BundleError(f"{path} can't be read: it is no regular file but a folder, a pipe or a device")
    if size > max_bytes:
        raise BundleError(f"{path} can't be read: it has {size:,} bytes, more than the {max_bytes:,} that are accepted")
    return size


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read all of a file of at most `max_bytes`.

    Raises:
        BundleError: As `size_of`; or it can't be read.
    """
    size_of(path, max_bytes)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)  # A file of /proc has no size and yet no end.
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise BundleError(f"{path} can't be read: it has more than the {max_bytes:,} bytes that are accepted")
    return content


def parse_json(content: bytes | str) -> Any:
    """Parse JSON that every parser reads alike: names that occur twice, of which some keep the first, are refused.

    Raises:
        ValueError: It is none, or nested too deeply; says why.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in an object")
        return found

    try:
        return json.loads(content, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number format, such as F32, and shape of each tensor of a safetensors file, from its header alone.

    Raises:
        BundleError: As `size_of`; or it isn't safetensors: its header is damaged or doesn't agree with its size.
    """
    from safetensors import SafetensorError, safe_open

    size_of(path, MAX_WEIGHTS_BYTES)
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise BundleError(f"{path} can't be read: a head of {header_bytes:,} bytes isn't safetensors")
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            return {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} can't be read: {error}") from error


@contextmanager
def weightless() -> Iterator[None]:
    """Modules that are made inside have shapes but no numbers: a config can ask for any size at no cost."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Uninitialized(TorchFunctionMode):
        # Filling what isn't there imports torch's compiler, 4 s.
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in _FILLERS and (args or kwargs):
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), Uninitialized():
        yield


def check_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise BundleError for weights of `path` that are NaN or infinite: so would be whatever is computed from them."""
    for name, weight in weights.items():
        # Both ends are NaN if anything is; one pass, and no copy as isfinite makes.
        if weight.is_floating_point() and weight.numel() and not all(end.isfinite() for end in weight.aminmax()):
            raise BundleError(f"{path}: {name} holds NaN or infinite numbers; train or copy the model again")


# --- tokenizer.json --------------------------------------------------------------------------------------------------

# Of any value in a component; the first two also of a sequence of components.
_MAX_ITEMS, _MAX_DEPTH, _MAX_CHARACTERS, _MAX_NUMBER = 32, 8, 64, 1 << 31
_MAX_ADDED_TOKENS = 10_000
# Factors by which a text may grow: over all replacements; and, in bytes, where a table of characters replaces some
# (NFKC makes 33 bytes of one Arabic ligature's 3).
_MAX_GROWTH, _MAX_CHARACTER_GROWTH = 8, 12
_MAX_CHARSMAP = 1 << 20
# Characters of a word, which WordPiece looks up in quadratic time, and of a piece: Unigram tries the longest at each
# letter.
_MAX_WORD, _MAX_PIECE = 1000, 256

# For each section, the name of a sequence's list, and the accepted components. Decoders are made, but never run.
_COMPONENTS = {
    "normalizer": (
        "normalizers",
        "BertNormalizer, ByteLevel, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, Precompiled, Prepend, Replace, Strip, "
        "StripAccents",
    ),
    "pre_tokenizer": (
        "pretokenizers",
        "BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, Metaspace, Punctuation, Split, UnicodeScripts, "
        "Whitespace, WhitespaceSplit",
    ),
    "post_processor": ("processors", "BertProcessing, ByteLevel, RobertaProcessing, TemplateProcessing"),
    "decoder": ("decoders", "BPEDecoder, ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip, WordPiece"),
}
# The others are of no use a second time, and some of them let a text grow each time.
_REPEATABLE = ("Punctuation", "Replace", "Split", "Strip")
# Settings of each model, beside its vocabulary.
_MODELS = {
    "WordLevel": "unk_token",
    "WordPiece": "unk_token, continuing_subword_prefix, max_input_chars_per_word",
    "BPE": "dropout, unk_token, continuing_subword_prefix, end_of_word_suffix, fuse_unk, byte_fallback, ignore_merges, "
    "merges",
    "Unigram": "unk_id, byte_fallback",
}

# Patterns that are linear by their form: some single characters or classes, of which the last may be repeated.
_CLASS = r"\\[rntsSdDwW]|\\[pP]\{\w{1,20}\}|\\[^\w\s]"
_ATOM = rf"(?:[^\\\[\](){{}}|^$.*+?]|\.|{_CLASS}|\[\^?(?:[^\[\]\\&^]|{_CLASS})+\])"
_LINEAR = re.compile(rf"{_ATOM}{{1,16}}(?:\+|\{{[1-9]\d?(?:,\d{{0,2}})?\}})?")
# And one that is known to be: GPT-2's, as some byte-level tokenizers write it out.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def parse_tokenizer(text: str, patterns: Collection[str] = ()) -> dict[str, Any]:
    """Parse a `tokenizer.json` and check that it is harmless.

    Args:
        text: Its content.
        patterns: Regular expressions that are known to take linear time, beside those that do by their form.

    Returns:
        The document. Its padding and truncation aren't checked: replace them before they are used.

    Raises:
        ValueError: It isn't; says what is wrong.
    """
    document = parse_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError("no tokenizer: it has no model")
    known = {"version", "truncation", "padding", "added_tokens", "model", *_COMPONENTS}
    if unknown := document.keys() - known:
        raise ValueError(f"unknown part {min(unknown)!r:.80}")
    growth = 1
    for section, (_, kinds) in _COMPONENTS.items():
        seen: list[str] = []
        for component in _components(section, document.get(section)):
            kind = component["type"]
            if kind not in kinds.split(", "):
                raise ValueError(f"{section} {kind!r:.80}; accepted are {kinds}")
            if kind in seen and kind not in _REPEATABLE:
                raise ValueError(f"{section} {kind} occurs more than once")
            seen.append(kind)
            factor = _check_component(f"{section} {kind}", component, patterns)
            growth *= factor if section == "normalizer" else 1
            if growth > _MAX_GROWTH:
                raise ValueError(f"its replacements let a text grow more than {_MAX_GROWTH} times")
    _check_model(document["model"])
    added = document.get("added_tokens")
    if not isinstance(added, list | None) or len(added or ()) > _MAX_ADDED_TOKENS:
        raise ValueError(f"added_tokens is no list of at most {_MAX_ADDED_TOKENS:,}")
    for token in added or ():
        _check_values("an added token", token)
        if not isinstance(token, dict) or not _is_id(token.get("id")):
            raise ValueError(f"an added token has no id from 0 to {MAX_VOCABULARY - 1:,}")
    return document


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """Turn a panic of the library in Rust, which isn't an Exception, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizers library can't use it ({brief(error)})") from None


def _components(section: str, component: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The components of a section, sequences flattened."""
    if component is None and not depth:
        return
    if not isinstance(component, dict) or not isinstance(component.get("type"), str):
        raise ValueError(f"{section} is damaged: a component has no type")
    if component["type"] != "Sequence":
        yield component
        return
    items = component.get(_COMPONENTS[section][0])
    if not isinstance(items, list) or len(items) > _MAX_ITEMS or depth >= _MAX_DEPTH or len(component) != 2:
        raise ValueError(f"{section}: a sequence that is damaged, deeper than {_MAX_DEPTH} or longer than {_MAX_ITEMS}")
    for item in items:
        yield from _components(section, item, depth + 1)


def _check_component(where: str, component: dict[str, Any], patterns: Collection[str]) -> int:
    """Raise ValueError if it may do harm; returns the factor by which it lets a text grow at most."""
    kind, shortest_match = component["type"], 1
    if "pattern" in component:
        match component["pattern"]:
            case {"String": str(text), **rest} if not rest and 0 < len(text) <= _MAX_CHARACTERS:
                shortest_match = len(text.encode("utf-8", "replace"))
            case {"Regex": str(text), **rest} if not rest:
                is_linear = len(text) <= _MAX_CHARACTERS and _LINEAR.fullmatch(text)
                if not is_linear and text not in patterns and text != _GPT2:
                    problem = f"a regular expression that isn't known to take linear time: {text!r:.80}"
                    raise ValueError(f"{where} has {problem}")
            case _:
                raise ValueError(f"{where} has a pattern that is no string of 1 to {_MAX_CHARACTERS} characters")
    if kind == "Precompiled":
        try:
            _check_charsmap(component.get("precompiled_charsmap"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    checked = ("pattern", "precompiled_charsmap" if kind == "Precompiled" else "pattern")
    _check_values(where, {name: value for name, value in component.items() if name not in checked})
    if kind == "TemplateProcessing":
        single = component.get("single")
        if not isinstance(single, list) or sum("Sequence" in item for item in single if isinstance(item, dict)) != 1:
            raise ValueError(f"{where} must put special tokens around one text")
    if kind != "Replace":
        return 1
    content = component.get("content")
    if not isinstance(content, str):
        raise ValueError(f"{where} has no content")
    return max(1, -(-len(content.encode("utf-8", "replace")) // shortest_match))


def _check_values(where: str, value: Any, depth: int = 0) -> None:
    """Raise ValueError for long texts, long or deep lists, and large numbers."""
    items: list[Any] = []
    match value:
        case None | bool():
            pass
        case int() | float() if 0 <= value <= _MAX_NUMBER:
            pass
        case str() if len(value) <= _MAX_CHARACTERS:
            pass
        case list() if len(value) <= _MAX_ITEMS and depth < _MAX_DEPTH:
            items = value
        case dict() if len(value) <= _MAX_ITEMS and depth < _MAX_DEPTH:
            items = [*value.keys(), *value.values()]
        case _:
            raise ValueError(
                f"{where} has a value out of limits: text of {_MAX_CHARACTERS} characters, lists of {_MAX_ITEMS}, "
                f"numbers from 0 to {_MAX_NUMBER}"
            )
    for item in items:
        _check_values(where, item, depth + 1)


def _check_model(model: dict[str, Any]) -> None:
    kind, vocabulary = model.get("type"), model.get("vocab")
    if not isinstance(kind, str) or kind not in _MODELS:
        raise ValueError(f"model {kind!r:.80}; accepted are {', '.join(_MODELS)}")
    if unknown := model.keys() - {"type", "vocab", *_MODELS[kind].split(", ")}:
        raise ValueError(f"model {kind} has an unknown setting {min(unknown)!r:.80}")
    _check_values(f"model {kind}", {name: value for name, value in model.items() if name not in ("vocab", "merges")})
    if not isinstance(vocabulary, list if kind == "Unigram" else dict):
        raise ValueError(f"model {kind} has no vocabulary")
    if len(vocabulary) > MAX_VOCABULARY:
        raise ValueError(f"{len(vocabulary):,} words; accepted are {MAX_VOCABULARY:,}")
    # The library counts from 0 to the largest when it writes them.
    if isinstance(vocabulary, dict) and not all(map(_is_id, vocabulary.values())):
        raise ValueError(f"model {kind} has ids that aren't numbers from 0 to {MAX_VOCABULARY - 1:,}")
    if model.get("dropout"):
        raise ValueError("BPE with dropout: a text would get other ids each time")
    longest = model.get("max_input_chars_per_word", 1)
    if not isinstance(longest, int) or longest > _MAX_WORD:
        raise ValueError(f"max_input_chars_per_word {longest}; accepted are {_MAX_WORD}")
    if kind == "Unigram" and not all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in vocabulary
    ):
        raise ValueError("a Unigram vocabulary has pairs of a piece and its score")
    if kind == "Unigram" and any(len(piece) > _MAX_PIECE for piece, _ in vocabulary):
        raise ValueError(f"a piece of more than {_MAX_PIECE} characters")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_VOCABULARY


def _check_charsmap(text: Any) -> None:
    """Raise ValueError if a table of characters, as sentencepiece makes it, points out of itself or lets a text grow.

    It is a trie of UTF-8 strings in a "double array" (Aoe 1989) whose leaves point to strings that a zero ends. The
    library follows it without a look at its ends.
    """
    import numpy as np

    if not isinstance(text, str) or len(text) > _MAX_CHARSMAP:
        raise ValueError(f"its table is no text of at most {_MAX_CHARSMAP:,} characters")
    raw = base64.b64decode(text, validate=True)
    trie_bytes = int.from_bytes(raw[:4], "little")
    strings = raw[4 + trie_bytes :]
    if len(raw) < 8 or trie_bytes % 4 or trie_bytes < 4 or trie_bytes + 4 > len(raw):
        raise ValueError("its table is damaged")
    strings.decode()
    units = np.frombuffer(raw, "<u4", trie_bytes // 4, 4).astype(np.int64)
    targets = (units >> 10) << ((units & 512) >> 6)
    labels = np.arange(1, 256)
    # The next zero from each place on; what has none ends with the table.
    ends = np.append(np.flatnonzero(np.frombuffer(strings, np.uint8) == 0), len(strings))
    seen = np.zeros(len(units), bool)
    nodes, depth = targets[:1], 0
    while len(nodes):
        depth += 1
        if (nodes | 255).max() >= len(units):
            raise ValueError("its table leads out of itself")
        seen[nodes] = True
        followers = []
        for chunk in np.split(nodes, range(1024, len(nodes), 1024)):
            children = chunk[:, None] ^ labels
            hits = children[(units[children] & 0x800000FF) == labels]
            nexts = hits ^ targets[hits]
            starts = units[nexts[((units[hits] >> 8) & 1 == 1) & (nexts < len(units))]] & 0x7FFFFFFF
            if (nexts >= len(units)).any() or (starts > len(strings)).any():
                raise ValueError("its table leads out of itself")
            if (ends[np.searchsorted(ends, starts)] - starts > _MAX_CHARACTER_GROWTH * depth).any():
                raise ValueError(f"its table lets a text grow more than {_MAX_CHARACTER_GROWTH} times")
            if any(strings[start] & 0xC0 == 0x80 for start in starts[starts < len(strings)].tolist()):
                raise ValueError("its table leads into the middle of a character")
            followers.append(nexts)
        found = np.unique(np.concatenate(followers))
        nodes = found[~seen[found]]
