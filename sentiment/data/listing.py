"""Where input files are: paths, folders, globs and URIs become one sorted list, each file once.

Nothing here looks at what a file holds, only at its name. Local paths and URIs go through one `pyarrow.fs` interface;
a scheme Arrow doesn't know is asked of fsspec. A file is remembered as (root, inner): the URI that names its file
system and the path inside it, so that no path has to be quoted back into a URI.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.fs as pafs

from sentiment.data.byte_stream import NOT_REGULAR, InputFile
from sentiment.data.formats import ACCEPTED, format_of
from sentiment.errors import DataError, brief
from sentiment.storage.filesystems import resolve, unreachable
from sentiment.storage.uris import is_uri, join, split_query

LOST_LINK = "a symbolic link to what isn't there"
_PROBLEMS = {pafs.FileType.NotFound: LOST_LINK, pafs.FileType.Unknown: NOT_REGULAR}


def identify(file: InputFile) -> tuple[str, str]:
    """What makes two files one, however they were named: their store and the path in it."""
    base, options = split_query(file.root)
    scheme, _, rest = base.partition("://")
    if scheme in ("", "file", "local"):
        return "", file.inner
    # The same path may be in two accounts, or on two hosts.
    return f"{scheme}://{rest.partition('/')[0]}{options}", file.inner


def list_inputs(inputs: Sequence[str]) -> tuple[list[InputFile], list[str]]:
    """Turn what the user named into files.

    Args:
        inputs: Files, folders, globs or URIs.

    Returns:
        The files, sorted by path and each once, and what was passed over, each with its reason.

    Raises:
        DataError: An input isn't there, isn't a regular file, has an unknown extension, or nothing at all was found.
    """
    found: dict[tuple[str, str], InputFile] = {}
    skipped: list[str] = []
    for given in inputs:
        for file in _list_one(given, skipped):
            key = identify(file)
            if key in found or file.size_bytes == 0:
                skipped.append(f"{file.path}: {'given twice' if key in found else 'empty'}")
            else:
                found[key] = file
    if not found:
        names = ", ".join(inputs) or "no input given"
        passed = f" (passed over: {'; '.join(skipped[:5])})" if skipped else ""
        raise DataError(f"no file to read in {names}{passed}; looked for {ACCEPTED}")
    return sorted(found.values(), key=lambda file: (file.path, file.root)), skipped


def _list_one(given: str, skipped: list[str]) -> Iterator[InputFile]:
    """Yield the files of one input; what isn't read goes to `skipped`."""
    # `?` starts a URI's options, so only `*` and `[` before them are wildcards there.
    root, wildcards = (given, r"[*\[]") if is_uri(given) else ("", r"[*?\[]")
    wildcard = re.search(wildcards, split_query(given)[0])
    info = None
    if not (root and wildcard):
        fs, inner = _resolve(given, root)
        info = _info(fs, inner, given)
    if info is not None and info.type == pafs.FileType.File:
        if format_of(info.path) is None:
            raise DataError(f"{given}: unknown extension; accepted: {ACCEPTED}")
        yield from _input_file(info, given, root, skipped)
    elif info is not None and info.type == pafs.FileType.Directory:
        yield from _walk(fs, info.path, given, root, skipped)
    elif wildcard:
        yield from _glob(given, root, wildcard.start(), skipped)
    elif info is not None and info.type == pafs.FileType.Unknown:
        raise DataError(f"{given}: {NOT_REGULAR}, but a pipe, socket or device; save to a file what comes out of it")
    elif not root and Path(inner).is_symlink():
        raise DataError(f"{given}: {LOST_LINK}")
    else:
        raise DataError(f"{given}: not found{'' if root else f' (looked at {inner})'}")


def _resolve(given: str, root: str) -> tuple[pafs.FileSystem, str]:
    if root:
        return resolve(root)
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # ~name, of nobody
        raise DataError(f"{given}: can't be looked up: {brief(error)}") from error
    return pafs.LocalFileSystem(), os.path.abspath(path)  # noqa: PTH100  (a symlink keeps its name)


@contextlib.contextmanager
def _explaining(given: str, action: str, not_utf8: str) -> Iterator[None]:
    """Say in one line what a file system answers to an input that is looked up or listed."""
    shown = given.encode("utf-8", "replace").decode()
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"{shown}: can't be {action}, for {not_utf8.format(brief(error))}") from error
    except ConnectionError as error:
        raise unreachable(given, error) from error
    except OSError as error:
        raise DataError(f"{given}: can't be {action}: {brief(error)}") from error


def _info(fs: pafs.FileSystem, inner: str, given: str) -> pafs.FileInfo:
    with _explaining(given, "looked up", "its name isn't UTF-8"):
        return fs.get_file_info(inner)


def _children(fs: pafs.FileSystem, inner: str, given: str, base: str, *, recursive: bool) -> list[pafs.FileInfo]:
    """List a folder, reached from `base`; a link that leads nowhere is there as NotFound."""
    with _explaining(given, "listed", "a name in it isn't UTF-8 ({})"):
        if not isinstance(fs, pafs.LocalFileSystem):
            infos = fs.get_file_info(pafs.FileSelector(inner, recursive=recursive, allow_not_found=True))
        else:
            # Where the folders really are that lead from `base` to this one.
            above, folder = set(), inner
            while len(folder) > len(base):
                folder = posixpath.dirname(folder)
                above.add(os.path.realpath(folder))
            paths = dict(_paths_in(inner, recursive, above))
            infos = fs.get_file_info([path for path, is_lost in paths.items() if not is_lost])
            # What has gone since was being renamed, or removed.
            infos = [info for info in infos if info.type != pafs.FileType.NotFound]
            infos += [pafs.FileInfo(path, pafs.FileType.NotFound) for path, is_lost in paths.items() if is_lost]
        return sorted(infos, key=lambda info: info.path)


def _paths_in(folder: str, recursive: bool, above: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield what is in a folder of the disk, and whether it is a link that leads nowhere, which Arrow leaves out.

    It goes through links to folders, but not round in circles, which Arrow does some forty times: a link to a folder
    that it came through is left out.
    """
    entered = {*above, os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and os.path.realpath(entry.path) in entered:
                continue
            is_lost = entry.is_symlink() and not Path(entry.path).exists()
            yield entry.path, is_lost
            if recursive and not is_lost and entry.is_dir():
                yield from _paths_in(entry.path, recursive, entered)


def _input_file(info: pafs.FileInfo, path: str, root: str, skipped: list[str]) -> Iterator[InputFile]:
    """Yield what was found, if it is to be read; else it goes to `skipped`."""
    kind, problem = format_of(info.path), _PROBLEMS.get(info.type)
    if kind is None and problem == LOST_LINK:
        kind = ("jsonl", None)  # Whatever it is called, it may have led to a folder: what was in there is missing.
    if kind is None:
        skipped.append(f"{path}: {problem or 'unknown extension'}")
    else:
        size = -1 if info.size is None else info.size
        yield InputFile(path, root, info.path, *kind, size, info.mtime_ns, problem)


def _walk(
    fs: pafs.FileSystem, folder: str, given: str, root: str, skipped: list[str], base: str | None = None
) -> Iterator[InputFile]:
    """Yield the files below a folder, sorted; hidden and unknown ones go to `skipped`."""
    for info in _children(fs, folder, given, base or folder, recursive=True):
        if info.type == pafs.FileType.Directory:
            continue
        relative = info.path[len(folder) :].lstrip("/")
        path = join(given, relative)
        if _is_hidden(relative):
            skipped.append(f"{path}: hidden")
        else:
            yield from _input_file(info, path, root, skipped)


def _glob(given: str, root: str, wildcard_start: int, skipped: list[str]) -> Iterator[InputFile]:
    """Yield what a pattern matches, one path component at a time, so `/data/*.csv` never walks the whole disk."""
    pattern, options = split_query(given)
    cut = pattern.rfind("/", 0, wildcard_start) + 1
    base, parts = (pattern[:cut] or ".") + options, [part for part in pattern[cut:].split("/") if part]
    root = base if root else ""
    fs, base_inner = _resolve(base, root)
    level = [_info(fs, base_inner, given)]
    lost: dict[str, pafs.FileInfo] = {}
    for part in parts:
        folders = [info for info in level if info.type == pafs.FileType.Directory]
        level = list(folders) if part == "**" else []
        for folder in folders:
            for info in _children(fs, folder.path, given, base_inner, recursive=part == "**"):
                name = posixpath.basename(info.path)
                if part == "**":
                    is_match = not _is_hidden(info.path[len(folder.path) :])
                else:
                    is_match = fnmatch.fnmatchcase(name, part) and (not _is_hidden(name) or part[:1] == name[:1])
                level += [info] if is_match else []
        # A link that leads nowhere may have led to a folder that the pattern continues in.
        lost |= {info.path: info for info in level if info.type == pafs.FileType.NotFound and not format_of(info.path)}
    for info in (lost | {info.path: info for info in level}).values():
        path = join(base, info.path[len(base_inner) :].lstrip("/")) if cut else info.path[len(base_inner) + 1 :]
        if info.type != pafs.FileType.Directory:
            yield from _input_file(info, path, root, skipped)
        elif parts[-1] != "**":
            yield from _walk(fs, info.path, path, root, skipped, base_inner)


def _is_hidden(path: str) -> bool:
    """Whether a component of a path begins with a dot or an underscore."""
    return any(part[0] in "._" for part in path.split("/") if part)
