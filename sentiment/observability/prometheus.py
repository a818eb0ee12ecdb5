"""Ray's metrics of training and scoring; each node's agent offers them to Prometheus.

The driver sets them from the state that its progress bar shows, not the workers: what a worker counted last is lost
when Ray kills it, for a process reports every ten seconds, and once more when it ends by itself; and Ray forgets a
gauge that isn't set again within 20 s, while an epoch may take hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ray.util.metrics import Counter, Gauge

from sentiment.observability.progress import ProgressState
from sentiment.storage.uris import is_uri

# Keys of `ProgressState.measured`, beside those of an epoch's figures.
EPOCHS, ROWS, STORED_BYTES, SHARE = "epochs", "rows", "stored_bytes", "share"
# Reasons that get a series of their own; there are about a dozen, and the rest must not become a flood.
_MAX_REASONS, _OTHER = 30, "other"


class TrainingMeter:
    """Gauges of one training run; in Prometheus they are called `ray_sentiment_training_…`."""

    def __init__(self, output: str, recipe: str) -> None:
        run = {"run": _label(name_of(output)), "recipe": _label(recipe)}

        def gauge(name: str, about: str, *more_tags: str) -> Gauge:
            return Gauge(f"sentiment_training_{name}", about, (*run, *more_tags)).set_default_tags(run)

        self._epochs = gauge("epochs", "Epochs done; the one under way counts as the share of it that is done.")
        self._rows_per_s = gauge("rows_per_second", "Rows a second, over the last epoch.")
        self._loss = gauge("loss", "Mean loss of the last epoch.", "split")
        self._accuracy = gauge("accuracy", "Share of the rows that the last epoch had right.", "split")

    def update(self, state: ProgressState) -> None:
        """Set what is known so far."""
        known = state.measured
        self._epochs.set(known.get(EPOCHS))
        self._rows_per_s.set(known.get("rows_per_s"))
        for split in ("train", "validation"):
            self._loss.set(known.get(f"{split}_loss"), {"split": split})
            self._accuracy.set(known.get(f"{split}_accuracy"), {"split": split})


class ScoringMeter:
    """Counters of one scoring run; in Prometheus they are called `ray_sentiment_scoring_…`.

    A shard that is begun again, since an actor or a node was lost, counts once: totals may fall back, counters wait.

    Rows and bytes of the input, as it is stored, that earlier attempts did don't count.
    """

    def __init__(self, output: str, rows: int, stored_bytes: int) -> None:
        run = {"output": _label(name_of(output))}

        def metric(kind: type, name: str, about: str, *more_tags: str) -> Any:
            return kind(f"sentiment_scoring_{name}", about, (*run, *more_tags)).set_default_tags(run)

        self._rows = metric(Counter, "rows", "Rows scored.")
        self._stored_bytes = metric(Counter, "input_bytes", "Input that is done, as it is stored.")
        about = "Rows that can't be scored, by kind of reason."
        self._rejected = metric(Counter, "rejected_rows", about, "reason")
        self._share = metric(Gauge, "share", "Share of the input that is done, 0 to 1.")
        self._counted = {ROWS: rows, STORED_BYTES: stored_bytes}
        self._reasons: set[str] = set()

    def update(self, state: ProgressState) -> None:
        """Count what has been done since the last state."""
        known = state.measured
        self.reach(int(known.get(ROWS, 0)), int(known.get(STORED_BYTES, 0)))
        self._share.set(known.get(SHARE))

    def reach(self, rows: int, stored_bytes: int) -> None:
        """Count up to these totals; lower ones than before change nothing."""
        for name, counter, total in ((ROWS, self._rows, rows), (STORED_BYTES, self._stored_bytes, stored_bytes)):
            if total > self._counted[name]:
                counter.inc(total - self._counted[name])
                self._counted[name] = total

    def reject(self, reasons: Mapping[str, int]) -> None:
        """Count a shard's rejected rows by kind of reason (`sentiment.training.report.kind_of_reason`)."""
        for kind, rows in reasons.items():
            reason = _label(kind.split(":")[0])  # What follows is another library's message about a file.
            if reason not in self._reasons and len(self._reasons) >= _MAX_REASONS:
                reason = _OTHER
            self._reasons.add(reason)
            self._rejected.inc(rows, {"reason": reason})


def name_of(output: str) -> str:
    """The last two names in an output's path or URI: enough to know it by, without the keys that a URI may carry."""
    path = output
    if is_uri(output):
        uri = urlsplit(output)
        path = f"{uri.netloc.rpartition('@')[2]}/{uri.path}"
    return "/".join([part for part in path.split("/") if part][-2:])


def _label(text: str) -> str:
    """A text as a label's value: Ray takes ASCII alone."""
    return text.replace("…", "#").encode("ascii", "replace").decode("ascii")
