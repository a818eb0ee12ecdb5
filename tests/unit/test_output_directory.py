"""Output folders: nobody's files are lost by accident, and no reader sees half of a file."""

from __future__ import annotations

import json
import pickle
import uuid
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest

from sentiment.errors import ConfigError, DataError
from sentiment.storage import output_directory
from sentiment.storage.output_directory import OutputDirectory


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputDirectory:
    """A folder that isn't there yet, on the disk or behind an fsspec URI."""
    return OutputDirectory(str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


def read(folder: OutputDirectory, name: str) -> str:
    with folder.fs.open_input_stream(folder.inner(name)) as stream:
        return stream.read().decode()


def names(folder: OutputDirectory) -> list[str]:
    from pyarrow.fs import FileSelector

    return sorted(info.base_name for info in folder.fs.get_file_info(FileSelector(folder.base)))


def test_options_of_a_uri_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
        asked.append(uri)
        return pafs.LocalFileSystem(), uri.partition("://")[2].partition("?")[0]

    monkeypatch.setattr(output_directory, "resolve", resolve)
    folder = OutputDirectory("s3://bucket/out?endpoint_override=localhost:9000")
    assert folder.address("bundle") == "s3://bucket/out/bundle?endpoint_override=localhost:9000"
    folder.check_inputs(["s3://bucket/in/*.csv?endpoint_override=localhost:9000"])
    assert asked[-1] == "s3://bucket/in/?endpoint_override=localhost:9000"
    with pytest.raises(ConfigError, match="overlap"):
        folder.check_inputs(["s3://bucket/out/part.csv?endpoint_override=localhost:9000"])


def test_new_and_empty_folders_are_taken(folder: OutputDirectory) -> None:
    folder.claim(overwrite=False)
    folder.claim(overwrite=False)
    assert names(folder) == []


def test_a_folder_with_something_in_it_is_refused(folder: OutputDirectory) -> None:
    folder.claim(overwrite=False)
    folder.write_text("precious.txt", "mine")
    with pytest.raises(ConfigError, match=rf"^{folder.uri} isn't empty: .*--overwrite"):
        folder.claim(overwrite=False)
    assert read(folder, "precious.txt") == "mine"


def test_overwrite_empties_the_folder_and_only_that(folder: OutputDirectory) -> None:
    folder.claim(overwrite=False)
    folder.write_text("manifest.json", "old")
    folder.fs.create_dir(folder.inner("train"))
    with folder.fs.open_output_stream(folder.inner("train/part.parquet")) as stream:
        stream.write(b"old")
    beside = OutputDirectory(f"{folder.uri}-beside")
    beside.claim(overwrite=False)
    beside.write_text("keep.txt", "keep")
    folder.claim(overwrite=True)
    assert names(folder) == []
    assert names(beside) == ["keep.txt"]


def test_what_no_job_wrote_is_never_removed(folder: OutputDirectory) -> None:
    folder.claim(overwrite=False)
    folder.write_text("manifest.json", "ours")
    folder.write_text("precious.txt", "mine")
    with pytest.raises(ConfigError, match=r"'precious\.txt', which no job wrote"):
        folder.claim(overwrite=True)
    assert names(folder) == ["manifest.json", "precious.txt"]


@pytest.mark.parametrize(
    ("output", "given", "refused"),
    [
        ("out", "out/tweets.csv", True),
        ("out", "out", True),
        ("out/deep", "out", True),
        (".", "tweets.csv", True),
        ("out/scored", "out/*.jsonl", False),
        ("out", "out/*.jsonl", True),
        ("outer", "out/tweets.csv", False),
        ("out", "tweets.csv", False),
    ],
)
def test_an_input_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, given: str, refused: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if not refused:
        OutputDirectory(output).check(overwrite=True, inputs=[given])
        return
    with pytest.raises(ConfigError, match="overlap"):
        OutputDirectory(output).check(overwrite=True, inputs=[given])


def test_files_are_written_and_replaced(folder: OutputDirectory) -> None:
    folder.claim(overwrite=False)
    folder.write_text("a.txt", "eins")
    folder.write_text("a.txt", "zwei: größer 🙂")
    folder.write_json("b.json", {"text": "größer 🙂", "rows": 3})
    assert read(folder, "a.txt") == "zwei: größer 🙂"
    assert "größer 🙂" in read(folder, "b.json")
    assert json.loads(read(folder, "b.json")) == {"text": "größer 🙂", "rows": 3}
    assert names(folder) == ["a.txt", "b.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A lone surrogate can't be written: the manifest of before must stand, whole."""
    folder = OutputDirectory(str(tmp_path))
    folder.write_text("manifest.json", "before")
    with pytest.raises(UnicodeEncodeError):
        folder.write_text("manifest.json", "after \ud83d")
    assert read(folder, "manifest.json") == "before"


def test_workers_get_the_same_folder(folder: OutputDirectory) -> None:
    folder.claim(overwrite=False)
    pickle.loads(pickle.dumps(folder)).write_text("from a worker.txt", "x")
    assert names(folder) == ["from a worker.txt"]


def test_relative_paths_hold_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers run elsewhere."""
    monkeypatch.chdir(tmp_path)
    folder = OutputDirectory("out/")
    assert folder.uri == "out"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.claim(overwrite=False)
    assert (tmp_path / "out").is_dir()


def test_uri_reaches_its_store() -> None:
    folder = OutputDirectory("memory://some-bucket/deep/er/")
    folder.claim(overwrite=True)
    folder.write_text("a.txt", "x")
    assert folder.uri == "memory://some-bucket/deep/er"
    assert fsspec.filesystem("memory").cat("/some-bucket/deep/er/a.txt") == b"x"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/inside"):
        with pytest.raises(DataError, match=f"can't write to {tmp_path / place}"):
            OutputDirectory(str(tmp_path / place)).claim(overwrite=True)
    assert (tmp_path / "file").read_text() == "in the way"


def test_overlaps_behind_links_and_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --overwrite the input would be removed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for output in ("x/../in", "link"):
        with pytest.raises(ConfigError, match="overlap"):
            OutputDirectory(output).check(overwrite=True, inputs=["in/archive.jsonl.gz"])


def test_files_that_lie_in_the_output_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "data").symlink_to("disk")
    for output, path in (("data", "disk"), ("disk", "data"), ("data", "data")):
        with pytest.raises(ConfigError, match="lies in --output"):
            OutputDirectory(f"{tmp_path}/{output}/out").check_files([f"{tmp_path}/{path}/out/part.parquet"])
    OutputDirectory(f"{tmp_path}/data/out").check_files([f"{tmp_path}/data/outer/part.parquet"])


def test_a_lock_alone_keeps_nobody_out(tmp_path: Path) -> None:
    """Left by a run that was killed; whether another one is at it, the lock itself says."""
    (tmp_path / "_run").mkdir()
    OutputDirectory(str(tmp_path)).check(overwrite=False)
