"""A made-up tweet corpus, so that `make demo` shows the whole pipeline to someone who has no data.

Two files come out of one seeded generator: a labelled one in the exact form of Sentiment140
(`training.1600000.processed.noemoticon.csv`: latin-1, no header, six quoted fields, negatives first) and an unlabelled
archive of JSON lines, as collected from an API, with bad rows in it. Both are the same bytes for the same seed.

The label of most tweets hangs on word order ("bad start but i loved it", "loved the start but it was bad"), so a bag of
words stays far below a model that reads in order. Every frame has one reading, and a stated share of the labels
is turned over afterwards, so the best accuracy any model can reach is known: 1 - flip_share. What a model falls
short of it is the model's own, and a result above it means that something leaks.
"""

from __future__ import annotations

import gzip
import html
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from sentiment.corpora.wording import compose, screen_name
from sentiment.errors import ConfigError, DataError
from sentiment.schema import NEGATIVE, POSITIVE

DEMO_ROWS = 24_000

# The span and the first id of the real file.
_FIRST_ID, _ID_STEP = 1_467_810_369, 523
_START, _SPAN_S = datetime(2009, 4, 6, 22, 19, 45), 80 * 86_400

# One archive row in so many is bad; the reasons take turns.
BAD_EVERY = 100
BAD_REASONS = ("broken_json", "text_null", "text_missing", "text_blank", "text_not_string", "invalid_utf8")


@dataclass(frozen=True)
class Tweet:
    """One made-up tweet.

    Attributes:
        label: What the text says: 0 negative, 1 positive.
        shown_label: The label that is written out: `label`, turned over in a share of the rows.
        text: As a reader sees it: Unicode with emoji, no HTML entities.
        user: The screen name, without the at sign.
        construct: Which kind of sentence carries the label: a key of `wording.FRAMES`.
    """

    label: int
    shown_label: int
    text: str
    user: str
    construct: str


@dataclass(frozen=True)
class CorpusSummary:
    """What a labelled file holds.

    Attributes:
        rows: Lines of the file.
        negatives: Lines that show a negative label.
        positives: Lines that show a positive label.
        flipped: Lines whose shown label contradicts the text.
        best_possible_accuracy: Accuracy on this file of a model that reads every text rightly, `1 - flipped / rows`; on
            rows held out from it, `1 - flip_share` in expectation.
    """

    rows: int
    negatives: int
    positives: int
    flipped: int
    best_possible_accuracy: float


@dataclass(frozen=True)
class ArchiveSummary:
    """What an archive holds.

    Attributes:
        rows: All lines, the bad ones included.
        bad: Reason (one of `BAD_REASONS`) -> lines that are bad for it; reasons that don't occur are left out.
    """

    rows: int
    bad: dict[str, int]


def tweets(rows: int, seed: int = 1, flip_share: float = 0.05) -> Iterator[Tweet]:
    """Make tweets, the two labels equally likely.

    The texts depend on the seed alone: fewer rows give the beginning of the same sequence, and another flip share other
    shown labels under the same texts.

    Args:
        rows: How many, at least 1.
        seed: Which sequence.
        flip_share: Probability that a tweet's shown label is turned over, in [0, 0.5).

    Returns:
        An iterator that makes each tweet as it is asked for.

    Raises:
        ConfigError: `rows` or `flip_share` is out of its range.
    """
    if rows < 1:
        raise ConfigError(f"rows is {rows}; a synthetic corpus needs at least 1 row")
    if not 0 <= flip_share < 0.5:
        raise ConfigError(
            f"flip_share is {flip_share}; accepted is 0 <= flip_share < 0.5 (0.05 turns 5 % of the labels)"
        )
    rng = random.Random(seed)
    return (_tweet(rng, flip_share) for _ in range(rows))


def write_sentiment140(path: Path, rows: int = DEMO_ROWS, seed: int = 1, flip_share: float = 0.05) -> CorpusSummary:
    """Write a labelled corpus in the form of Sentiment140: all negatives, then all positives, each half in time order.

    The tweets are made twice, once for each half, so memory does not grow with the rows.

    Args:
        path: The CSV file; its folder is made if needed, and an older file is replaced only when the new one is whole.
        rows: How many, at least 1.
        seed: Which sequence.
        flip_share: Probability that a label is turned over, in [0, 0.5).

    Returns:
        The counts, and with them the best accuracy that can be reached.

    Raises:
        ConfigError: `rows` or `flip_share` is out of its range.
        DataError: The file can't be written.
    """
    shown, flipped = [0, 0], 0
    tweets(rows, seed, flip_share)  # complain before a file is touched
    with _replacing(path) as file:
        for half in (NEGATIVE, POSITIVE):
            for place, tweet in enumerate(tweets(rows, seed, flip_share)):
                if tweet.shown_label == half:
                    file.write(_csv_line(tweet, place, rows))
                    shown[half] += 1
                    flipped += tweet.shown_label != tweet.label
    return CorpusSummary(rows, shown[NEGATIVE], shown[POSITIVE], flipped, 1 - flipped / rows)


def write_archive(path: Path, rows: int, seed: int = 2, texts: Sequence[str] | None = None) -> ArchiveSummary:
    """Write an unlabelled archive: JSON lines with `id_str`, `created_at`, `user` and `text`, 1 in 100 of them bad.

    The texts are as an API gives them: UTF-8 with emoji as they are, and `&amp;`, `&lt;`, `&gt;`. The 51st row is bad,
    the 151st, and so on, so 551 rows have one for each reason.

    Args:
        path: The file; a name ending in `.gz` is written through gzip. Replaced only when the new one is whole.
        rows: How many lines, at least 1.
        seed: Which sequence; the labelled corpus's own would give its texts again.
        texts: Tweets to use instead of made ones, at least `rows`.

    Returns:
        The lines, and how many of them are bad for which reason.

    Raises:
        ConfigError: `rows` is less than 1.
        DataError: The file can't be written.
    """
    bad: Counter[str] = Counter()
    made = tweets(rows, seed, flip_share=0)
    if texts is not None:
        made = (replace(tweet, text=text) for tweet, text in zip(made, texts, strict=False))
    with _replacing(path) as file:
        for place, tweet in enumerate(made):
            turn, within = divmod(place, BAD_EVERY)
            if within == BAD_EVERY // 2:
                reason = BAD_REASONS[turn % len(BAD_REASONS)]
                bad[reason] += 1
                file.write(_bad_line(reason, tweet, place, rows))
            else:
                file.write(_json_line(_record(tweet, place, rows)))
    return ArchiveSummary(rows, dict(bad))


def _tweet(rng: random.Random, flip_share: float) -> Tweet:
    label = rng.choice((NEGATIVE, POSITIVE))
    text, construct = compose(rng, label)
    user = screen_name(rng)
    flipped = rng.random() < flip_share  # drawn at any share, so that the texts don't depend on it
    return Tweet(label, 1 - label if flipped else label, text, user, construct)


def _moment(place: int, rows: int) -> datetime:
    return _START + timedelta(seconds=place * _SPAN_S // rows)


def _stamp(moment: datetime, zone: str) -> str:
    """Twitter's own form, `Mon Apr 06 22:19:45 PDT 2009`; `ctime` rather than `%a %b`, which follow the locale."""
    return f"{moment.ctime()[:8]}{moment:%d %H:%M:%S} {zone} {moment:%Y}"


def _csv_line(tweet: Tweet, place: int, rows: int) -> bytes:
    # Entities stand for whatever would end a field or has no latin-1 letter, so no quoting rules are needed.
    text = html.escape(tweet.text, quote=False).replace('"', "&quot;")
    stamp = _stamp(_moment(place, rows), "PDT")
    fields = (4 * tweet.shown_label, _FIRST_ID + place * _ID_STEP, stamp, "NO_QUERY", tweet.user, text)
    return (",".join(f'"{field}"' for field in fields) + "\n").encode("latin-1", "xmlcharrefreplace")


def _record(tweet: Tweet, place: int, rows: int) -> dict[str, object]:
    return {
        "id_str": str(1_412_442_401_000_000_000 + place * 4_194_301),
        "created_at": _stamp(_moment(place, rows), "+0000"),
        "user": tweet.user,
        "text": html.escape(tweet.text, quote=False),
    }


def _json_line(record: dict[str, object]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


def _bad_line(reason: str, tweet: Tweet, place: int, rows: int) -> bytes:
    """Spoil a tweet's line in one way; the line break stays, so that one bad line never takes its neighbour along."""
    record = _record(tweet, place, rows)
    match reason:
        case "broken_json":
            return json.dumps(record, ensure_ascii=False)[:-12].encode("utf-8") + b"\n"  # as by a collector that died
        case "invalid_utf8":
            return _json_line(record | {"text": "caf# " + tweet.text}).replace(b"caf#", b"caf\xe9\xff")
        case "text_missing":
            del record["text"]
        case "text_null":
            record["text"] = None
        case "text_blank":
            record["text"] = " \t "
        case _:  # text_not_string
            record["text"] = 42
    return _json_line(record)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Write beside `path` and move into place at the end, so that a file under its own name is always whole."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as raw:
            if path.suffix == ".gz":
                # No name and no time in the header: the same rows are the same bytes.
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                    yield packed
            else:
                yield raw
        part.replace(path)
    except OSError as error:
        raise DataError(f"can't write {path}: {error}; give a path in a folder that can be written to") from error
    finally:
        with suppress(OSError):  # gone already, or there never was a folder for it
            part.unlink()
