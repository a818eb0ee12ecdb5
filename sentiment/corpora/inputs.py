"""Where input files are: paths, folders, globs and URIs become one sorted list, each file once.

Nothing here looks at what a file holds, only at its name. Local paths and URIs go through one `pyarrow.fs` interface;
a scheme Arrow doesn't know is asked of fsspec. A file is remembered as (root, inner): the URI that names its file
system and the path inside it, so that no path has to be quoted back into a URI.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from sentiment.corpora.streams import NOT_REGULAR
from sentiment.errors import DataError, brief
from sentiment.stores import resolve
from sentiment.uris import is_uri, join, split_query

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = "csv, tsv, jsonl, ndjson, json, parquet (each also .gz or .zst), or IMDB's aclImdb/{train,test}/{pos,neg}"
LOST_LINK = "a symbolic link to what isn't there"
_PROBLEMS = {pafs.FileType.NotFound: LOST_LINK, pafs.FileType.Unknown: NOT_REGULAR}
IMDB_FILE = re.compile(r"(?:^|/)(train|test)/(pos|neg)/([^/]+)\.txt$")


@dataclass(frozen=True, slots=True)
class Found:
    """One input file.

    Attributes:
        path: The path or URI as the user would write it.
        root: URI that names the file system; empty for this machine's disk.
        inner: Path inside that file system.
        format: csv, tsv, jsonl, parquet or txt.
        compression: gzip, zstd or None.
        size_bytes: Size as stored; -1 where the file system doesn't say.
        mtime_ns: Time of the last change, where the file system says.
        problem: Why it can't be opened, or mustn't be, as far as that is known without trying.
    """

    path: str
    root: str
    inner: str
    format: str
    compression: str | None
    size_bytes: int
    mtime_ns: int | None
    problem: str | None = None


def place_of(root: str, inner: str) -> tuple[str, str]:
    """What makes two files one, however they were named.

    Args:
        root: URI that names the file system; empty for this machine's disk.
        inner: Path inside it.

    Returns:
        Its store and the path.
    """
    base, options = split_query(root)
    scheme, _, rest = base.partition("://")
    if scheme in ("", "file", "local"):
        return "", inner
    # The same path may be in two accounts, or on two hosts.
    return f"{scheme}://{rest.partition('/')[0]}{options}", inner


def classify(inner: str) -> tuple[str, str | None] | None:
    """Read format and compression off a file name.

    Args:
        inner: Path or name of the file.

    Returns:
        (format, compression), or None for a name we don't read.
    """
    if IMDB_FILE.search(inner):
        return "txt", None
    stem, extension = posixpath.splitext(inner.lower())
    compression = COMPRESSIONS.get(extension)
    if compression:
        extension = posixpath.splitext(stem)[1]
    return (FORMATS[extension], compression) if extension in FORMATS else None


def list_inputs(inputs: Sequence[str]) -> tuple[list[Found], list[str]]:
    """Turn what the user named into files.

    Args:
        inputs: Files, folders, globs or URIs.

    Returns:
        The files, sorted by path and each once, and what was passed over, each with its reason.

    Raises:
        DataError: An input isn't there, isn't a regular file, has an unknown extension, or nothing at all was found.
    """
    found: dict[tuple[str, str], Found] = {}
    skipped: list[str] = []
    for given in inputs:
        for item in _list_one(given, skipped):
            key = place_of(item.root, item.inner)
            if key in found:
                skipped.append(f"{item.path}: given twice")
            elif item.size_bytes == 0:
                skipped.append(f"{item.path}: empty")
            else:
                found[key] = item
    if not found:
        names = ", ".join(inputs) or "no input given"
        passed = f" (passed over: {'; '.join(skipped[:5])})" if skipped else ""
        raise DataError(f"no file to read in {names}{passed}; looked for {ACCEPTED}")
    return sorted(found.values(), key=lambda item: (item.path, item.root)), skipped


def _list_one(given: str, skipped: list[str]) -> Iterator[Found]:
    """Yield the files of one input; the strays go to `skipped`."""
    # `?` starts a URI's options, so only `*` and `[` before them are wildcards there.
    root, wildcards = (given, r"[*\[]") if is_uri(given) else ("", r"[*?\[]")
    wild = re.search(wildcards, split_query(given)[0])
    info = None
    if not (root and wild):
        fs, inner = _at(given, root)
        info = _info(fs, inner, given)
    if info is not None and info.type == pafs.FileType.File:
        kind = classify(info.path)
        if kind is None:
            raise DataError(f"{given}: unknown extension; accepted: {ACCEPTED}")
        yield _make(info, given, root, kind)
    elif info is not None and info.type == pafs.FileType.Directory:
        yield from _walk(fs, info.path, given, root, skipped)
    elif wild:
        yield from _glob(given, root, wild.start(), skipped)
    elif info is not None and info.type == pafs.FileType.Unknown:
        raise DataError(f"{given}: {NOT_REGULAR}, but a pipe, socket or device; save to a file what comes out of it")
    elif not root and Path(inner).is_symlink():
        raise DataError(f"{given}: {LOST_LINK}")
    else:
        raise DataError(f"{given}: not found{'' if root else f' (looked at {inner})'}")


def _at(given: str, root: str) -> tuple[pafs.FileSystem, str]:
    if root:
        return resolve(root)
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # ~name, of nobody
        raise DataError(f"{given}: can't be looked up: {brief(error)}") from error
    return pafs.LocalFileSystem(), os.path.abspath(path)  # noqa: PTH100  (a symlink keeps its name)


def _info(fs: pafs.FileSystem, inner: str, given: str) -> pafs.FileInfo:
    try:
        return fs.get_file_info(inner)
    except UnicodeError as error:
        shown = given.encode("utf-8", "replace").decode()
        raise DataError(f"{shown}: can't be looked up, for its name isn't UTF-8") from error
    except OSError as error:
        raise DataError(f"{given}: can't be looked up: {brief(error)}") from error


def _children(
    fs: pafs.FileSystem, inner: str, given: str, recursive: bool, base: str | None = None
) -> list[pafs.FileInfo]:
    """List a folder, reached from `base`; a link that leads nowhere is there as NotFound."""
    try:
        if isinstance(fs, pafs.LocalFileSystem):
            there = dict(_paths_in(inner, recursive, _above(inner, base or inner)))
            infos = fs.get_file_info([path for path, is_lost in there.items() if not is_lost])
            # What has gone since was being renamed, or removed.
            infos = [info for info in infos if info.type != pafs.FileType.NotFound]
            infos += [pafs.FileInfo(path, pafs.FileType.NotFound) for path, is_lost in there.items() if is_lost]
        else:
            infos = fs.get_file_info(pafs.FileSelector(inner, recursive=recursive, allow_not_found=True))
        return sorted(infos, key=lambda info: info.path)
    except UnicodeError as error:
        raise DataError(f"{given}: can't be listed, for a name in it isn't UTF-8 ({brief(error)})") from error
    except OSError as error:
        raise DataError(f"{given}: can't be listed: {brief(error)}") from error


def _paths_in(folder: str, recursive: bool, above: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield what is in a folder of the disk, and whether it is a link that leads nowhere, which Arrow leaves out.

    It goes through links to folders, but not round in circles, which Arrow does some forty times: a link to a folder
    that it came through is left out.
    """
    here = {*above, os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and os.path.realpath(entry.path) in here:
                continue
            is_lost = entry.is_symlink() and not Path(entry.path).exists()
            yield entry.path, is_lost
            if recursive and not is_lost and entry.is_dir():
                yield from _paths_in(entry.path, recursive, here)


def _above(folder: str, base: str) -> Iterator[str]:
    """Where the folders really are that lead from `base` to a folder below it."""
    while len(folder) > len(base):
        folder = posixpath.dirname(folder)
        yield os.path.realpath(folder)


def _make(info: pafs.FileInfo, path: str, root: str, kind: tuple[str, str | None]) -> Found:
    size = -1 if info.size is None else info.size
    return Found(path, root, info.path, kind[0], kind[1], size, info.mtime_ns, _PROBLEMS.get(info.type))


def _entry(info: pafs.FileInfo, path: str, root: str, skipped: list[str]) -> Iterator[Found]:
    """Yield what was found beside folders, if it is to be read; else it goes to `skipped`."""
    kind = classify(info.path)
    if kind is None and info.type == pafs.FileType.NotFound:
        kind = ("jsonl", None)  # Whatever it is called, it may have led to a folder: what was in there is missing.
    if kind is None:
        skipped.append(f"{path}: {_PROBLEMS.get(info.type, 'unknown extension')}")
    else:
        yield _make(info, path, root, kind)


def _walk(
    fs: pafs.FileSystem, base: str, given: str, root: str, skipped: list[str], came_from: str | None = None
) -> Iterator[Found]:
    """Yield the files below a folder, sorted; hidden and unknown ones go to `skipped`."""
    for info in _children(fs, base, given, recursive=True, base=came_from):
        if info.type == pafs.FileType.Directory:
            continue
        relative = info.path[len(base) :].lstrip("/")
        path = join(given, relative)
        if any(part[0] in "._" for part in relative.split("/") if part):
            skipped.append(f"{path}: hidden")
        else:
            yield from _entry(info, path, root, skipped)


def _glob(given: str, root: str, wild_at: int, skipped: list[str]) -> Iterator[Found]:
    """Yield what a pattern matches, one path component at a time, so `/data/*.csv` never walks the whole disk."""
    whole, options = split_query(given)
    cut = whole.rfind("/", 0, wild_at) + 1
    base, parts = (whole[:cut] or ".") + options, [part for part in whole[cut:].split("/") if part]
    fs, base_inner = _at(base, base if root else "")
    level = [_info(fs, base_inner, given)]
    lost: dict[str, pafs.FileInfo] = {}
    for part in parts:
        folders = [info for info in level if info.type == pafs.FileType.Directory]
        level = list(folders) if part == "**" else []
        for folder in folders:
            infos = _children(fs, folder.path, given, recursive=part == "**", base=base_inner)
            level += [info for info in infos if _matches_below(info.path, folder.path, part)]
        # A link that leads nowhere may have led to a folder that the pattern goes on in.
        lost |= {info.path: info for info in level if info.type == pafs.FileType.NotFound and not classify(info.path)}
    for info in (lost | {info.path: info for info in level}).values():
        path = join(base, info.path[len(base_inner) :].lstrip("/")) if cut else info.path[len(base_inner) + 1 :]
        if info.type != pafs.FileType.Directory:
            yield from _entry(info, path, base if root else "", skipped)
        elif parts[-1] != "**":
            yield from _walk(fs, info.path, path, base if root else "", skipped, came_from=base_inner)


def _matches_below(path: str, folder: str, pattern: str) -> bool:
    """Match a path below a folder with one component; `**` takes all that no component of which is hidden."""
    if pattern != "**":
        return _matches(posixpath.basename(path), pattern)
    return all(part[0] not in "._" for part in path[len(folder) :].split("/") if part)


def _matches(name: str, pattern: str) -> bool:
    hidden = name[:1] in (".", "_") and pattern[:1] != name[:1]
    return not hidden and fnmatch.fnmatchcase(name, pattern)
