"""A made-up tweet corpus, so that `make demo` shows the whole pipeline to someone who has no data.

Two files come out of one seeded generator: a labeled one in the exact form of Sentiment140
(`training.1600000.processed.noemoticon.csv`: latin-1, no header, six quoted fields, negatives first) and an unlabeled
archive of JSON lines, as collected from an API, with bad rows in it. Both are the same bytes for the same seed.

A tweet is a sentence frame among decorations. A frame names its slots relative to the tweet's own label: `{adj}` takes
an adjective of the tweet's polarity and `{!adj}` one of the opposite polarity. So one frame serves both labels ("not
{!adj}" gives "not awful" to a positive tweet and "not great" to a negative one), its cue words (not, but, than) say
nothing by themselves, and only the order of the words tells the label: a bag of words stays far below a model that
reads in order. Slots without two sides (`{topic}`, `{name}`) are neutral. Every frame has one reading, and a stated
share of the labels is flipped afterwards, so the best accuracy any model can reach is known: 1 - flip_share. What a
model falls short of it is the model's own, and a result above it means that something leaks.
"""

from __future__ import annotations

import gzip
import html
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from sentiment.errors import ConfigError, DataError
from sentiment.schema import NEGATIVE, POSITIVE

LIMIT_CHARS = 140  # a tweet's length in 2009, counted before HTML escaping


def _phrases(listed: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in listed.split("|"))


# Slot -> (negative phrases, positive phrases), so a label (0 or 1) is the index. No phrase stands on both sides: the
# label must be certain from the text, or the stated bound would be wrong.
POLAR: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "adj": (
        _phrases("awful|terrible|horrible|boring|rubbish|bad|lame|ugly|useless|dull"),
        _phrases("great|good|brilliant|lovely|amazing|awesome|fantastic|beautiful|fun|perfect"),
    ),
    "happy": (_phrases("sad|gutted|upset|annoyed|miserable"), _phrases("happy|thrilled|glad|delighted|excited")),
    "love": (_phrases("hate|dislike|dread"), _phrases("love|like|enjoy")),
    "loved": (_phrases("hated|disliked|dreaded"), _phrases("loved|liked|enjoyed")),
    "thing": (_phrases("a mess|a disaster|a letdown|a nightmare"), _phrases("a treat|a triumph|a masterpiece|a dream")),
    "cheer": (_phrases("let me down|bore me|ruin my day"), _phrases("cheer me up|delight me|make my day")),
    "better": (
        _phrases("worse|way worse|so much worse|a lot worse|even worse"),
        _phrases("better|way better|so much better|a lot better|even better"),
    ),
    "face": (
        _phrases(":(|:'(|:-(|D:|\U0001f622|\U0001f621|\U0001f494|\U0001f44e"),
        _phrases(":)|:D|:-)|<3|\U0001f60d|\U0001f60a|\u2764|\U0001f44d"),
    ),
}

# Slot -> neutral phrases. None may lean to a side, or a bag of words would find a hint in it. The few letters outside
# ASCII (é, ñ, £) are there to show at once when the file is read as UTF-8 instead of latin-1.
NEUTRAL: dict[str, tuple[str, ...]] = {
    "noun": _phrases(
        """exam|phone|laptop|album|concert|coffee|breakfast|lunch|dinner|homework|essay|haircut|gym session|
        bus ride|flight|train ride|hotel|café|sandwich|pizza|burger|curry|soup|cake|chocolate|ice cream|tea|
        movie|trailer|sequel|season finale|episode|tv show|book|novel|comic|podcast|radio show|song|remix|video|
        playlist|gig|festival|party|wedding|barbecue|picnic|beach trip|holiday|camping trip|road trip|weather|
        sunset|garden|house|sofa|car|bike|job interview|meeting|presentation|shift|commute|speech|lecture|
        physics class|maths test|spanish lesson|piano lesson|dance class|football match|tennis final|
        basketball game|hockey game|race|workout|yoga class|swim|video game|level|update|app|website|browser|
        camera|keyboard|printer|server|headset|ipod|netbook|jacket|shoe shop|bookshop|library|museum|zoo visit|
        dentist visit|puppy|kitten|hamster|cat video|choir|play|musical|comedy night|quiz|poker night|sleepover|
        weekend|birthday|anniversary|reunion|phone call|date|town centre|market|recipe|omelette|salad|smoothie|
        crème brûlée|piñata|£5 lunch deal|theme park|rollercoaster|waterslide|painting class|photo shoot|
        newsletter|blog post|quiche|screenplay|ringtone|spreadsheet|timetable"""
    ),
    "det": _phrases("the|my|this|that|our|the new|today's|tonight's|last night's|the whole|his|her|the old|your"),
    "deg": _phrases("||||really|so|so|very|pretty|totally|quite|absolutely"),
    "ndeg": _phrases("||||really|that|all that|very|so|even|remotely"),  # degrees that follow a "not"
    "part": _phrases(
        """start|ending|first half|middle|queue|price|wait|service|sound|traffic|seating|food|crowd|manual|opening|
        last hour|menu|parking|lighting|colour|layout|intro"""
    ),
    # "new/old": which of the two is the later one, so that "new was better than old" has one reading.
    "pair": _phrases(
        """today/yesterday|tonight/last night|this week/last week|this month/last month|this year/last year|
        this morning/last night|the new one/the old one|the new version/the old version|
        the new place/the old place|the new season/the first season|the sequel/the first one|
        the remake/the original|this round/the last round"""
    ),
    "name": _phrases(
        """amy|ben|carla|dan|ella|femi|grace|hugo|isla|jack|kate|liam|maria|nina|omar|priya|quinn|rosa|sam|tom|uma|
        vik|wendy|yusuf|zoe|mum|dad|my sister|my brother|gran|my roommate|my boss|the neighbour|aunt jo|coach|
        andré|chloé"""
    ),
    "place": _phrases(
        """work|school|london|the mall|town|the airport|leeds|boston|the beach|the office|campus|austin|the park|
        manila|the station|chicago|the lake|oslo|the studio|toronto|sydney|the gym|cork|seattle|the library|
        são paulo"""
    ),
    "time": _phrases("2am|4am|6am|7:30|noon|half past nine|3pm|5 o'clock|10pm|11:45|midnight|8 in the morning"),
    "day": _phrases("monday|tuesday|wednesday|thursday|friday|saturday|sunday|the weekend|next week|in june|tomorrow"),
    "do": _phrases(
        """watching tv|making dinner|doing laundry|reading|on the bus|packing|typing this|walking home|
        playing chess|waiting for a train|drinking tea|feeding the cat|fixing the shelf|writing code|
        checking my mail|on hold"""
    ),
    "title": _phrases(
        """paper moons|seven doors|north of here|the long tuesday|glass harbour|red kites|hello antarctica|
        static summer|the ninth floor|marble & oak|rivers at night|five past four|tin robots|small maps"""
    ),
    "open": _phrases("ok|so|well|hmm|right|oh|hey|wow|omg|um|haha|lol|update:|honestly|fyi|alright|btw|seriously|man"),
    "mild": _phrases(
        """\U0001f602|\U0001f605|\U0001f440|\U0001f937|\U0001f914|\U0001f644|:P|;)|xx|lol|haha|:o|\U0001f62e|
        \u2615|\U0001f3b5|\U0001f4f1|=P|:S"""
    ),
    "handle": _phrases("pixel|moss|kite|river|tango|comet|fox|maple|echo|otter|nova|basil|pepper|domino|rocket|lemon"),
    "tag": _phrases("fb|musicmonday|followfriday|justsaying|random|nowplaying|tv|travel|food|tech|life|omg|news|work"),
}

# Asides with no leaning, before or after the frame.
ASIDES = _phrases(
    """just got back from {place}|on my way to {place}|{do} with {name}|{do} now|at {place} until {time}|
    it's {time} and i'm still up|off to {place} {day}|back at {place} {day}|listening to "{title}" again|
    {name} & i are {do}|going to {place} with {name} {day}|up since {time}|waiting for {name} at {place}|
    put "{title}" on|more on that {day}|told {name} all about it|not sure where {name} went|
    {name} was there too|that was {time} at {place}|anyone else at {place}?|but first, {do}|
    {day} at {time}, {place}|not at {place} yet|what's everyone doing {day}?|tweeting from {place}|
    don't know when {name} gets here"""
)

# Construct -> (share of the tweets, frames). The shares are tuned: a bag of words gets `plain` and `double` right,
# `negation` wrong and half of the rest, about 74 % of the shown labels (pairs of words 84 %), while a BiLSTM comes
# within 3 points of the bound in 3 epochs over 16,000 rows. Few sentiment words and many plain tweets are what make
# it that quick: polarity must be learned before its reversal can be.
FRAMES: dict[str, tuple[float, tuple[str, ...]]] = {
    "plain": (
        0.66,
        _phrases(
            """{topic} was {deg} {adj}|{topic} is {deg} {adj}, i really {love} it|{loved} {topic}, so {adj}|
            feeling {deg} {happy} about {topic}|{topic} is {thing}|{topic} was such {thing}, {deg} {adj}|
            what {thing} {topic} was|so {happy} with {topic}, it's {adj}|i'm {deg} {happy}, {topic} was {adj}|
            how {adj} is {topic}|{name} and i {loved} {topic}|{topic} is going to {cheer}|i {love} {topic}|
            {topic} always manages to {cheer}|why is {topic} so {adj}|can't believe how {adj} {topic} was|
            not gonna lie, {topic} was {adj}|not only {adj} but {deg} {adj} too, {topic}|
            never seen {name} so {happy} as with {topic}|no doubt about it, {topic} is {adj} and i {love} it|
            the {part} of {topic} was {deg} {adj}|but seriously, {topic} is {adj}|
            {name} says {topic} is {adj} and i'm {happy} too|i thought {topic} would be {adj} and it was|
            {topic} was {better} than last time|i {love} {topic} more than anything, it's {thing}|
            {adj} {part}, {adj} {part}: {topic} was {thing}"""
        ),
    ),
    "negation": (
        0.15,
        _phrases(
            """{topic} was not {ndeg} {!adj}|{topic} wasn't {ndeg} {!adj}|{topic} isn't {ndeg} {!adj}|
            i don't {!love} {topic}, it's not {!adj}|i didn't {!love} {topic} at all|
            nothing {!adj} about {topic}|i never {!loved} {topic}|{topic} was anything but {!adj}|
            {topic} is far from {!adj}|can't say i {!loved} {topic}|not {ndeg} {!happy} with {topic}|
            i'm not {ndeg} {!happy} about {topic}|{topic} wasn't {!adj} and the {part} wasn't {!adj}|
            not {!adj}, not {!adj}, that's {topic}|{topic} is not {!thing}|{topic} didn't {!cheer}|
            {topic} never manages to {!cheer}|{topic} was not {!thing} and i didn't {!love} it"""
        ),
    ),
    "double": (
        0.02,
        _phrases(
            """{topic} never fails to {cheer}|can't say i didn't {love} {topic}|{topic} doesn't fail to {cheer}|
            never say {topic} isn't {adj}"""
        ),
    ),
    "contrast": (
        0.09,
        _phrases(
            """{!adj} start but i {loved} {topic}|{loved} {topic} even though the {part} was {!adj}|
            {!loved} the {part} but {topic} was {adj}|{topic} was {adj} despite the {!adj} {part}|
            the {part} was {deg} {!adj} but {topic} was {deg} {adj}|{topic} started {!adj} but ended {adj}|
            even though the {part} was {!adj}, {topic} was {adj}|despite the {!adj} {part} i {loved} {topic}|
            {!adj} {part}, yes, but i {love} {topic}|{topic} is {adj}, even though i {!loved} the {part}|
            {name} was {!happy} but i'm {happy} with {topic}|{topic} went from {!adj} to {adj}"""
        ),
    ),
    "expectation": (
        0.05,
        _phrases(
            """thought {topic} would be {!adj}, it was {adj}|expected {!thing}, got {thing}: {topic}|
            {name} said {topic} was {!adj} but i {loved} it|
            was told {topic} is {!adj}, turns out it's {deg} {adj}|{topic} was {adj} when i expected {!thing}|
            who said {topic} was {!adj}? it's {adj}|everyone says {topic} is {!adj}, i say it's {adj}|
            hoped to {!love} {topic}, ended up with {thing}|
            {topic} was {adj}, and i was sure it would be {!adj}|i was {!happy} about {topic} until it got {adj}"""
        ),
    ),
    "comparison": (
        0.03,
        _phrases(
            """{new} was {better} than {old}|{old} was {!better} than {new}|
            {adj} instead of {!adj}, that's {topic}|{topic} was more {adj} than {!adj}|
            used to {!love} {topic}, now i {love} it|{topic} is {adj} now, it was {!adj} before|
            {topic} was {!adj} last year, {adj} this year"""
        ),
    ),
}

_SLOT = re.compile(r"\{(!?)(\w+)\}")
# "a awful mess" -> "an awful mess"; but "a useless one" begins with a consonant sound.
_ARTICLE = re.compile(r"\ba (?=[aeio]|u(?!s|ni))")
_STRETCH = re.compile(r"\b(so|really|now|way|very|today|tonight|going)\b", re.IGNORECASE)


def compose(rng: random.Random, label: int) -> tuple[str, str]:
    """Make one tweet's text: a frame that carries the label, among decorations that don't.

    Args:
        label: 0 negative, 1 positive.

    Returns:
        The text, at most `LIMIT_CHARS` characters and a space, and its construct, a key of `FRAMES`.
    """
    construct = rng.choices(list(FRAMES), [share for share, _ in FRAMES.values()])[0]
    frame = _type(rng, _fill(rng, rng.choice(FRAMES[construct][1]), label))
    sentences = [frame]
    for _ in range(rng.choices((0, 1, 2), (0.45, 0.45, 0.10))[0]):
        aside = _type(rng, _fill(rng, rng.choice(ASIDES), label))
        sentences.insert(rng.randrange(len(sentences) + 1), aside)
    before = ["@" + screen_name(rng)] if rng.random() < 0.4 else []
    if rng.random() < 0.25:
        before.append(rng.choice(NEUTRAL["open"]))
    # A face with a leaning only where the words alone tell the label: elsewhere it would tell it without them.
    leaning = construct == "plain" and rng.random() < 0.5
    after = [rng.choice(POLAR["face"][label] if leaning else NEUTRAL["mild"])] if rng.random() < 0.35 else []
    if rng.random() < 0.10:
        after.append("#" + rng.choice(NEUTRAL["tag"]))
    if rng.random() < 0.08:
        after.append(_link(rng))
    text = " ".join([*before, *sentences, *after])
    if len(text) > LIMIT_CHARS:  # about 1 in 100
        text = frame
    # Many real rows end in a space: the emoticon that gave them their label was cut off there.
    return text + " " if rng.random() < 0.3 else text, construct


def screen_name(rng: random.Random) -> str:
    """Make a user's screen name, ASCII letters, digits and underscores."""
    first, second = rng.sample(NEUTRAL["handle"], 2)
    number = rng.randrange(1000)
    return rng.choice((f"{first}{number}", f"{first}_{second}", f"the{first}{number}", f"{first}{second}{number % 10}"))


def _fill(rng: random.Random, frame: str, label: int) -> str:
    new, old = rng.choice(NEUTRAL["pair"]).split("/")

    def phrase(slot: re.Match[str]) -> str:
        opposite, kind = slot.groups()
        if kind in POLAR:
            return rng.choice(POLAR[kind][1 - label if opposite else label])
        if kind == "topic":
            return f"{rng.choice(NEUTRAL['det'])} {rng.choice(NEUTRAL['noun'])}"
        if kind in ("new", "old"):
            return new if kind == "new" else old
        return rng.choice(NEUTRAL[kind])

    return _ARTICLE.sub("an ", " ".join(_SLOT.sub(phrase, frame).split()))


def _type(rng: random.Random, sentence: str) -> str:
    """Type a sentence the way people do: capitals or not, a stretched word, a dropped apostrophe, a stop or not."""
    if rng.random() < 0.35:
        sentence = re.sub(r"\bi\b", "I", sentence[0].upper() + sentence[1:])
    if rng.random() < 0.30:
        sentence = _STRETCH.sub(lambda word: word[0] + word[0][-1] * rng.randint(2, 6), sentence, count=1)
    if rng.random() < 0.08:
        sentence = sentence.replace("n't", "nt")
    return sentence if sentence.endswith("?") else sentence + rng.choice(("", ".", ".", ".", "!", "...", "!!", ","))


def _link(rng: random.Random) -> str:
    code = "".join(rng.choices("abcdefghijkmnpqrstuvwxyz23456789", k=5))
    return rng.choice(("http://bit.ly/", "http://tinyurl.com/", "http://twitpic.com/", "www.example.com/")) + code


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
        shown_label: The label that is written out: `label`, flipped in a share of the rows.
        text: As a reader sees it: Unicode with emoji, no HTML entities.
        user: The screen name, without the at sign.
        construct: Which kind of sentence carries the label: a key of `FRAMES`.
    """

    label: int
    shown_label: int
    text: str
    user: str
    construct: str


@dataclass(frozen=True)
class CorpusSummary:
    """Rows of a labeled file: all, by the label that they show, and those whose label contradicts the text.

    `best_possible_accuracy` is that of a model that reads every text rightly, `1 - flipped / rows`; on rows held out
    from the file, it is `1 - flip_share` in expectation.
    """

    rows: int
    negatives: int
    positives: int
    flipped: int
    best_possible_accuracy: float


@dataclass(frozen=True)
class ArchiveSummary:
    """Lines of an archive: all, and the bad ones by reason (of `BAD_REASONS`, those that occur)."""

    rows: int
    bad: dict[str, int]


def tweets(rows: int, seed: int = 1, flip_share: float = 0.05) -> Iterator[Tweet]:
    """Make tweets, the two labels equally likely.

    The texts depend on the seed alone: fewer rows give the beginning of the same sequence, and another flip share other
    shown labels under the same texts.

    Args:
        rows: How many, at least 1.
        flip_share: Probability that a tweet's shown label is flipped, in [0, 0.5).

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
    """Write a labeled corpus in the form of Sentiment140: all negatives, then all positives, each half in time order.

    The tweets are made twice, once for each half, so memory does not grow with the rows.

    Args:
        path: The CSV file; its folder is made if needed, and an older file is replaced only when the new one is whole.
        rows: How many, at least 1.
        flip_share: Probability that a label is flipped, in [0, 0.5).

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
    """Write an unlabeled archive: JSON lines with `id_str`, `created_at`, `user` and `text`, 1 in 100 of them bad.

    The texts are as an API gives them: UTF-8 with emoji as they are, and `&amp;`, `&lt;`, `&gt;`. The 51st row is bad,
    the 151st, and so on, so 551 rows have one for each reason.

    Args:
        path: The file; a name ending in `.gz` is written through gzip. Replaced only when the new one is whole.
        rows: How many lines, at least 1.
        seed: Which sequence; the labeled corpus's own would give its texts again.
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
