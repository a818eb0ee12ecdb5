"""The contract with scripts around us: flags, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

import jobs.evaluate
import jobs.prepare
import jobs.reproduce
import jobs.score
import jobs.train_bert
import jobs.train_lstm
from sentiment.cli import Job
from sentiment.errors import ConfigError, DataError
from sentiment.settings import RaySettings, Section

pytestmark = pytest.mark.usefixtures("in_an_empty_place")

ROOT = Path(__file__).parents[2]
JOBS: dict[str, Job[Any]] = {job.name: job for job in (m.JOB for m in (jobs.prepare, jobs.train_lstm, jobs.train_bert))}
JOBS |= {job.name: job for job in (m.JOB for m in (jobs.score, jobs.evaluate, jobs.reproduce))}

# From the issue, as scripts around us rely on it; what isn't in brackets is required, and nothing else is.
CONTRACT = {
    "prepare": "--input PATH… --output DIR [--test-input PATH…] [--text-column C] [--label-column C] [--seed N]",
    "train_lstm": "--output DIR [--data DIR] [--recipe NAME] [--epochs N] [--num-workers N] [--use-gpu] [--seed N] "
    "[--resume]",
    "train_bert": "[--data DIR] [--output DIR] [--encoder NAME] [--epochs N] [--num-workers N] [--use-gpu] "
    "[--unfreeze-layers N] [--cache-features always] [--seed N] [--resume]",
    "score": "--model BUNDLE --input PATH… --output DIR [--text-column C]",
    "evaluate": "--model BUNDLE --input PATH… --output DIR [--text-column C] [--label-column C]",
    "reproduce": "[--imdb DIR] [--sentiment140 DIR] [--vectors PATH] [--recipes PATH…] [--output DIR] [--report DIR]",
}
VALUES = {"N": ["3"], "always": ["always"], "PATH…": ["a.csv", "b.csv"], "": []}


def promised(job: str) -> dict[str, tuple[list[str], bool]]:
    """Flag → (its words on a command line, whether it is required)."""
    parts = re.findall(r"(\[?)--([a-z0-9-]+) ?([^\s\[\]]*)\]?", CONTRACT[job])
    return {
        name.replace("-", "_"): ([f"--{name}", *VALUES.get(value, ["x"])], not optional)
        for optional, name, value in parts
    }


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_promised_flags_are_taken_and_arrive(name: str) -> None:
    flags = promised(name)
    settings, _ = JOBS[name].parse([word for words, _ in flags.values() for word in words])
    for field, ([_, *values], _) in flags.items():
        arrived = getattr(settings, field) if field in type(settings).model_fields else settings.overrides[field]
        expected: object = True if not values else values if len(values) > 1 else values[0]
        assert arrived == expected or str(arrived) == expected, field


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_no_other_flag_is_required(name: str) -> None:
    needed = {field: words for field, (words, required) in promised(name).items() if required}
    JOBS[name].parse([word for words in needed.values() for word in words])
    for left_out in needed:
        argv = [word for field, words in needed.items() if field != left_out for word in words]
        with pytest.raises(ConfigError, match=f"^--{left_out.replace('_', '-')} is required$"):
            JOBS[name].parse(argv)


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_help_explains_every_flag_and_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        JOBS[name].main(["--help"])
    assert stopped.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(rf"^  (sentiment {name.replace('_', ' ')}|python jobs/{name}\.py) --", out, re.MULTILINE)
    assert "--address" in out
    for field in promised(name):
        assert f"--{field.replace('_', '-')}" in out
    # A flag with nothing behind it on its line or the next has no help text.
    assert not re.search(r"^  --[a-z-]+(?: [A-Z]+)?\n  -", out, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_names_are_those_of_the_files(name: str) -> None:
    source = (ROOT / "jobs" / f"{name}.py").read_text()
    # `ray job submit jobs/train_bert.py` runs the file itself, through a shell.
    assert source.startswith("#!/usr/bin/env python\n")
    assert os.access(ROOT / "jobs" / f"{name}.py", os.X_OK)
    assert len(source.splitlines()) < 80, "a job's file is wiring"


class Toy(Section):
    """Settings of a job that needs no Ray."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_TOY_")
    section = "prepare"

    output: str = Field(description="where to")
    input: list[str] = Field([], description="what")
    seed: int = Field(1, description="which")
    resume: bool = Field(True, description="whether")


def run_toy(argv: Sequence[str], answer: object = None) -> int:
    def run(settings: Toy, ray_settings: RaySettings) -> dict[str, Any]:
        if isinstance(answer, BaseException):
            raise answer
        print("words for people", file=sys.stderr)
        return {"output": settings.output, "seed": settings.seed, "cpus": ray_settings.num_cpus}

    return Job("toy", "About.", Toy, run).main(argv)


def test_success_is_one_json_object_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_toy(["--output", "here\nthere", "--seed=4", "--num-cpus", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("}\n")
    assert json.loads(out.splitlines()[-1]) == {"output": "here\nthere", "seed": 4, "cpus": 2}
    assert len(out.splitlines()) == 1
    assert err == "words for people\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "x", "--sede", "1"], "unknown flag '--sede' in sentiment toy: did you mean --seed"),
        (["--output", "x", "--sede=1"], "did you mean --seed"),
        (["--outpu", "x"], "did you mean --output"),  # no abbreviations: they break when a flag is added
        (["--output", "x", "--zzzzzzzzz"], "there are: --"),
        (["--output", "x", "stray"], "unexpected argument 'stray'"),
        (["--output"], "--output: expected one argument"),
        (["--output", "x", "--input"], "--input: expected at least one argument"),
        (["--output", "x", "--seed", "1.5"], "--seed: "),
        (["--seed", "1"], "--output is required"),
        (["--output", "x", "--num-cpus", "0"], "--num-cpus: "),
        (["--output", "x", "--config", "none.yaml"], "no configuration file at none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_toy(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("toy: ")
    assert len(err.splitlines()) == 1


def test_a_mistake_met_while_working_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_toy(["--output", "x"], DataError("nothing at tweets.csv")) == 2
    assert capsys.readouterr() == ("", "toy: nothing at tweets.csv\n")


@pytest.mark.parametrize(
    ("flags", "found"),
    [([], None), (["--mlflow"], "runs/mlflow"), (["--mlflow", "http://there:5000"], "http://there:5000")],
)
def test_tracking_has_a_folder_of_its_own(flags: list[str], found: str | None) -> None:
    settings, _ = jobs.train_lstm.JOB.parse(["--data", "d", "--output", "o", *flags, "--seed", "4"])
    assert (settings.mlflow, settings.seed) == (found, 4)


def test_repeated_lists_add_up_and_switches_turn_off() -> None:
    job = Job("toy", "About.", Toy, lambda settings, ray_settings: {})
    settings, _ = job.parse(["--output", "x", "--input", "a", "b", "--input", "c", "--no-resume"])
    assert settings.input == ["a", "b", "c"]
    assert settings.resume is False


def test_our_own_mistakes_are_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        run_toy(["--output", "x"], ZeroDivisionError())


_TOY = """
import sys
from sentiment.cli import Job
from sentiment.settings import Section

class Toy(Section):
    model_config = {"env_prefix": "SENTIMENT_TOY_"}
    section = "prepare"

def run(settings, ray_settings):
    print("words for people", file=sys.stderr)
    if ray_settings.num_cpus == 7:
        raise KeyError("a bug")
    return {"cpus": ray_settings.num_cpus}

sys.exit(Job("toy", "About.", Toy, run).main())
"""


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        (["--num-cpus", "2"], 0, '{"cpus": 2}\n', "^words for people\n$"),
        (["--num-cpus", "two"], 2, "", r"^toy: --num-cpus: [^\n]+\n$"),
        (["--num-cpus", "7"], 1, "", "Traceback (.|\n)*KeyError: 'a bug'"),
    ],
)
def test_exit_codes_of_a_process(argv: list[str], code: int, out: str, err: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _TOY, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (result.returncode, result.stdout) == (code, out)
    assert re.search(err, result.stderr), result.stderr
