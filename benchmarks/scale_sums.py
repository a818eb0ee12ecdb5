"""What an archive of any size takes: sums over measured figures, and the point at which each part becomes too much.

Measured figures come from docs/results; what can't be measured here is in `Assumed`, and only there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

from scale_words import duration, in_bytes, in_number, in_percent

from jobs.ray_scoring import _SHARDS_UNDER_WAY
from sentiment.corpora.shards import _MOST_ROWS, BYTES_PER_SHARD, default_rows
from sentiment.settings import ScoreSettings
from sentiment.stores import STORE_THREADS

SIZES = {"1.6 million": 1.6e6, "1 billion": 1e9, "500 billion": 5e11}
SLICE_ROWS = int(ScoreSettings.model_fields["batch_rows"].default)
_FORMS = {"parquet": "Parquet", "jsonl": "JSON lines"}
_STEPS = ("plan", "shard", "report", "check")
# Of an answer to a listing; so S3.
_NAMES = 1000


@dataclass(frozen=True)
class Assumed:
    """What isn't measured.

    Attributes:
        night_h: Hours that a run may take.
        machine_cores: Cores of a machine.
        core_hour: Price of a core for an hour, in any currency.
        file_bytes: Size of an input file.
        request_s: Time that a store takes to answer a request. S3's guide says 0.1 to 0.2 s.
        writes_per_s: Requests of S3 that change something, for each prefix; so its guide.
        actors: Actors of a cluster that Ray's own benchmark has tried.
        wait_s: Seconds that a driver may work alone, before the run or after it.
        driver_bytes: Memory of the driver's machine that it may take; and of a training worker.
        network_bytes_per_s: Between training workers.
    """

    night_h: float = 8.0
    machine_cores: int = 16
    core_hour: float = 0.05
    file_bytes: float = 128e6
    request_s: float = 0.1
    writes_per_s: float = 3_500.0
    actors: int = 20_000
    wait_s: float = 600.0
    driver_bytes: float = 16e9
    network_bytes_per_s: float = 1.25e9


@dataclass(frozen=True)
class Limit:
    """A part that stops scaling.

    Attributes:
        part: What.
        of: Rows → how much of it; linear.
        most: How much is too much.
        show: That much in words.
        way: Round it.
    """

    part: str
    of: Callable[[float], float]
    most: float
    show: Callable[[float], str]
    way: str

    @property
    def bites_at(self) -> float:
        """Rows."""
        return self.most / self.of(1.0)


class Sums:
    """Sums over the figures.

    Args:
        measured: scale.json.
        rates: The other results, by name.
        assumed: What isn't measured.
    """

    def __init__(self, measured: dict[str, Any], rates: dict[str, Any], assumed: Assumed) -> None:
        self.measured, self.rates, self.assumed = measured, rates, assumed
        scoring = rates["scoring"]
        self.row_rates = {
            "BiLSTM": scoring["size"]["median"]["large"]["rows_per_s"] / scoring["size"]["machine"]["cores"],
            "MiniLM BERT-GRU": scoring["minilm"]["median"]["job"] / scoring["minilm"]["machine"]["cores"],
        }
        big = measured["shards"]["shards"][str(_MOST_ROWS)]
        self.input_bytes, self.output_bytes = measured["shards"]["input_bytes_per_row"], big["output_bytes_per_row"]
        self.shard_memory = big["memory_bytes_per_row"] * _MOST_ROWS
        reports = measured["reports"]["runs"][-1]
        self.report = {name: value / reports["shards"] for name, value in reports.items() if name.endswith("_s")}
        self.report |= {name: value for name, value in reports.items() if name.startswith("b")}
        self.planning = {words: self._of_a_file(measured["plan"][form][-1]) for form, words in _FORMS.items()}
        count = measured["store"]["count"]
        self.requests = {step: _requests(measured["store"][step], count) for step in _STEPS}
        runs = measured["nodes"]["runs"]
        self.dispatch_s = max(run["driver_cpu_ms_per_shard"] for run in runs) / 1e3
        few, many = (run for run in runs if run["groups"] == run["shards"])  # A shard to a group: what a group takes.
        more = many["groups"] - few["groups"]
        self.group_s = (many["first_report_s"] - few["first_report_s"]) / more
        self.group_bytes = (many["driver_peak_mb"] - few["driver_peak_mb"]) * 2**20 / more - self.report[
            "bytes_per_shard"
        ]
        self.board_s = median(run["board_cpu_us_per_call"] for run in runs) / 1e6

    @staticmethod
    def _of_a_file(run: dict[str, Any]) -> dict[str, float]:
        spent = run["plan_s"] + run["identity_s"] + run["group_s"]
        state = run["run_json_bytes"] / run["files"] + run["manifest_bytes_per_file"]
        return {"s": spent / run["files"], "bytes": run["bytes_per_file"], "state": state}

    def core_hours(self, model: str, rows: float) -> float:
        """Of scoring."""
        return rows / self.row_rates[model] / 3600

    def cores(self, model: str, rows: float) -> float:
        """That score so many rows in a night."""
        return self.core_hours(model, rows) / self.assumed.night_h

    def files(self, rows: float) -> float:
        """Input files."""
        return rows * self.input_bytes / self.assumed.file_bytes

    def rows_per_shard(self, rows: float, actors: float) -> int:
        """As the job chooses them."""
        stored = SimpleNamespace(files=[SimpleNamespace(size_bytes=int(rows * self.input_bytes))])
        return default_rows(stored, max(2, round(actors)))  # type: ignore[arg-type]

    def actor_store_bytes(self) -> int:
        """Object store that a run may fill, for each actor."""
        return _SHARDS_UNDER_WAY * BYTES_PER_SHARD

    def waiting_s(self, step: str) -> float:
        """Of a file in a store, for a driver that asks in `STORE_THREADS` threads."""
        return self.requests[step]["all"] * self.assumed.request_s / STORE_THREADS

    def scoring_limits(self) -> list[Limit]:
        """Parts of scoring, the first to bite first; with the largest shards."""
        shards, a = 1 / _MOST_ROWS, self.assumed
        night_s, file, report = a.night_h * 3600, self.planning["Parquet"], self.report
        held = (report["bytes_per_shard"] + report["board_bytes_per_shard"]) * shards
        held += (file["bytes"] + self.group_bytes) * self.files(1)
        calls = 1 / SLICE_ROWS + 2 * shards
        lines = self.measured["shards"]["read"]["jsonl"]["bytes"] / self.measured["shards"]["rows"]
        fastest = self.row_rates["BiLSTM"]
        slowest = self.row_rates["MiniLM BERT-GRU"]
        return sorted(
            [
                Limit(
                    "last check: lists the output, on S3",
                    lambda rows: rows * shards / _NAMES * a.request_s,
                    *(a.wait_s, duration, "several runs"),
                ),
                Limit(
                    "a resumed run reads each report, from S3",
                    lambda rows: rows * shards * self.waiting_s("report"),
                    *(a.wait_s, duration, "several runs; later: one file for many reports"),
                ),
                Limit(
                    "the same from a local disk; the last check opens each file",
                    lambda rows: rows * shards * (report["check_s"] + report["read_s"]),
                    *(a.wait_s, duration, "as above"),
                ),
                Limit(
                    "planning: opens each Parquet file, on S3",
                    lambda rows: self.files(rows) * self.waiting_s("plan"),
                    *(a.wait_s, duration, "larger input files; several runs"),
                ),
                Limit(
                    "planning, files of 1 MB: opens each, on S3",
                    lambda rows: rows * self.input_bytes / 1e6 * self.waiting_s("plan"),
                    *(a.wait_s, duration, "larger input files"),
                ),
                Limit(
                    "planning: parses the head of each JSON lines file",
                    lambda rows: rows * lines / a.file_bytes * self.planning["JSON lines"]["s"],
                    *(a.wait_s, duration, "larger input files; several runs"),
                ),
                Limit(
                    "planning, Parquet from a local disk",
                    lambda rows: self.files(rows) * file["s"],
                    *(a.wait_s, duration, "as above"),
                ),
                Limit(
                    "Ray Data's start: a read task for each group of files",
                    lambda rows: self.files(rows) * self.group_s,
                    *(a.wait_s, duration, "larger input files; several runs"),
                ),
                Limit(
                    "memory of the driver's machine: plan, reports, progress",
                    lambda rows: rows * held,
                    *(a.driver_bytes, in_bytes, "several runs"),
                ),
                Limit(
                    "the driver's own CPU: it hands out and takes back each shard",
                    lambda rows: rows * shards * self.dispatch_s / night_s,
                    *(1.0, in_percent, "several runs, each with its own driver"),
                ),
                Limit(
                    "the progress actor: a call for each 4,096 rows",
                    lambda rows: rows * calls * self.board_s / night_s,
                    *(1.0, in_percent, "larger `--batch-rows`; later: a call every few seconds"),
                ),
                Limit(
                    "requests that write to one S3 prefix",
                    lambda rows: rows * shards * self.requests["shard"]["writes"] / night_s / a.writes_per_s,
                    *(1.0, in_percent, "S3 divides a busy prefix by itself; several outputs"),
                ),
                Limit(
                    "actors of one Ray cluster, BiLSTM",
                    lambda rows: rows / fastest / night_s / a.actors,
                    *(1.0, in_percent, "several clusters; GPUs; more nights"),
                ),
                Limit(
                    "actors of one Ray cluster, MiniLM",
                    lambda rows: rows / slowest / night_s / a.actors,
                    *(1.0, in_percent, "several clusters; GPUs; more nights"),
                ),
                Limit(
                    "six digits in names: groups of input files",
                    self.files,
                    *(1e6, in_number, "larger input files; several runs"),
                ),
            ],
            key=lambda limit: limit.bites_at,
        )

    def training_limits(self) -> list[Limit]:
        """Parts of preparing and training, the first to bite first."""
        prepare, train, a = self.measured["train"]["prepare"], self.measured["train"]["train"], self.assumed
        return sorted(
            [
                Limit(
                    "memory of a training worker: ids of all rows",
                    lambda rows: rows * train["per_row"]["peak_bytes"],
                    *(a.driver_bytes, in_bytes, "a sample; fewer workers a machine: each holds its own copy"),
                ),
                Limit(
                    "2³¹ tokens in one Arrow list: loading fails",
                    lambda rows: rows * train["tokens_per_row"],
                    *(2.0**31, in_number, "a sample"),
                ),
                Limit(
                    "memory of prepare's driver: duplicates",
                    lambda rows: rows * prepare["driver_bytes_per_row"],
                    *(a.driver_bytes, in_bytes, "a sample; prepare parts, if duplicates across them may stay"),
                ),
                Limit(
                    "prepare's vocabulary: one process counts words",
                    lambda rows: rows / prepare["vocabulary_rows_per_s"],
                    *(3600.0, duration, "a sample: a vocabulary needs no billion texts"),
                ),
                Limit(
                    "prepare's object store over 16 machines of that memory, before it spills",
                    lambda rows: rows * prepare["store_bytes_per_row"],
                    *(0.3 * 16 * a.driver_bytes, in_bytes, "disks that hold the rest, or more machines"),
                ),
            ],
            key=lambda limit: limit.bites_at,
        )


def _requests(found: dict[str, int], count: int) -> dict[str, float]:
    """Of one file; a listing has a thousand names, so lists are left out."""
    writes = sum(value for kind, value in found.items() if kind in ("PUT", "POST", "COPY", "DELETE"))
    return {"all": round((sum(found.values()) - found.get("LIST", 0)) / count), "writes": round(writes / count)}
