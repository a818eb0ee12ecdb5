#!/usr/bin/env python
"""The main job from end to end on an embedded Ray: prepare → train → score, with the commands it runs.

  python jobs/demo.py                                                     # the embedded corpus
  python jobs/demo.py --data training.1600000.processed.noemoticon.csv    # your own labelled tweets

Without --data it writes a corpus of its own, in the form of Sentiment140, whose labels depend on the order of words.
The archive that it scores is JSON lines with bad rows among them. Everything lands in runs/demo; each run replaces it.
"""

from __future__ import annotations

import html
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import prepare, score, train_lstm
from sentiment.cli import Job
from sentiment.errors import DataError
from sentiment.settings import DemoSettings, RaySettings

_ARCHIVE_ROWS = 20_000


def run(settings: DemoSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Run the three jobs and show what came out."""
    from sentiment.corpora.folder import Folder
    from sentiment.corpora.synthetic import write_archive, write_sentiment140
    from sentiment.session import ray_session

    started = time.monotonic()
    if settings.data is not None and not Path(settings.data).exists():
        raise DataError(f"no file or folder at {settings.data}")
    # A demo stays here, wherever the storage is.
    here = Path.cwd() if settings.is_rooted else Path()
    folder = Folder(str(here / settings.output))
    folder.check(overwrite=True, inputs=[settings.data] if settings.data else [])
    folder.claim(overwrite=True)
    output = here / settings.output
    if not (ray_settings.address or ray_settings.num_cpus or os.environ.get("RAY_ADDRESS")):
        # Two workers also on a single core: slower, but the same.
        ray_settings = ray_settings.model_copy(update={"num_cpus": max(2, os.cpu_count() or 2)})
    bound = None
    if settings.data is None:
        corpus = output / "corpus.csv"
        bound = write_sentiment140(corpus).best_possible_accuracy
    else:
        corpus = here / settings.data
    with ray_session(ray_settings):
        config = ["--config", settings.config] if settings.config else []
        config += ["--profile", settings.profile] if settings.profile else []
        _run(prepare.JOB, [*config, "--input", str(corpus), "--output", str(output / "prepared")])
        trained = _run(train_lstm.JOB, [*config, "--data", str(output / "prepared"), "--output", str(output / "model")])
        archive = output / "archive.jsonl.gz"
        texts = None if settings.data is None else _held_out_texts(output / "prepared", settings.data)
        write_archive(archive, _ARCHIVE_ROWS if texts is None else len(texts), texts=texts)
        flags = [*config, "--model", trained["bundle"], "--input", str(archive), "--output", str(output / "scored")]
        scored = _run(score.JOB, flags)
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


def _run(job: Job[Any], argv: Sequence[str]) -> dict[str, Any]:
    """Run a job as its command line would, in this process and on this Ray."""
    print(f"\n$ python jobs/{job.name}.py {shlex.join(argv)}", file=sys.stderr, flush=True)
    return job.run(*job.parse(argv))


def _held_out_texts(prepared: Path, data: str) -> list[str]:
    """Tweets that the model wasn't trained on, as they came in."""
    import pyarrow.compute as pc
    import pyarrow.dataset

    from sentiment.corpora.columns import RAW_TEXT
    from sentiment.corpora.files import read_file
    from sentiment.corpora.planning import plan
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
            texts += table[RAW_TEXT].filter(pc.is_in(table[SOURCE_ROW], wanted)).to_pylist()
    return texts


def _show(trained: dict[str, Any], scored: dict[str, Any], bound: float | None, duration_s: float) -> None:
    """The short table and five scored tweets."""
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
    print("\n" + "\n".join(f"{name:<16}{value}" for name, value in lines) + "\n", file=sys.stderr)
    for p_positive, label, text in _five(Path(scored["output"]) / "scored"):
        print(f"{label:<9}{p_positive:6.1%} positive   {' '.join(html.unescape(text).split())[:90]}", file=sys.stderr)
    print(file=sys.stderr)


def _five(folder: Path) -> list[tuple[float, str, str]]:
    """Five tweets from the most negative to the most positive."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder, columns=["p_positive", "label", "text"]).sort_by("p_positive")
    places = [round(share * (table.num_rows - 1)) for share in (0.02, 0.25, 0.5, 0.75, 0.98)]
    return [tuple(table.slice(at, 1).to_pylist()[0].values()) for at in places]


def _short(path: str) -> str:
    """Relative to where the user stands, if that is shorter."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


JOB = Job("demo", __doc__, DemoSettings, run)

if __name__ == "__main__":
    sys.exit(JOB.main())
