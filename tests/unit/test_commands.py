"""`sentiment COMMAND …`, the public names of the package, and what is installed with it."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import CliSettingsSource, SettingsError

import sentiment
import serve_app.__main__
from benchmarks.reproduction import REPRODUCE
from sentiment import api, commands
from sentiment.cli import Job, markdown_lines, yaml_lines
from sentiment.errors import ConfigError
from sentiment.observability import log
from sentiment.settings import SECTIONS, RaySettings, ScoreSettings, TrainBertSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("in_an_empty_place")

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]
JOBS: list[Job[Any]] = [commands.PREPARE, commands.TRAIN_LSTM, commands.TRAIN_BERT, commands.SCORE, commands.EVALUATE]
JOBS += [serve_app.__main__.JOB, REPRODUCE]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What jobs were run with, instead of running them."""
    calls: list[Any] = []

    def remember(self: Job[Any], argv: Any = None) -> int:
        calls.append((self.name, *self.parse(argv)))
        return 0

    monkeypatch.setattr(Job, "main", remember)
    return calls


def test_help_names_every_command(capsys: Capture) -> None:
    assert commands.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +\S", out, re.MULTILINE) == list(commands.COMMANDS)
    promised = "prepare train score evaluate predict serve submit vectors config demo"
    assert list(commands.COMMANDS) == promised.split()


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: Capture) -> None:
    try:
        code: object = commands.main([name, "--help"])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.startswith("usage: ")
    assert f"\n  sentiment {name}" in out or name == "train"
    assert ".py" not in out.split("\n")[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "sentiment: give a command: prepare, train, "),
        (["scroe"], "sentiment: unknown command 'scroe' in sentiment: did you mean score?"),
        # As texts were labeled once. They may be anybody's: messages don't repeat them.
        (["what a lovely day"], 'sentiment: texts are labeled by `sentiment predict "a text"`'),
        (["--model", "B", "lovely"], 'sentiment: texts are labeled by `sentiment predict "a text"`'),
        (["config", "trian"], "config: unknown section 'trian' in the command line: did you mean train"),
        (
            ["train", "--recipe", "bert-twets"],
            "train: unknown recipe 'bert-twets' in sentiment train: did you mean bert-tw",
        ),
        (["train", "nope"], "train: sentiment train is followed by lstm or bert, or by flags, not by 'nope'"),
        (
            ["train", "bilstm"],
            "train: sentiment train is followed by lstm or bert, or by flags, not by 'bilstm'; a recipe",
        ),
        (["score", "--modle", "m"], "score: unknown flag '--modle' in sentiment score: did you mean --model"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str, capsys: Capture) -> None:
    assert commands.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(message)
    assert "lovely" not in err


@pytest.mark.parametrize(
    ("argv", "job", "recipe"),
    [
        (["--output", "o"], "train_lstm", "tweets"),
        (["lstm", "--output", "o"], "train_lstm", "tweets"),
        (["bert", "--output", "o"], "train_bert", "bert-gru"),
        (["--recipe", "bilstm", "--output", "o"], "train_lstm", "bilstm"),
        (["--output", "o", "--recipe=bert-tweets"], "train_bert", "bert-tweets"),
        (["--output", "o", "--recipe", "bert-reviews"], "train_bert", "bert-reviews"),
    ],
)
def test_the_recipe_decides_what_is_trained(argv: list[str], job: str, recipe: str, ran: list[Any]) -> None:
    assert commands.main(["train", *argv]) == 0
    ((name, settings, _),) = ran
    assert (name, settings.recipe, settings.output) == (job, recipe, "o")


def test_the_public_names_and_their_signatures() -> None:
    assert sentiment.__all__ == ["Predictor", "load_bundle", "score", "train"]
    assert {name: getattr(sentiment, name) for name in sentiment.__all__} == {
        name: getattr(api, name) for name in api.__all__
    }
    assert {name: str(inspect.signature(getattr(sentiment, name))) for name in ("load_bundle", "score", "train")} == {
        "load_bundle": "(path: 'str | Path') -> 'Bundle'",
        "score": "(model: 'str', input: 'str | Sequence[str]', output: 'str', **settings: 'Any') -> 'dict[str, Any]'",
        "train": "(output: 'str', recipe: 'str' = 'tweets', data: 'str | None' = None, **settings: 'Any')"
        " -> 'dict[str, Any]'",
    }
    assert str(inspect.signature(sentiment.Predictor.load)) == (
        "(path: 'str | Path', *, use_gpu: 'bool | None' = None, precision: 'Precision' = 'auto') -> 'Predictor'"
    )
    with pytest.raises(AttributeError, match="no attribute 'scor'"):
        sentiment.scor  # noqa: B018


def test_functions_take_what_the_commands_take(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, RaySettings]] = []

    def run(settings: Any, ray_settings: RaySettings) -> dict[str, Any]:
        calls.append((settings, ray_settings))
        return {"output": settings.output}

    for name in ("SCORE", "TRAIN_LSTM", "TRAIN_BERT"):
        job = getattr(commands, name)
        module = api if name == "SCORE" else commands
        monkeypatch.setattr(module, name, Job(job.name, job.about, job.settings, run))
    Path("mine.yaml").write_text("score: {rows_per_file: 7}")
    assert sentiment.score("m", "a.csv", "o", num_actors=2, num_cpus=3, config="mine.yaml") == {"output": "o"}
    assert sentiment.train("o", epochs=2) == {"output": "o"}
    sentiment.train("o", "bert-tweets", data="d", unfreeze_layers=1)
    (scored, ray_settings), (lstm, _), (bert, _) = calls
    assert (type(scored), scored.input, scored.num_actors) == (ScoreSettings, ["a.csv"], 2)
    assert (scored.rows_per_file, ray_settings.num_cpus) == (7, 3)
    assert (type(lstm), lstm.data, lstm.overrides) == (TrainSettings, None, {"epochs": 2})
    assert (type(bert), bert.data, bert.overrides) == (TrainBertSettings, "d", {"unfreeze_layers": 1})
    with pytest.raises(ConfigError, match=r"unknown setting 'num_actor' in score\(…\): did you mean num_actors"):
        sentiment.score("m", "a.csv", "o", num_actor=2)
    with pytest.raises(ConfigError, match=r"unknown setting 'epoch' in train\(…\): did you mean epochs"):
        sentiment.train("o", epoch=3)
    with pytest.raises(ConfigError, match=r"unknown recipe 'bert-twets' .*did you mean bert-tweets"):
        sentiment.train("o", "bert-twets")


@pytest.mark.parametrize("how", ["file", "environment", "flag"])
def test_the_old_name_of_a_setting_works_with_a_warning(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    flags = ["--model", "m", "--input", "i", "--output", "o"]
    match how:
        case "file":
            Path("ray_config.yaml").write_text("score: {batch_rows: 17}\nevaluate: {batch_rows: 3}")
        case "environment":
            monkeypatch.setenv("SENTIMENT_SCORE_BATCH_ROWS", "17")
        case "flag":
            flags += ["--batch-rows", "17"]
    log.configure("score")
    settings, _ = commands.SCORE.parse(flags)
    assert settings.sort_window_rows == 17
    warning = "warning: batch_rows of section score is called sort_window_rows now; the old name still works\n"
    assert capsys.readouterr().err == warning
    assert "--batch-rows" not in " ".join(yaml_lines(os.devnull))


def test_the_files_are_what_is_generated_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make settings` writes them again."""
    monkeypatch.chdir(ROOT)
    assert "\n".join(yaml_lines("ray_config.yaml")) + "\n" == (ROOT / "ray_config.yaml").read_text()
    assert "\n".join(markdown_lines()) + "\n" == (ROOT / "docs" / "settings.md").read_text()


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_help_has_the_same_text_in_groups(job: Job[Any], capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        job.main(["--help"])
    out = capsys.readouterr().out
    words = " ".join(out.split())
    for name, field in job.settings.model_fields.items():
        if name != "overrides":
            assert " ".join(str(field.description).split()) in words, name
    groups = out.split(f"main settings (section {job.settings.section} of ray_config.yaml):\n")[1].split("\n\n")
    assert len(re.findall("^  --", groups[0], re.MULTILINE)) == 5
    assert [group.splitlines()[0] for group in groups][-3:-1] == [
        "Ray (section ray of ray_config.yaml):",
        "configuration and messages:",
    ]


def test_groups_begin_at_fields_that_there_are() -> None:
    for section in SECTIONS.values():
        assert dict(section.groups).keys() <= section.model_fields.keys()
        assert set(dict(section.renamed).values()) <= section.model_fields.keys()


def test_messages_are_lines_or_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("sentiment.scoring")

    def messages() -> list[str]:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, "%d rows", 7)
        return capsys.readouterr().err.splitlines()

    log.configure("score")
    assert messages() == ["7 rows", "warning: 7 rows", "score: 7 rows"]
    log.configure("score", verbose=True)
    assert len(messages()) == 4
    log.configure("score", quiet=True)
    assert messages() == ["warning: 7 rows", "score: 7 rows"]
    monkeypatch.setenv("SENTIMENT_LOG", "json")
    log.configure("score")
    first, *_ = (json.loads(line) for line in messages())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "command": "score", "logger": "sentiment.scoring", "message": "7 rows"}
    monkeypatch.setenv("SENTIMENT_LOG", "xml")
    assert commands.main(["config"]) == 2
    assert capsys.readouterr().err == "config: SENTIMENT_LOG is text or json, got 'xml'\n"


def test_a_mistake_is_a_json_line_too(capsys: Capture) -> None:
    assert commands.SCORE.main(["--log-json", "--model", "m"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "--input is required; --output is required"


def test_an_unexpected_error_is_a_json_line_too(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Any, ray_settings: RaySettings) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    job = Job("demo", "About.", SECTIONS["demo"], fail)
    for argv, form in ((["--log-json"], "text"), ([], "json")):
        monkeypatch.setenv("SENTIMENT_LOG", form)
        assert job.main(argv) == 1
        out, err = capsys.readouterr()
        line = json.loads(err)
        assert (out, line["level"], line["message"]) == ("", "error", "ZeroDivisionError: by zero")
        assert line["traceback"].startswith("Traceback")
    assert job.main(["--log-json", "--dta", "x"]) == 2
    assert "did you mean --data" in json.loads(capsys.readouterr().err)["message"]


def test_numbers_are_called_so_in_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        commands.TRAIN_LSTM.main(["--help"])
    assert "--hidden-dims N [N ...]" in capsys.readouterr().out


def test_what_is_installed(tmp_path: Path) -> None:
    """The wheel holds the package, its types and the service, and no top-level package called `jobs`."""
    ignored = shutil.ignore_patterns(
        ".*", "tests", "docs", "runs", "benchmarks", "cluster", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", tmp_path, tmp_path / "source"], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "sentiment = sentiment.commands:main" in archive.read(entry_points).decode()
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {
        *("sentiment", "serve_app"),
    }
    assert {"sentiment/py.typed", "serve_app/page.html"} <= set(names)
    # All modules of the checkout, and the command works where there is no checkout.
    modules = {str(path.relative_to(ROOT)) for top in ("sentiment", "serve_app") for path in (ROOT / top).rglob("*.py")}
    assert modules <= set(names)
    done = subprocess.run(
        [sys.executable, "-m", "sentiment", "config", "score"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
    )
    assert "sort_window_rows: 4096" in done.stdout


def test_why_flags_are_not_left_to_pydantic_settings() -> None:
    """Should this fail after an update, look again whether its command line will do."""

    def parsed(*argv: str) -> dict[str, Any]:
        source = CliSettingsSource[Any](
            ScoreSettings, cli_parse_args=[*argv], cli_exit_on_error=False, cli_kebab_case=True
        )
        return source()

    with pytest.raises(SettingsError, match=r"unrecognized arguments: b\.csv$"):
        parsed("--input", "a.csv", "b.csv")
    assert parsed("--input", "a,b.csv")["input"] == ["a", "b.csv"]  # one file
    with pytest.raises(SettingsError, match=r"unrecognized arguments: --modle$"):  # no near ones
        parsed("--input", "a.csv", "--modle")
