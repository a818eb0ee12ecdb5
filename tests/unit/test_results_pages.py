"""Pages of results follow from the raw numbers beside them, and say themselves which targets were missed."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import BLOCK, fill, target

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PROGRAMS = ("scoring", "serving", "hostile", "bert_gru", "main_job")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_tables_of_a_page_follow_from_its_numbers(name: str) -> None:
    sections = importlib.import_module(f"benchmarks.{name}").SECTIONS
    page, results = (RESULTS / f"{name}.md").read_text(), json.loads((RESULTS / f"{name}.json").read_text())
    assert {lane for _, lane, _, _ in BLOCK.findall(page)} == set(sections)
    assert fill(BLOCK.sub(r"\1\4", page), sections, results) == page


def commands(folder: str) -> list[str]:
    """What pages and programs tell to run of a folder's."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    found = [one for page in pages for one in re.findall(rf"python {folder}/(\w[^#`\n]*)", page.read_text())]
    # An ellipsis stands for a flag's value, or for flags.
    return sorted({re.sub("…", "", re.sub(r"(--\S+) …", r"\1 value", command)).strip() for command in found})


@pytest.mark.parametrize("command", commands("benchmarks"))
def test_benchmarks_that_are_told_exist(command: str) -> None:
    program, *words = shlex.split(command)
    importlib.import_module(f"benchmarks.{program.removesuffix('.py')}").PARSER.parse_args(words)


@pytest.mark.parametrize("command", commands("jobs"))
def test_jobs_that_are_told_exist(command: str) -> None:
    program, *words = shlex.split(command)
    job = importlib.import_module(f"jobs.{program.removesuffix('.py')}")
    if program == "submit.py":  # Its flags are followed by another job and that one's.
        assert callable(job.main)
    elif words:  # else the job itself is meant
        job.JOB.parse(words)


@pytest.mark.parametrize("name", ["scoring", "serving"])
def test_every_target_has_its_verdict(name: str) -> None:
    targets = re.findall(r"\| (?:at least|at most|under) [\d.]+([^|]*) (?=\|)", (RESULTS / f"{name}.md").read_text())
    assert targets
    assert set(targets) <= {": met", ": **missed**"}


def test_a_missed_target_is_marked() -> None:
    assert (target(4, "at least", 4), target(3.9, "at least", 4)) == ("at least 4: met", "at least 4: **missed**")
    assert (target(1.2, "at most", 1.2), target(1.3, "at most", 1.2)) == ("at most 1.2: met", "at most 1.2: **missed**")
    assert target(10, "under", 10) == "under 10: **missed**"


def test_the_tables_of_scale_follow_from_the_numbers(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    written = (ROOT / "docs" / "scale.md").read_text()
    page.write_text(
        re.sub(r"(written by benchmarks/scale\.py -->\n).*?(<!-- end -->)", r"\1\2", written, flags=re.DOTALL)
    )
    assert page.read_text() != written
    subprocess.run([sys.executable, "benchmarks/scale.py", "page", "--page", str(page)], cwd=ROOT, check=True)
    assert page.read_text() == written


@pytest.mark.parametrize("name", [*PROGRAMS, "compare", "scale", "serving_rivals"])
def test_every_program_says_what_it_measures_with_an_example(name: str) -> None:
    assert f"python benchmarks/{name}.py " in (importlib.import_module(f"benchmarks.{name}").__doc__ or "")


def test_a_benchmark_answers_help_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--help"]
    told = subprocess.run(command, cwd=tmp_path, env={}, check=True, capture_output=True, text=True).stdout
    assert "--core-hour" in told
