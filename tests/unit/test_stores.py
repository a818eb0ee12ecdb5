"""Folders behind URIs: stores that refuse for a while, and bundles that are copied to this machine."""

from __future__ import annotations

import errno
import pickle
import posixpath
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from sentiment.bundle import MANIFEST, WEIGHTS, Bundle
from sentiment.errors import BundleError
from sentiment.storage import output_directory
from sentiment.storage.output_directory import OutputDirectory
from sentiment.training.ray_train import train_storage


class StubbornFileSystem(LocalFileSystem):
    """The local disk; refuses so many writes before it gives in."""

    protocol = "stubborn"
    refusals = 0
    error = errno.EIO

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        stripped: str = super()._strip_protocol(str(path).removeprefix("stubborn://"))
        return stripped

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if "w" in mode and StubbornFileSystem.refusals > 0:
            StubbornFileSystem.refusals -= 1
            raise OSError(StubbornFileSystem.error, "not now")
        return super()._open(path, mode, **more)


@pytest.fixture(autouse=True)
def stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("stubborn", StubbornFileSystem, clobber=True)
    monkeypatch.setattr(output_directory, "_RETRY_WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(StubbornFileSystem, "refusals", 0)
    monkeypatch.setattr(StubbornFileSystem, "error", errno.EIO)


def test_a_write_is_tried_again(tmp_path: Path) -> None:
    StubbornFileSystem.refusals = 3
    OutputDirectory(f"stubborn://{tmp_path}").write_text("inner/file.txt", "content")
    assert (tmp_path / "inner" / "file.txt").read_text() == "content"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file.txt"]


@pytest.mark.parametrize(("refusals", "error", "left"), [(9, errno.EIO, 5), (9, errno.EACCES, 8)])
def test_in_the_end_the_error_is_told(tmp_path: Path, refusals: int, error: int, left: int) -> None:
    StubbornFileSystem.refusals, StubbornFileSystem.error = refusals, error
    with pytest.raises(OSError, match="not now"):
        OutputDirectory(f"stubborn://{tmp_path}").write_text("file.txt", "content")
    # Four attempts; none after a refusal that won't change.
    assert StubbornFileSystem.refusals == left
    assert not list(tmp_path.iterdir())


def test_the_local_disk_is_asked_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Not a directory|Failed to open"):
        (tmp_path / "file").write_text("in the way")
        OutputDirectory(str(tmp_path / "file")).write_text("inner.txt", "content")


def test_upload_writes_one_file_last(tmp_path: Path) -> None:
    source, there = tmp_path / "source", OutputDirectory(f"stubborn://{tmp_path}/there")
    source.mkdir()
    for name in ("a.json", "z.json"):
        (source / name).write_text(name)
    (tmp_path / "there" / "out").mkdir(parents=True)
    (tmp_path / "there" / "out" / "old.json").write_text("of an earlier one")
    there.upload("out", source, last="a.json")
    written = sorted((tmp_path / "there" / "out").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in written] == ["z.json", "a.json"]
    assert there.has("out/a.json")
    assert not there.has("out/old.json")


@pytest.mark.parametrize("scheme", ["stubborn://", ""])
def test_ray_train_writes_whole_files_too(tmp_path: Path, scheme: str) -> None:
    folder = OutputDirectory(f"{scheme}{tmp_path}/run")
    storage, snapshot = train_storage(folder), folder.inner("checkpoints/snapshot.json")
    StubbornFileSystem.refusals = 3 if scheme else 0
    storage.create_dir(posixpath.dirname(snapshot), recursive=True)
    for content in (b"[1]", b"[1, 2]"):
        with storage.open_output_stream(snapshot) as stream:
            stream.write(content[:2])
            stream.write(content[2:])
            written = tmp_path / "run" / "checkpoints" / "snapshot.json"
            assert not written.exists() or written.read_bytes() == b"[1]", "half of it can be seen"
    # It goes to the workers; Ray keeps checkpoints in dictionaries and sets, and compares their stores.
    other = pickle.loads(pickle.dumps(storage))
    assert other == storage
    with other.open_input_stream(snapshot) as stream:
        assert stream.read() == b"[1, 2]"
    assert [info.base_name for info in other.get_file_info(pafs.FileSelector(folder.inner("checkpoints")))] == [
        "snapshot.json"
    ]
    other.delete_dir(folder.inner("checkpoints"))
    assert not list((tmp_path / "run").iterdir())


def test_ray_train_is_told_in_the_end(tmp_path: Path) -> None:
    StubbornFileSystem.refusals = 9
    folder = OutputDirectory(f"stubborn://{tmp_path}")
    stream = train_storage(folder).open_output_stream(folder.inner("snapshot.json"))
    stream.write(b"[1]")
    with pytest.raises(OSError, match="not now"):
        stream.close()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def stored(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Any]]:
    """A bundle in a store, and the store; the cache is a folder of the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, folder = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    for file in make_bundle().path.iterdir():
        store.pipe_file(f"{folder}/{file.name}", file.read_bytes())
    yield f"memory:/{folder}", store
    store.rm(folder, recursive=True)


def test_bundle_behind_a_uri(stored: tuple[str, Any], tmp_path: Path) -> None:
    uri, store = stored
    there = Bundle.open(uri)
    assert there.model_id == Bundle.open(tmp_path / "bundle").model_id
    assert there.path.is_relative_to(tmp_path / "cache")
    # Copied once: what changes in the store behind an unchanged manifest isn't even looked at.
    store.pipe_file(f"{uri.removeprefix('memory:/')}/{WEIGHTS}", b"altered")
    assert Bundle.open(uri).path == there.path
    assert [path.name for path in there.path.parent.iterdir()] == [there.path.name], "left over"


def test_damaged_copy_is_made_again(stored: tuple[str, Any]) -> None:
    uri, _ = stored
    (Bundle.open(uri).path / WEIGHTS).write_bytes(b"cut sho")
    assert Bundle.open(uri).weights()


def test_altered_bundle_behind_a_uri_is_refused(stored: tuple[str, Any]) -> None:
    uri, store = stored
    store.pipe_file(f"{uri.removeprefix('memory:/')}/{WEIGHTS}", b"altered")
    with pytest.raises(BundleError, match="was altered"):
        Bundle.open(uri)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "inner/file"])
def test_manifest_may_name_files_of_its_own_folder_only(stored: tuple[str, Any], name: str) -> None:
    uri, store = stored
    manifest = f"{uri.removeprefix('memory:/')}/{MANIFEST}"
    content = store.cat_file(manifest).replace(b'"tokenizer.json"', f'"{name}"'.encode())
    store.pipe_file(manifest, content)
    with pytest.raises(BundleError, match="isn't a file of a bundle"):
        Bundle.open(uri)


def test_no_bundle_behind_a_uri() -> None:
    with pytest.raises(BundleError, match=r"no bundle at memory://nowhere/bundle"):
        Bundle.open("memory://nowhere/bundle")
