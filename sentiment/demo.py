"""Prepare, train and score from end to end on an embedded Ray, and a table of the results."""

from __future__ import annotations

import html
import logging
import os
import shlex
import time
from pathlib import Path
from typing import Any

from sentiment import commands
from sentiment.cli import Job
from sentiment.errors import DataError
from sentiment.observability.status import LIBRARIES, status_line
from sentiment.settings import DemoSettings, RaySettings

_ARCHIVE_ROWS = 20_000
_log = logging.getLogger(__name__)


def run(settings: DemoSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Run the three commands and show the results; returns the command's JSON."""
    with status_line(LIBRARIES):
        from sentiment.data.synthetic import write_archive, write_sentiment140
        from sentiment.session import ray_session
        from sentiment.storage.output_directory import OutputDirectory

    started = time.monotonic()
    if settings.data is not None and not Path(settings.data).exists():
        raise DataError(f"no file or folder at {settings.data}")
    # A demo stays in the working directory, wherever the storage is.
    base = Path.cwd() if settings.is_rooted else Path()
    output = base / settings.output
    folder = OutputDirectory(str(output))
    folder.check(overwrite=True, inputs=[settings.data] if settings.data else [])
    folder.claim(overwrite=True)
    if not (ray_settings.address or ray_settings.num_cpus or os.environ.get("RAY_ADDRESS")):
        # Two workers also on a single core: slower, but the same.
        ray_settings = ray_settings.model_copy(update={"num_cpus": max(2, os.cpu_count() or 2)})
    bound = None
    if settings.data is None:
        corpus = output / "corpus.csv"
        with status_line("generating labeled tweets"):
            bound = write_sentiment140(corpus).best_possible_accuracy
    else:
        corpus = base / settings.data

    def run_command(job: Job[Any], **flags: object) -> dict[str, Any]:
        """Run a command as its command line would, in this process and on this Ray."""
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        argv = [*settings.config_flags, *words]
        _log.info(f"\n$ sentiment {job.name.replace('_', ' ')} {shlex.join(argv)}")
        return job.run(*job.parse(argv))

    with ray_session(ray_settings):
        run_command(commands.PREPARE, input=corpus, output=output / "prepared")
        trained = run_command(commands.TRAIN_LSTM, data=output / "prepared", output=output / "model")
        archive = output / "archive.jsonl.gz"
        with status_line("writing an archive to score"):
            texts = None if settings.data is None else _held_out_texts(output / "prepared", settings.data)
            write_archive(archive, _ARCHIVE_ROWS if texts is None else len(texts), texts=texts)
        scored = run_command(commands.SCORE, model=trained["bundle"], input=archive, output=output / "scored")
    duration_s = time.monotonic() - started
    _show(trained, scored, bound, duration_s)
    return {
        "test_accuracy": trained["test_accuracy"],
        **{key: scored[key] for key in ("rows_in", "rows_scored", "rows_rejected", "rows_per_s")},
        "parquet": f"{scored['output']}/scored",
        "curve": trained["curve"],
        "bundle": trained["bundle"],
        "duration_s": round(duration_s, 1),
    }


def _held_out_texts(prepared: Path, data: str) -> list[str]:
    """Tweets that the model wasn't trained on, as they came in."""
    import pyarrow.compute as pc
    import pyarrow.dataset

    from sentiment.data.formats import read_file
    from sentiment.data.read_plan import plan, texts_of
    from sentiment.schema import SOURCE_FILE, SOURCE_ROW, TEST

    test = pyarrow.dataset.dataset(prepared / TEST, format="parquet")
    if not test.count_rows():
        raise DataError(f"{data}: no row fell into the test split; the demo needs a few hundred rows")
    rows = test.head(_ARCHIVE_ROWS, columns=[SOURCE_FILE, SOURCE_ROW])
    texts: list[str] = []
    reads = plan([data])
    for source in reads.files:
        wanted = rows[SOURCE_ROW].filter(pc.equal(rows[SOURCE_FILE], source.path))
        for table in read_file(source, reads) if len(wanted) else ():
            texts += texts_of(table, reads.text_columns).filter(pc.is_in(table[SOURCE_ROW], wanted)).to_pylist()
    return texts


def _show(trained: dict[str, Any], scored: dict[str, Any], bound: float | None, duration_s: float) -> None:
    """Print the table and five scored tweets, from the most negative to the most positive."""
    import pyarrow.parquet as pq

    of_bound = "" if bound is None else f"  (best possible {bound:.1%}: the rest of the labels is flipped)"
    lines = [
        ("test accuracy", f"{trained['test_accuracy']:.2%}{of_bound}"),
        ("training", f"{trained['rows_per_s']:,} rows/s on {trained['workers']} workers, {trained['precision']}"),
        ("rows in", f"{scored['rows_in']:,}"),
        ("  scored", f"{scored['rows_scored']:,}"),
        ("  rejected", f"{scored['rows_rejected']:,}  (reasons in {scored['output']}/rejected)"),
        ("scoring", f"{scored['rows_per_s']:,.0f} tweets/s"),
        ("Parquet", f"{scored['output']}/scored"),
        ("curve", _short(trained["curve"])),
        ("bundle", _short(trained["bundle"])),
        ("time", f"{duration_s:.0f} s"),
    ]
    _log.info("\n" + "\n".join(f"{name:<16}{value}" for name, value in lines) + "\n")
    table = pq.read_table(f"{scored['output']}/scored", columns=["p_positive", "label", "text"]).sort_by("p_positive")
    for share in (0.02, 0.25, 0.5, 0.75, 0.98):
        row = table.slice(round(share * (table.num_rows - 1)), 1).to_pylist()[0]
        text = " ".join(html.unescape(row["text"]).split())[:90]
        _log.info(f"{row['label']:<9}{row['p_positive']:6.1%} positive   {text}")
    _log.info("")


def _short(path: str) -> str:
    """The path relative to the working directory, if it is in it."""
    base = Path.cwd()
    return str(Path(path).relative_to(base)) if Path(path).is_relative_to(base) else path
