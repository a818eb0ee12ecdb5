"""`jobs/reproduce.py`: the named recipes, trained on their data, beside what their sources report."""

from __future__ import annotations

from typing import Any

from sentiment.cli import Job
from sentiment.observability.status import LIBRARIES, status_line
from sentiment.settings import RaySettings, ReproduceSettings


def _reproduce(settings: ReproduceSettings, ray_settings: RaySettings) -> dict[str, Any]:
    with status_line(LIBRARIES):
        from benchmarks.reproduction.runs import reproduce

    return reproduce(settings, ray_settings)


REPRODUCE = Job(
    "reproduce",
    """Train the named recipes on their data and set the results beside those of their sources.

  python jobs/prepare.py --input aclImdb --output runs/imdb
  python jobs/prepare.py --input training.1600000.processed.noemoticon.csv --output runs/sentiment140
  python jobs/reproduce.py --vectors glove.6B.50d.txt
  python jobs/reproduce.py --recipes bilstm bigru --seeds 1       # slow ones with one seed: adds to it

Runs are Ray tasks that share the machine or cluster, one CPU each unless told otherwise. The same command again resumes
where it was stopped: finished runs are kept, others continue from their last epoch. After each run docs/results gets
reproduction.json (all figures) and reproduction.md: the table, and below its marker what people wrote there.
""",
    ReproduceSettings,
    _reproduce,
    program="jobs/reproduce.py",
)
