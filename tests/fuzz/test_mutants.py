"""Ten thousand damaged files of each format: none hangs, raises or takes more memory than is stated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mutants
import pytest

from sentiment.data.manifest import machine, machine_line

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]
MUTANTS = 10_000
# Of one process that reads, and of one that parses Parquet for it.
MOST_MIB = 2048
# Half of a format takes a minute.
PATIENCE_S = 600

_HEAD = f"""# Fuzzed archives, measured

Made by `make chaos` (`tests/fuzz/test_mutants.py`): of each format, {MUTANTS:,} files are damaged (bits flipped, bytes
set, cut out, put in, doubled; half of the compressed ones within, half as they are stored), some of which are to the
limits of what is read, and planned and read one by one. *Refused* is what a file alone in its archive comes to if
nothing in it can be read; among others it is a rejected row. *Contained* are crashes of the process that parses
Parquet. *Died* are reading processes that ended or hung, *raised* what came of a file otherwise: there mustn't be any.

Memory is the most that the process had at once that read them, and the one that parsed Parquet for it.

| format | files | refused | rejected rows | whole | contained | died | raised | slowest, s | reader MiB | parser MiB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def read_mutants(form: str, first: int, end: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Read some mutants, in processes that go on behind the one that the last died of: what came of each, who died."""
    found: list[dict[str, Any]] = []
    died: list[str] = []
    while first < end:
        command = [sys.executable, str(ROOT / "tests/mutants.py"), form, str(first), str(end)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=False
            )
            output, how = done.stdout, f"{done.returncode}: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired as late:
            output, how = (late.stdout or b"").decode(), "hung"
        lines = output.splitlines()
        found += [json.loads(line) for line in lines if line.startswith("{")]
        last = next((int(line) for line in reversed(lines) if line.isdigit()), first)
        if not lines or not lines[-1].startswith("{") or last < end - 1:
            died.append(f"{form} {last}: {how}")
        first = last + 1
    return found, died


@pytest.mark.timeout(3 * PATIENCE_S)
@pytest.mark.parametrize("form", mutants.FORMATS)
def test_no_mutant_stops_the_reader(form: str) -> None:
    half = MUTANTS // 2
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda first: read_mutants(form, first, first + half), (0, half)))
    found, died = ([item for half in halves for item in half[part]] for part in (0, 1))
    raised = [item["raised"] for item in found if "raised" in item]
    read = [item for item in found if "rows" in item]
    whole = sum(not item["rejected"] for item in read)
    reader, parser = (max(item["peak"][at] for item in found) for at in (0, 1))
    note(
        format=form,
        files=MUTANTS,
        refused=sum("refused" in item for item in found),
        rejected=len(read) - whole,
        whole=whole,
        contained=sum(item["crashes"] for item in read),
        died=len(died),
        raised=len(raised),
        slowest_s=round(max(item["seconds"] for item in found), 1),
        reader_mib=reader,
        parser_mib=parser,
    )
    assert (died, raised) == ([], [])
    assert len(found) == MUTANTS
    assert max(reader, parser) < MOST_MIB


def note(**row: Any) -> None:
    """Put a format into the table, if results are wanted."""
    print(row)
    if "CHAOS_RESULTS" not in os.environ:
        return
    folder = Path(os.environ["CHAOS_RESULTS"])
    raw = folder / "fuzz.json"
    formats: dict[str, Any] = json.loads(raw.read_text())["formats"] if raw.exists() else {}
    formats = {
        form: {**formats, row["format"]: row}[form] for form in mutants.FORMATS if form in {*formats, row["format"]}
    }
    about, created = machine("pyarrow"), datetime.now(UTC).date().isoformat()
    raw.write_text(json.dumps({"machine": about, "created": created, "formats": formats}, indent=1) + "\n")
    lines = "".join(f"| {' | '.join(map(str, one.values()))} |\n" for one in formats.values())
    (folder / "fuzz.md").write_text(f"{_HEAD}{lines}\nOn {machine_line(about)}; {created}.\n")
