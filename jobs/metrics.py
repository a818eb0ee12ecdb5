"""What training and scoring measure while they run, as Ray's metrics: each node's agent offers them to Prometheus.

The driver tells them, from the news that its progress bar shows. So nothing is added to the loops. What was counted
last isn't lost, as it would be with a worker that Ray kills: a process reports every ten seconds, and once more when it
ends by itself. And a gauge stays as long as its run: Ray forgets one that isn't set again within 20 s, and an epoch may
take hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from ray.util.metrics import Counter, Gauge

from jobs.progress import News
from sentiment.uris import is_uri

# Keys of `News.measured`, beside those of an epoch's figures.
EPOCHS, ROWS, STORED_BYTES, SHARE = "epochs", "rows", "stored_bytes", "share"
# Kinds of reasons that get a series of their own; there are about a dozen, and the rest must not become a flood.
_MOST_REASONS, _OTHER = 30, "other"


class TrainingMeter:
    """Gauges of one training run; in Prometheus they are called `ray_sentiment_training_…`.

    Args:
        output: The run's folder.
        recipe: Its name.
    """

    def __init__(self, output: str, recipe: str) -> None:
        run = {"run": _label(name_of(output)), "recipe": _label(recipe)}
        keys, by_split = tuple(run), (*run, "split")
        self._epochs = Gauge(
            "sentiment_training_epochs", "Epochs done; the one under way counts as the share of it that is done.", keys
        ).set_default_tags(run)
        self._rows_per_s = Gauge(
            "sentiment_training_rows_per_second", "Rows a second, over the last epoch.", keys
        ).set_default_tags(run)
        self._loss = Gauge("sentiment_training_loss", "Mean loss of the last epoch.", by_split).set_default_tags(run)
        self._accuracy = Gauge(
            "sentiment_training_accuracy", "Share of the rows that the last epoch had right.", by_split
        ).set_default_tags(run)

    def tell(self, news: News) -> None:
        """Set what is known so far."""
        known = news.measured
        self._epochs.set(known.get(EPOCHS))
        self._rows_per_s.set(known.get("rows_per_s"))
        for split in ("train", "validation"):
            self._loss.set(known.get(f"{split}_loss"), {"split": split})
            self._accuracy.set(known.get(f"{split}_accuracy"), {"split": split})


class ScoringMeter:
    """Counters of one scoring run; in Prometheus they are called `ray_sentiment_scoring_…`.

    A shard that is begun again, since an actor or a node went, counts once: totals may fall back, counters wait.

    Args:
        output: The run's folder.
        rows: Scored by earlier attempts; they don't count.
        stored_bytes: Of the input, done by earlier attempts.
    """

    def __init__(self, output: str, rows: int, stored_bytes: int) -> None:
        run = {"output": _label(name_of(output))}
        keys = tuple(run)
        self._rows = Counter("sentiment_scoring_rows", "Rows scored.", keys).set_default_tags(run)
        self._stored_bytes = Counter(
            "sentiment_scoring_input_bytes", "Input that is done, as it is stored.", keys
        ).set_default_tags(run)
        self._rejected = Counter(
            "sentiment_scoring_rejected_rows", "Rows that can't be scored, by kind of reason.", (*keys, "reason")
        ).set_default_tags(run)
        self._share = Gauge("sentiment_scoring_share", "Share of the input that is done, 0 to 1.", keys)
        self._share.set_default_tags(run)
        self._counted = {ROWS: rows, STORED_BYTES: stored_bytes}
        self._reasons: set[str] = set()

    def tell(self, news: News) -> None:
        """Count what has been done since the last news."""
        known = news.measured
        self.reach(int(known.get(ROWS, 0)), int(known.get(STORED_BYTES, 0)))
        self._share.set(known.get(SHARE))

    def reach(self, rows: int, stored_bytes: int) -> None:
        """Count up to these totals; lower ones than before change nothing."""
        for name, counter, total in ((ROWS, self._rows, rows), (STORED_BYTES, self._stored_bytes, stored_bytes)):
            if total > self._counted[name]:
                counter.inc(total - self._counted[name])
                self._counted[name] = total

    def reject(self, reasons: Mapping[str, int]) -> None:
        """Count a shard's rejected rows.

        Args:
            reasons: Rows by kind of reason (`jobs.report.kind_of_reason`).
        """
        for kind, rows in reasons.items():
            reason = _label(kind.split(":")[0])  # Behind it stands what another library said of a file.
            if reason not in self._reasons and len(self._reasons) >= _MOST_REASONS:
                reason = _OTHER
            self._reasons.add(reason)
            self._rejected.inc(rows, {"reason": reason})


def name_of(output: str) -> str:
    """The last two folders of an output: enough to know it by, without the keys that a URI may carry.

    Args:
        output: Path or URI.
    """
    path = output
    if is_uri(output):
        uri = urlsplit(output)
        path = f"{uri.netloc.rpartition('@')[2]}/{uri.path}"
    return "/".join([part for part in path.split("/") if part][-2:])


def _label(text: str) -> str:
    """A text as Ray takes it: in ASCII, or it raises."""
    return text.replace("…", "#").encode("ascii", "replace").decode("ascii")
