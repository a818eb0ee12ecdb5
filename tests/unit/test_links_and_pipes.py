"""What lies in an input folder and can't be opened, or mustn't be: it is told of, never passed over in silence."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from read_back import TEXT, read_tables

from sentiment.data import listing
from sentiment.data.byte_stream import (
    NOT_REGULAR,
    ByteStream,
    InputFile,
    UnreachableError,
    UnreadableError,
    open_random_access,
)
from sentiment.data.listing import LOST_LINK
from sentiment.data.read_plan import ReadPlan, plan
from sentiment.data.validation import UNREADABLE
from sentiment.errors import DataError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with one good file, by a link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "day.jsonl").write_text('{"text": "fine"}\n')
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "day.jsonl").symlink_to("../elsewhere/day.jsonl")
    return tmp_path / "archive"


@pytest.fixture
def pipe(archive: Path) -> Iterator[Path]:
    """A pipe with a row in it; that somebody holds it open keeps a test that fails from waiting for ever."""
    path = archive / "pipe.jsonl"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(held, b'{"text": "not for us"}\n')
    yield path
    assert os.read(held, 100) == b'{"text": "not for us"}\n', "somebody read the pipe"
    os.close(held)


def problems(read_plan: ReadPlan) -> dict[str, str | None]:
    return {Path(file.path).name: file.problem for file in read_plan.files if file.problem}


def rows(read_plan: ReadPlan) -> list[tuple[str, str | None, str | None]]:
    found = [row for table in read_tables(read_plan) for row in table.to_pylist()]
    return [(Path(row["source_file"]).name, row[TEXT], row["reason"]) for row in found]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "a.parquet", "train/pos/7_9.txt"])
@pytest.mark.parametrize("how", ["{}", "{}/**", "file://{}"])
def test_a_link_that_leads_nowhere_is_a_rejected_row(archive: Path, name: str, how: str) -> None:
    (archive / name).parent.mkdir(parents=True, exist_ok=True)
    (archive / name).symlink_to("/nowhere/at/all")
    read_plan = plan([how.format(archive)])
    assert problems(read_plan) == {Path(name).name: LOST_LINK}  # What --strict goes by.
    assert sorted(rows(read_plan)) == sorted(
        [("day.jsonl", "fine", None), (Path(name).name, None, UNREADABLE + LOST_LINK)]
    )


def test_a_link_in_a_circle_leads_nowhere(archive: Path) -> None:
    (archive / "circle.csv").symlink_to("circle.csv")
    assert problems(plan([str(archive)])) == {"circle.csv": LOST_LINK}


@pytest.mark.parametrize("how", ["{}", "{}/*", "{}/*/*.jsonl", "{}/**/*.jsonl", "{}/20*/day.jsonl"])
def test_a_link_to_a_folder_that_is_gone(archive: Path, how: str) -> None:
    """A year on a disk that isn't mounted: no name tells that it was a folder."""
    (archive / "2022").symlink_to(archive.parent / "elsewhere")
    (archive / "2023").symlink_to("/mnt/nowhere/2023")
    read_plan = plan([how.format(archive)])
    assert problems(read_plan) == {"2023": LOST_LINK}
    assert read_plan.skipped == ()
    assert f"{archive}/2022/day.jsonl" in [file.path for file in read_plan.files]


def test_hidden_links_are_passed_over_like_hidden_files(archive: Path) -> None:
    """Emacs locks a file that is being edited with a link that leads nowhere."""
    (archive / ".#day.jsonl").symlink_to("ann@host.123:456")
    read_plan = plan([str(archive)])
    assert problems(read_plan) == {}
    assert read_plan.skipped == (f"{archive}/.#day.jsonl: hidden",)


@pytest.mark.parametrize("how", ["{}", "{}/*.jsonl"])
def test_pipes_sockets_and_devices_are_rejected_unopened(archive: Path, pipe: Path, how: str) -> None:
    (archive / "link.jsonl").symlink_to(pipe)
    (archive / "null.jsonl").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(archive / "socket.jsonl"))  # An address has 108 characters at most.
        read_plan = plan([how.format(archive)])
        expected = dict.fromkeys(("link.jsonl", "null.jsonl", "pipe.jsonl", "socket.jsonl"), NOT_REGULAR)
        assert problems(read_plan) == expected
        assert rows(read_plan) == [
            ("day.jsonl", "fine", None),
            *((name, None, UNREADABLE + problem) for name, problem in expected.items()),
        ]


def test_a_pipe_of_another_name_is_listed_as_passed_over(archive: Path) -> None:
    os.mkfifo(archive / "control")
    assert plan([str(archive)]).skipped == (f"{archive}/control: {NOT_REGULAR}",)


def test_named_by_themselves_they_are_an_error(archive: Path, pipe: Path) -> None:
    (archive / "lost.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"pipe\.jsonl: {NOT_REGULAR}, but a pipe, socket or device"):
        plan([str(pipe)])
    with pytest.raises(DataError, match=rf"lost\.jsonl: {LOST_LINK}"):
        plan([str(archive / "lost.jsonl")])
    (archive / "day.jsonl").unlink()
    with pytest.raises(DataError, match=rf"no file can be read; .*lost\.jsonl: {LOST_LINK}"):
        plan([str(archive)])


def test_a_pipe_that_took_the_place_of_a_file(archive: Path, pipe: Path) -> None:
    """Between planning and reading."""
    with pytest.raises(UnreadableError, match=NOT_REGULAR):
        ByteStream(InputFile("pipe", "", str(pipe), "jsonl")).read()
    for root in ("", "file:///"):
        with pytest.raises(OSError, match=NOT_REGULAR):
            open_random_access(InputFile("pipe", root, str(pipe), "jsonl"))


def test_a_link_that_is_lost_after_planning_is_asked_for_again(archive: Path) -> None:
    """A mount that is away for a moment: its rows aren't rejected."""
    read_plan = plan([str(archive)])
    (archive.parent / "elsewhere" / "day.jsonl").unlink()
    with pytest.raises(UnreachableError, match=r"day\.jsonl can't be read now"):
        rows(read_plan)


def test_a_name_that_is_not_utf8_is_an_error_of_one_line(archive: Path) -> None:
    Path(os.fsdecode(os.fsencode(archive) + b"/caf\xe9.csv")).write_text("text\nhi\n")
    with pytest.raises(DataError, match=r"can't be listed, for a name in it isn't UTF-8 .*udce9"):
        plan([str(archive)])


def test_a_link_to_the_folder_that_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.csv").write_text("text\nhi\n")
    (tmp_path / "in" / "me").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    for pattern in ("", "**", "*", "*/*", "**/*.csv", "*/**"):
        given = tmp_path / "in" / pattern
        assert [file.path for file in plan([str(given)]).files] == [str(tmp_path / "in" / "deep" / "a.csv")]


def test_a_file_that_is_renamed_while_a_folder_is_listed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen under its old name and gone when it was asked about: no link is lost."""
    seen = listing._paths_in

    def with_another(folder: str, recursive: bool, above: Iterable[str]) -> Iterator[tuple[str, bool]]:
        yield from seen(folder, recursive, above)
        yield f"{folder}/upload.csv.part", False

    before = plan([str(archive)])
    monkeypatch.setattr(listing, "_paths_in", with_another)
    assert plan([str(archive)]) == before


def test_names_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"~nosuchuser/a\.csv: can't be looked up"):
        plan(["~nosuchuser/a.csv"])
    with pytest.raises(DataError, match="its name isn't UTF-8"):
        plan([f"{tmp_path}/\udcff.csv"])
