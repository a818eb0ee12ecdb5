"""`sentiment vectors`: tables and JSON on stdout, one line on stderr for a mistake, help at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from told import told

from sentiment.vectors.__main__ import main

ROOT = Path(__file__).parents[2]
ROWS = """man 1 0 0
woman 0 1 0
king 3 0 1
queen 2 1 1
doctor 2 2 0
nurse 1 3 0
"""


@pytest.fixture
def glove(tmp_path: Path) -> str:
    path = tmp_path / "small.txt"
    path.write_text(ROWS)
    return str(path)


def test_nearest(glove: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nearest", "king", "-n", "2", "--metric", "euclid", "--glove", glove]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "nearest to king",
        "",
        "word   cosine  distance",
        "queen  0.9037    1.4142",
        "man    0.9487    2.2361",
    ]
    assert told(err) == ""


def test_answers_as_json(glove: str, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*argv: str) -> dict[str, Any]:
        assert main([*argv, "--json", "--glove", glove]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        answer = json.loads(lines[0])
        assert {key: answer.pop(key) for key in ("command", "vectors", "words", "dim")} == {
            "command": argv[0],
            "vectors": "small.txt",
            "words": 6,
            "dim": 3,
        }
        return answer

    similar = ask("similarity", "king", "Queen")
    assert similar["query"] == ["king", "Queen"]
    assert similar["cosine"] == pytest.approx(7 / 60**0.5)
    assert similar["distance"] == pytest.approx(2**0.5)
    analogy = ask("analogy", "king", "man", "woman", "-n", "1")
    assert analogy["query"] == ["king", "man", "woman"]
    assert analogy["metric"] == "cosine"
    assert analogy["neighbours"] == [{"word": "queen", "cosine": pytest.approx(1), "distance": pytest.approx(0)}]
    midpoint = ask("midpoint", "man", "woman", "-n", "1")
    assert [neighbour["word"] for neighbour in midpoint["neighbours"]] == ["doctor"]
    bias = ask("bias", "--words", "doctor", "pilot", "--metric", "euclid")
    assert bias["missing"] == ["pilot"]
    assert bias["pair"] == ["man", "woman"]
    (row,) = bias["rows"]
    assert row["word"] == "doctor"
    assert row["toward_second"][0] == {"word": "nurse", "cosine": pytest.approx(1), "distance": 0.0}


def test_tables(glove: str, capsys: pytest.CaptureFixture[str]) -> None:
    def show(*argv: str) -> str:
        assert main([*argv, "--glove", glove]) == 0
        return capsys.readouterr().out

    assert show("similarity", "man", "doctor") == "words       cosine  distance\nman doctor  0.7071    2.2361\n"
    assert show("analogy", "king", "man", "woman").startswith("nearest to king − man + woman\n\nword ")
    assert show("midpoint", "man", "woman").startswith("between man and woman\n\nword ")
    bias = show("bias")
    assert "\nnurse   0.6325  " in bias
    assert "word − man + woman" in bias
    assert "no vector for: engineer, teacher" in bias
    assert show("bias", "--words", "pilot") == "no vector for: pilot\n"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "COMMAND"),
        (["nearst", "cat"], "'nearst'"),
        (["nearest"], "word"),
        (["nearest", "king", "-n", "0"], "above 0 is needed, not '0'"),
        (["nearest", "king", "-n", "many"], "not 'many'"),
        (["nearest", "king", "--metric", "manhattan"], "'manhattan'"),
        (["nearest", "king", "--jso"], "--jso"),
        (["analogy", "king", "man"], "C"),
        (["nearest", "kingg"], "'kingg' among the 6 words of small.txt: did you mean king?"),
        (["bias", "--glove", "glove.6B.5d"], "did you mean glove.6B.50d"),
        (["bias", "--glove", "/"], "is a folder"),
    ],
)
def test_a_mistake_is_one_line(
    glove: str, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTIMENT_GLOVE", glove)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(told(err).splitlines()) == 1
    assert told(err).startswith("vectors: ")
    assert reason in told(err)


def test_without_flag_and_variable_the_default_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENTIMENT_GLOVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "sentiment-at-scale" / "vectors"
    cache.mkdir(parents=True)
    (cache / "glove.6B.50d.txt").write_text(ROWS)  # as if downloaded before
    assert main(["similarity", "man", "woman", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vectors"] == "glove.6B.50d"


def test_help_teaches_and_does_not_wait_for_torch() -> None:
    for argv in (["--help"], ["bias", "--help"]):
        result = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "sentiment.vectors", *argv],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert "sentiment vectors" in result.stdout
        assert "SENTIMENT_GLOVE" in result.stdout
        imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
        assert "sentiment.errors" in imported
        assert not imported & {"torch", "numpy", "torchtext", "pydantic"}
