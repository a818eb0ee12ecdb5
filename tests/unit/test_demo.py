"""The demo's refusals: before Ray starts, and before anything is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import demo


def test_a_mistyped_file_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "demo" / "manifest.json"
    before.parent.mkdir()
    before.write_text("an earlier run")
    assert demo.JOB.main(["--data", str(tmp_path / "tweeets.csv"), "--output", str(before.parent)]) == 2
    captured = capsys.readouterr()
    assert "tweeets.csv" in captured.err
    assert captured.out == ""
    assert before.exists()


def test_own_data_in_the_output_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "mine.csv"
    data.write_text("text,label\nfine,1\n")
    assert demo.JOB.main(["--data", str(data), "--output", str(tmp_path)]) == 2
    assert "overlap" in capsys.readouterr().err
    assert data.exists()
