"""The words and sentence frames of the synthetic corpus, and how a tweet is put together from them.

A frame names its slots relative to the tweet's own label: `{adj}` takes an adjective of the tweet's polarity and
`{!adj}` one of the opposite polarity. So one frame serves both labels ("not {!adj}" gives "not awful" to a positive
tweet and "not great" to a negative one), its cue words (not, but, than) say nothing by themselves, and only the order
of the words tells the label. Slots without two sides (`{topic}`, `{name}`) are neutral.
"""

from __future__ import annotations

import random
import re

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
        rng: Where every choice comes from.
        label: 0 negative, 1 positive.

    Returns:
        The text, at most `LIMIT_CHARS` characters and a space, and its construct, a key of `FRAMES`.
    """
    construct = rng.choices(list(FRAMES), [share for share, _ in FRAMES.values()])[0]
    frame = _typed(rng, _filled(rng, rng.choice(FRAMES[construct][1]), label))
    sentences = [frame]
    for _ in range(rng.choices((0, 1, 2), (0.45, 0.45, 0.10))[0]):
        aside = _typed(rng, _filled(rng, rng.choice(ASIDES), label))
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


def _filled(rng: random.Random, frame: str, label: int) -> str:
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


def _typed(rng: random.Random, sentence: str) -> str:
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
