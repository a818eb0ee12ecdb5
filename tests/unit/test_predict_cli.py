"""`sentiment predict`: one answer for each text, in order, whatever the texts are; short words for what is wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from told import told

import sentiment.predict as cli
from sentiment.bundle import Bundle
from sentiment.data.text_records import MAX_LINE_BYTES, OVERLONG
from sentiment.predictor import Predictor
from sentiment.text import NO_TEXT

TEXTS = ["I love this phone, it is great :)", "I hate this phone, it is awful :(", "not good at all", "¡olé! 🎉 <b>"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No demo's bundle, no developer's variable, and one thread: the model is tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SENTIMENT_MODEL", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(make_bundle: Callable[..., Bundle]) -> Path:
    return make_bundle().path


def predictor(model: Path) -> Predictor:
    return Predictor.load(model, use_gpu=False, precision="float32")


def flags(model: Path) -> list[str]:
    return ["--model", str(model), "--no-use-gpu", "--precision", "float32"]


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def answers(capsys: Capture, argv: Sequence[str]) -> list[str]:
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith("warning: the model knows ") for line in told(err).splitlines())
    return out[:-1].split("\n")


def test_texts_given_get_the_predictors_answers(model: Path, capsys: Capture) -> None:
    predictions = zip(TEXTS, predictor(model).predict(TEXTS), strict=True)
    expected = [f"{said.label}\t{said.score:.4f}\t{text}" for text, said in predictions]
    assert answers(capsys, [*flags(model), *TEXTS]) == expected
    assert answers(capsys, [TEXTS[0], *flags(model), *TEXTS[1:]]) == expected, "flags and texts may be mixed"


def test_json_has_all_that_the_model_said(model: Path, capsys: Capture) -> None:
    loaded = predictor(model)
    *records, last = (json.loads(line) for line in answers(capsys, [*flags(model), "--json", *TEXTS, "\u200b"]))
    predictions = zip(TEXTS, loaded.predict(TEXTS), strict=True)
    assert records == [{"text": text, **vars(said), "model_id": loaded.model_id} for text, said in predictions]
    nothing = {"label": None, "score": None, "p_positive": None}
    assert last == {"text": "\u200b", **nothing, "model_id": loaded.model_id, "reason": NO_TEXT}


def test_lines_stay_in_order_over_chunks(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{TEXTS[at % 3]} {'good ' * (at % 7)}{at}" if at % 10 else " " * (at % 3) for at in range(2500)]
    pipe_in(monkeypatch, "\n".join(texts).encode())  # the last line isn't ended
    sizes: list[int] = []
    predict = Predictor.predict

    def counted(self: Predictor, some: Sequence[str]) -> Any:
        sizes.append(len(some))
        return predict(self, some)

    monkeypatch.setattr(Predictor, "predict", counted)
    records = [json.loads(line) for line in answers(capsys, [*flags(model), "--json"])]
    assert sizes == [1024, 1024, 452]
    assert [record["text"] for record in records] == texts
    assert [record["label"] is None for record in records] == [not text.strip() for text in texts]
    scored = [record for record in records if record["label"]]
    expected = predict(predictor(model), [record["text"] for record in scored])
    assert [record["p_positive"] for record in scored] == pytest.approx([p.p_positive for p in expected], abs=1e-5)


def test_a_line_for_a_line_whatever_it_holds(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [b"", b"good\xff\xfe", b"a\tb\x0bc\x1b[31m", "x\u2028y\x85z".encode(), b"\x00\x01", b"windows\r"]
    pipe_in(monkeypatch, b"\xef\xbb\xbfmark\n" + b"\n".join(held) + b"\n")
    columns = [line.split("\t") for line in answers(capsys, flags(model))]
    shown = ["mark", "", "good\ufffd\ufffd", "a b c [31m", "x y z", "  ", "windows"]
    assert [text for _, _, text in columns] == shown
    assert [text for label, score, text in columns if (label, score) == ("-", "-")] == ["", "  "]
    assert {label for label, _, _ in columns} <= {"-", "POSITIVE", "NEGATIVE"}


def test_long_lines_are_bounded(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"x" * (MAX_LINE_BYTES + 1) + b"\ngood\n")
    long, good = (json.loads(line) for line in answers(capsys, [*flags(model), "--json"]))
    assert (long["label"], long["reason"]) == (None, OVERLONG)
    assert len(long["text"]) < MAX_LINE_BYTES
    assert good["text"] == "good"
    many = [cli.Line("x" * 300_000)] * 10
    assert [len(chunk) for chunk in cli.chunks(many, 1024)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["I love this zebra"], ""),
        (["zebra zebra love"], "warning: the model knows 1 of 3 words of this text\n"),
        (["love", "", "zebra zebra"], "warning: the model knows 0 of 2 words of text 3\n"),
        ([""], ""),
    ],
)
def test_it_says_when_a_model_knows_few_words(model: Path, capsys: Capture, texts: list[str], said: str) -> None:
    assert cli.main([*flags(model), *texts]) == 0
    assert told(capsys.readouterr().err) == said


def test_of_an_archive_it_does_not_say_it(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"zebra zebra\n" * 3)
    assert cli.main(flags(model)) == 0
    assert told(capsys.readouterr().err) == ""


def test_nothing_in_nothing_out(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"")
    assert cli.main(flags(model)) == 0
    out, err = capsys.readouterr()
    assert (out, told(err)) == ("", "")


def test_a_terminal_is_answered_line_by_line(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            seen.append(capsys.readouterr())
            return super().readline(size)

    seen: list[Any] = []
    monkeypatch.setattr(sys, "stdin", Mock(buffer=Typed(b"good\nbad\n"), isatty=lambda: True))
    assert cli.main(flags(model)) == 0
    assert [out.split("\t")[-1] for out, _ in seen] == ["", "good\n", "bad\n"]
    assert [told(err) for _, err in seen] == ["type a text and press Enter; Ctrl-D ends\n", "", ""]


def test_texts_may_begin_with_dashes_or_hold_bad_bytes(model: Path, capsys: Capture) -> None:
    given = [*flags(model), "a", "--", "-_-", "--json", "--", "bad\udcff"]
    assert [line.split("\t")[2] for line in answers(capsys, given)] == ["a", "-_-", "--json", "--", "bad\ufffd"]


def test_mistakes_are_one_line_and_2(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    mistakes = {
        ("x",): "no bundle at runs/demo/model/bundle: run `sentiment demo`, which trains one, or give --model PATH",
        ("--model", "elsewhere", "x"): "no bundle at elsewhere: run `sentiment demo`",
        ("--model", "empty", "x"): "MANIFEST.json is missing",
        ("--model", "empty", "--use-gpu", "x"): "no CUDA GPU",
        ("--precision", "fp8", "x"): "invalid choice: 'fp8'",
        ("--modle", "x"): "did you mean --model?",
        ("-_-",): "put -- before texts",
    }
    for argv, message in mistakes.items():
        assert cli.main(argv) == 2, argv
        out, err = capsys.readouterr()
        assert out == ""
        assert told(err).startswith("predict: ")
        assert message in told(err)
        assert told(err).count("\n") == 1


def test_the_environment_names_a_bundle(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MODEL", str(model))
    assert len(answers(capsys, ["good"])) == 1
    assert cli.main(["--model", "elsewhere", "good"]) == 2, "the flag wins"


def test_ctrl_c_is_quiet(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "predict", Mock(side_effect=KeyboardInterrupt))
    assert cli.main([*flags(model), "good"]) == 130
    out, err = capsys.readouterr()
    assert (out, told(err)) == ("", "")


def test_help_needs_neither_torch_nor_a_model() -> None:
    code = (
        "import sys, sentiment.predict as cli\ntry: cli.main(['--help'])\n"
        "except SystemExit as end: print(end.code, [name for name in ('torch', 'pyarrow') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cat tweets.txt | sentiment predict" in out
    assert out.endswith("\n0 []\n")


def test_a_closed_pipe_ends_it_quietly(model: Path) -> None:
    command = [sys.executable, "-m", "sentiment", "predict", *flags(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"good day\n" * 1024)
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\tgood day\n"), "the first chunk is out while more may come"
        process.stdout.close()
        process.stdin.write(b"good day\n" * 1024)
        process.stdin.close()
        assert told(process.stderr.read().decode()) == ""
        assert process.wait() == 0
