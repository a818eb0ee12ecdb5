"""Word vectors from a file or by name, through torchtext's `Vectors` and `GloVe`, made safe for a long-lived process.

Left alone, torchtext switches certificate checks off for the process, serves a file that has changed since from its
cache, takes an unfinished download for a complete one, skips odd rows in silence and fails on others with errors that
name neither file nor line.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import io
import os
import ssl
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from sentiment.errors import DataError, brief
from sentiment.observability.status import status_line
from sentiment.vectors.space import PretrainedVectors

# Below this a file is read within seconds, and a progress bar is only noise.
_SMALL_FILE_BYTES = 50 * 2**20
# With fewer numbers in a row torchtext takes it for a header.
_MIN_NUMBERS = 3
_FORMAT = (
    "expected text as GloVe has it, also .gz: on each line a word and its numbers, as many on every line, "
    "with single spaces between"
)
_OTHERWISE = "give a local file in GloVe's text format with --vectors or --glove PATH"
# What torchtext is known to raise on texts and archives that are not what it expects.
_UNREADABLE = (RuntimeError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile)
# Both the certificate guard and the silencing of stderr change the process for a moment.
_GUARD = threading.RLock()


def load_vectors(source: str, *, cache: Path | None = None) -> PretrainedVectors:
    """Load word vectors from a file or by name.

    Args:
        source: A local file in GloVe's text format (a header line as of word2vec is skipped), also .gz; or one of
            `known_names()`, which is downloaded once. A file wins over a name, also a file that is called like the
            name's text (`glove.6B.50d.txt`) in the working directory.
        cache: Folder for downloads; `default_cache()` if not given. A local file is read anew each time.

    Returns:
        The vectors. Of a word that occurs twice the first row counts.

    Raises:
        DataError: No such file or name, a file that isn't in the format, a download that failed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _load_file(source, path)
    if source in (names := known_names()):
        local = Path(_file_name(source))
        if local.is_file():  # torchtext would read it too, and put it into the cache as if it were the download
            return _load_file(str(local), local)
        return _load_named(source, default_cache() if cache is None else cache)
    if path.is_dir():
        raise DataError(f"vectors {source!r} is a folder; give a file of it")
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"names are {', '.join(names)}"
    raise DataError(f"no vectors {source!r}: neither a file nor a known name, and either is accepted; {hint}")


def known_names() -> list[str]:
    """Names that can be downloaded: torchtext's, but for charngram, whose rows aren't words."""
    from torchtext.vocab import pretrained_aliases

    return sorted(name for name in pretrained_aliases if not name.startswith("charngram"))


def default_cache() -> Path:
    """Folder for downloads: in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sentiment-at-scale" / "vectors"


def _load_file(source: str, path: Path) -> PretrainedVectors:
    from torchtext.vocab import Vectors

    try:
        fault = _find_bad_row(path)
        if fault is None:
            # A cache of its own: torchtext's identifies a file by its base name only, whatever is in it by now.
            is_small = path.stat().st_size < _SMALL_FILE_BYTES
            with tempfile.TemporaryDirectory() as cache, _guarded(source, quiet=is_small):
                return _convert(path.name, Vectors(str(path), cache=cache))
    except (OSError, *_UNREADABLE) as error:
        fault = _find_bad_number(path) or f"can't be read ({brief(error)})"
        raise DataError(f"vectors {source}: {fault}; {_FORMAT}") from error
    raise DataError(f"vectors {source}: {fault}; {_FORMAT}")


def _load_named(name: str, cache: Path) -> PretrainedVectors:
    from torchtext.vocab import pretrained_aliases

    text = cache / _file_name(name)
    parsed = cache / f"{text.name}.pt"
    damaged, fix = (text, "delete that file and try again") if text.is_file() else ("the download", "try again")
    try:
        if parsed.is_file():
            damaged, fix = parsed, "delete that file and try again"
            with _guarded(name, quiet=True):  # torch.load is left at its default, weights_only: it runs no foreign code
                try:
                    return _convert(name, pretrained_aliases[name](cache=str(cache)))
                except Exception as error:  # torch.load meets damage with almost anything
                    raise ValueError(brief(error)) from error
        cache.mkdir(parents=True, exist_ok=True)
        # Made in a folder of its own and moved when complete: an interrupted or failed download leaves nothing that
        # torchtext would take for a complete one, and two processes don't write the same file.
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=cache) as folder:
            if text.is_file():
                (Path(folder) / text.name).symlink_to(text.resolve())
            with _guarded(name, quiet=False):
                vectors = _convert(name, pretrained_aliases[name](cache=folder))
            # The texts (an archive holds all widths) and what was parsed; the archive itself is of no more use.
            for path in Path(folder).iterdir():
                if path.is_file() and not path.is_symlink() and path.suffix != ".zip":
                    path.replace(cache / path.name)
            return vectors
    except (OSError, HTTPException) as error:
        raise DataError(f"vectors {name!r} can't be fetched into {cache} ({brief(error)}); {_OTHERWISE}") from error
    except _UNREADABLE as error:
        raise DataError(f"vectors {name!r}: {damaged} is damaged ({brief(error)}); {fix}, or {_OTHERWISE}") from error


def _file_name(name: str) -> str:
    """What torchtext calls the text file of a name."""
    family, _, rest = name.partition(".")
    return f"{name}.txt" if family == "glove" else f"wiki.{rest.partition('.')[0]}.vec"


@contextlib.contextmanager
def _guarded(source: str, *, quiet: bool) -> Iterator[None]:
    """Call torchtext without leaving traces in the process.

    It points Python's HTTPS at `ssl._create_unverified_context` before it looks whether there is anything to download;
    here that name stands for the checked kind. Its progress bar can't be switched off by argument, but tqdm asks for
    `sys.stderr` when a bar starts; loggers keep the stream they were made with and aren't silenced. Where stderr is no
    terminal, bars only litter a log: it gets a line now and then.
    """
    with _GUARD, contextlib.ExitStack() as stack:
        default, unverified = ssl._create_default_https_context, ssl._create_unverified_context
        if quiet or not (sys.stderr and sys.stderr.isatty()):
            if not quiet:
                stack.enter_context(status_line(f"loading vectors {source}"))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        ssl._create_unverified_context = ssl.create_default_context  # type: ignore[assignment]
        try:
            yield
        finally:
            ssl._create_default_https_context = default
            ssl._create_unverified_context = unverified


def _convert(name: str, loaded: Any) -> PretrainedVectors:
    """Make ours of torchtext's vectors.

    Raises:
        ValueError: There are no words, or numbers that aren't finite.
    """
    row_of: dict[str, int] = {}
    for row, word in enumerate(loaded.itos):
        row_of.setdefault(word, row)  # GloVe goes from frequent to rare: the first is the one to keep
    # torchtext leaves a zero row at the end for each one that it skipped.
    matrix_WE = loaded.vectors[: len(loaded.itos)]
    if len(row_of) < len(matrix_WE):
        matrix_WE = matrix_WE[list(row_of.values())]
    if not row_of or not torch.isfinite(matrix_WE).all():
        raise ValueError("a number that is not finite" if row_of else "no words")
    return PretrainedVectors(name, list(row_of), matrix_WE.to(torch.float32))


def _find_bad_row(path: Path) -> str | None:
    """What is wrong with a file's rows; quick, for it leaves the numbers unread."""
    if zipfile.is_zipfile(path):
        return "is a zip archive: unpack it and give one of its files"
    first: tuple[int, int] | None = None  # line and its numbers
    for line, row in _rows(path):
        if b"\0" in row:
            return "is a binary file"
        numbers = row.count(b" ")
        if line == 1 and numbers == 1:
            continue  # word2vec's header: words and width
        if numbers < _MIN_NUMBERS:
            return f"line {line} has {numbers} numbers behind its word, at least {_MIN_NUMBERS} are needed"
        first = first or (line, numbers)
        if numbers != first[1]:
            return f"line {line} has {numbers} numbers, line {first[0]} has {first[1]}"
        try:
            row.partition(b" ")[0].decode()
        except UnicodeDecodeError:
            return f"the word on line {line} is not UTF-8"
    return None if first else "has no rows"


def _find_bad_number(path: Path) -> str | None:
    """The first row that torchtext couldn't make finite numbers of; slow, so only after it failed."""
    largest = torch.finfo(torch.float32).max
    try:
        for line, row in _rows(path):
            try:
                fine = all(abs(float(number)) <= largest for number in row.split(b" ")[1:])
            except ValueError:
                fine = False
            if not fine:
                return f"line {line} holds something else than finite numbers behind its word"
    except (OSError, EOFError, zlib.error):
        pass  # then that is the fault
    return None


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines as torchtext sees them: only ASCII space at the end is cut, since words may hold other kinds."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip()
