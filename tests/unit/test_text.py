"""What the normalizer keeps and folds, that it survives any input, and that its cost grows with the length alone."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment.text import fingerprint, normalize, split_of

EXAMPLES = [
    # HTML
    ("Tom &amp; Jerry", "Tom & Jerry"),
    ("I &lt;3 you", "I <3 you"),
    ("I &amp;lt;3 you", "I <3 you"),
    ("I &amp;amp;amp;lt;3 you", "I <3 you"),
    ("&quot;so&quot; it&#39;s &#x27;ok&#x27;", "\"so\" it's 'ok'"),
    ("cut at 140 &lt", "cut at 140 <"),
    ("this&not that", "this&not that"),  # HTML's own rules read a logical sign here and lose the "not"
    ("AT&T R&B a?b=1&copy=2", "AT&T R&B a?b=1&copy=2"),
    ("a&nbsp;&nbsp;b", "a b"),
    (f"x &#{'9' * 5000}; y", f"x &#{'9' * 5000}; y"),  # html.unescape raises ValueError
    ("bad.<br /><br />Really<BR>bad", "bad. Really bad"),
    ("2 < 3 <grin>", "2 < 3 <grin>"),
    # addresses and names
    ("see http://bit.ly/x?a=1&amp;b=2 now", "see <url> now"),
    ("(see https://t.co/dgixzfyqJp).", "(see <url>)."),
    ("HTTP://A.B/c and www.abc.net.au/x!", "<url> and <url>!"),
    ("awww.that is cute", "aww.that is cute"),
    ("RT @DoyleofDarkness: hi", "RT <user>: hi"),
    (".@LilyCollins and (@x_1)", ".<user> and (<user>)"),
    ("@a@b @ana\u0338: hi", "<user> <user>: hi"),
    ("write to bob@example.com", "write to bob@example.com"),
    ("meet @ 5 @_@", "meet @ 5 @_@"),
    ("<user> <url>", "<user> <url>"),
    # hashtags
    ("love #FallonTonight #80sHorror", "love FallonTonight 80sHorror"),
    ("#love#happy", "love happy"),
    ("# we are #1 in C#", "we are #1 in C#"),
    # repeats
    ("sooooo goooood!!!!!", "soo good!!"),
    ("good cool 1000000 $1,000,000", "good cool 1000000 $1,000,000"),
    ("hm.. well..... yes…", "hm... well... yes..."),
    (":)))) <3333 :DDDD", ":)) <3 :DD"),
    (":) :( :D ;-) :'( </3 >:(", ":) :( :D ;-) :'( </3 >:("),
    # Unicode
    ("“don’t” ‘x’ can`t it´s", "\"don't\" 'x' can't it's"),
    ("don\x92t \x93ok\x94", 'don\'t "ok"'),
    ("donâ\x80\x99t, cafÃ©", "don't, café"),  # UTF-8 that was read as Latin-1
    ("cafe\u0301 ½ ™", "café ½ ™"),
    ("a\x00b\u200bc\ufeffd\u00ade", "a bcde"),
    ("x\ud800y \ud83d\ude02", "x y 😂"),
    ("  a \t\n b\u3000c\u2028d ", "a b c d"),
    # emoji
    ("so good😂😂😂😂ha", "so good 😂 😂 ha"),
    ("I ❤️ you", "I ❤ you"),
    ("👍🏽ok👩🏽\u200d💻", "👍 ok 👩\u200d💻"),
    ("👩\u200d💻👩\u200d💻👩\u200d💻", "👩\u200d💻 👩\u200d💻"),
    ("go🇺🇸🇫🇷 1️⃣", "go 🇺🇸 🇫🇷 1⃣"),
    ("a\u200db", "ab"),
    # left as it is
    ("NOT Happy, not at all", "NOT Happy, not at all"),
    ("", ""),
    (" \u200b\x00 ", ""),
]


@pytest.mark.parametrize(("raw", "expected"), EXAMPLES)
def test_example(raw: str, expected: str) -> None:
    assert normalize(raw) == expected


@pytest.mark.parametrize(("raw", "expected"), EXAMPLES)
def test_a_second_pass_changes_nothing(raw: str, expected: str) -> None:
    assert normalize(expected) == expected


# Letters of every plane, the pieces that the rules look for, and what breaks careless code.
PIECES = st.sampled_from(
    ["&amp;", "&lt;", "&#", "#", "@", "@a", "http://", "www.", "<br />", "<3", "...", "'", "’", "😂", "\u200d", "️"]
    + [
        "👩🏽",
        "🇺🇸",
        "\x00",
        "\x92",
        "\ud83d",
        "\ude02",
        "\u0301",
        "\u0338",
        "\ufffe",
        "aaa",
        "1",
        " ",
        "\n",
        "not",
        "`",
    ]
)
ANY_TEXT = st.one_of(st.text(st.characters()), st.lists(PIECES | st.text(st.characters()), max_size=12).map("".join))


@settings(deadline=None)  # the machine may be busy; time is tested below
@given(ANY_TEXT)
def test_any_text_comes_out_clean(text: str) -> None:
    result = normalize(text)
    result.encode("utf-8")
    assert result == " ".join(result.split())
    assert not [c for c in result if c != "\u200d" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert unicodedata.is_normalized("NFC", result)


@settings(deadline=None)
@given(ANY_TEXT, st.sampled_from(["not", "no", "never", "don't", "can’t", "isn`t", "won\x92t", "didn&#39;t"]))
def test_negation_survives(text: str, negation: str) -> None:
    # Latin-1 text cannot hold ’, so a C1 control beside it is no mojibake; see `_mend_encoding`.
    plain = "".join(c for c in text if not 0x80 <= ord(c) < 0x100)
    expected = negation.replace("’", "'").replace("`", "'").replace("\x92", "'").replace("&#39;", "'")
    assert expected in normalize(f"{plain} {negation} good").split(" ")


@settings(deadline=None)
@given(ANY_TEXT)
def test_white_space_and_case_share_a_fingerprint(text: str) -> None:
    result = normalize(text)
    assert fingerprint(normalize(f"  {result.replace(' ', chr(10) + ' ')}\t")) == fingerprint(normalize(result))
    assert fingerprint(result) == fingerprint(result.casefold())


def test_every_control_and_format_character_goes() -> None:
    wanted = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cf", "Cs")]
    assert not [c for c in wanted if {unicodedata.category(x) for x in normalize(f"a{c}b")} & {"Cc", "Cf", "Cs"}]


def test_no_combining_mark_is_a_word_character() -> None:
    # `_SYMBOLS` finds runs of marks by \W; a mark that were a letter would slip by.
    assert not [c for c in range(0x110000) if unicodedata.combining(chr(c)) and chr(c).isalnum()]


HOSTILE = {
    **{u: u for u in ("a", "9", "@", "&", "#", "<", "`", ".", " ", "\x00", "http://", "www.", "http://)", "&amp;")},
    **{u: u for u in ("&#9", "&x", "<br", "<3", "@a", "a@", "#1", "@_", "\x92", "\ud800")},
    "emoji": "😂",
    "two emoji": "😂😭",
    "flags": "🇺",
    "joined": "👩\u200d",
    "zalgo": "\u0301\u0323",
    "named entity": "&acute;",
}


def _growth(unit: str) -> float:
    """CPU time for four times the text over that for the text: about 4 if linear, 16 if quadratic."""

    def cost(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        times = []
        for _ in range(3):
            start = time.process_time()
            normalize(text)
            times.append(time.process_time() - start)
        return min(times)

    return cost(2**18) / cost(2**16)


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=map(ascii, HOSTILE))
def test_hostile_text_takes_linear_time(unit: str) -> None:
    # The best of three: a busy machine can spoil one measurement, but never make a quadratic one look linear.
    assert any(_growth(unit) < 8 for _ in range(3))


def test_fingerprints_are_the_same_everywhere() -> None:
    assert fingerprint("") == -5426141060434712860
    assert fingerprint("I don't like it :(") == 7112143112067283557
    assert fingerprint("café 😂 <user>") == 5098157928625673368


def test_fingerprint_fits_int64_and_tells_texts_apart() -> None:
    prints = {fingerprint(f"text {i}") for i in range(10_000)}
    assert len(prints) == 10_000
    assert min(prints) < 0 < max(prints)
    assert all(-(2**63) <= p < 2**63 for p in prints)


def test_splits_are_the_same_everywhere() -> None:
    drawn = "".join(str(split_of(fingerprint(f"text {i}"), 0.2, 0.2, seed=7)) for i in range(32))
    assert drawn == "00001000012100001211000001000010"


@pytest.mark.parametrize("seed", [0, 1, 42, -3])
def test_split_shares(seed: int) -> None:
    drawn = [split_of(fingerprint(f"text {i}"), 0.1, 0.2, seed) for i in range(20_000)]
    # Four standard deviations of a share p over n draws: 4 * sqrt(p * (1 - p) / n) is 0.0113 for 0.2.
    for split, share in ((0, 0.7), (1, 0.1), (2, 0.2)):
        assert drawn.count(split) / len(drawn) == pytest.approx(share, abs=0.013)


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers())
def test_split_edges(value: int, seed: int) -> None:
    assert split_of(value, 0, 0, seed) == 0
    assert split_of(value, 1, 0, seed) == 1
    assert split_of(value, 0, 1, seed) == 2
    # Another validation share leaves the test set as it was.
    assert (split_of(value, 0.1, 0.3, seed) == 2) == (split_of(value, 0.5, 0.3, seed) == 2)


def test_seeds_deal_anew() -> None:
    a, b = ([split_of(fingerprint(f"text {i}"), 0.5, 0, seed) for i in range(10_000)] for seed in (0, 1))
    # Independent halves agree on half the texts; 0.02 is four standard deviations.
    assert sum(x == y for x, y in zip(a, b, strict=True)) / len(a) == pytest.approx(0.5, abs=0.02)
