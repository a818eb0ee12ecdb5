"""The one normalizer, so that a model never meets a spelling in production that training wrote differently.

Training, scoring and serving all read text through `normalize`. It folds what carries no sentiment (addresses, names,
escapes, invisible characters, the tenth "o" of "sooooo") and keeps what does: case, negations, stop words,
punctuation, emoticons and emoji. Every step is one linear pass, because texts are untrusted; most steps are
skipped by a cheap substring test, because a tweet rarely needs them and there are 1.6 million. Only the standard
library, so that any worker can import it at no cost.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

URL, USER = "<url>", "<user>"
# Why a text gets no answer, wherever it came in: nothing is left of it that the model reads (`Predictor.has_text`).
NO_TEXT = "no text"

# The inside of a character class, shared with the tokenizer: what counts as one emoji. Symbols that plain text uses
# as punctuation (arrows, (c), TM) are left out. Skin tones are in the range but `normalize` drops them first.
EMOJI = (
    "\u203c\u2049\u231a\u231b\u2328\u23cf\u23e9-\u23fa\u24c2\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf"
    "\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\U0001f000-\U0001faff"
)
# Two regional letters are a flag; a joiner glues emoji into one picture (woman + ZWJ + laptop).
EMOJI_SEQUENCE = f"(?:[\U0001f1e6-\U0001f1ff]{{2}}|[{EMOJI}](?:\u200d[{EMOJI}])*|[0-9#*]\u20e3)"

# --- HTML -----------------------------------------------------------------------------------------------------------
# Twitter escapes a text once and archives escape the escape ("&amp;lt;3"). Peeling until nothing changes would take
# one pass per level, quadratic on "&amp;amp;amp;...", so any stack of escaped ampersands is folded in one go ...
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0?38|#[xX]26);)+")
# ... and what is left is unescaped once. The semicolon is required, save for the four that a cut at 140 characters
# leaves open: HTML's own rules would read "this&not" as a logical sign and lose the negation. Digits are bounded
# because `html.unescape` raises on a number of more than 4,300 of them.
_ENTITY = re.compile(
    r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});|&(?:amp|quot|lt|gt)(?![A-Za-z0-9;])"
)
_LINE_BREAK = re.compile(r"</?(?:br|p|hr|div|li) {0,2}/?>", re.IGNORECASE)

# --- Unicode --------------------------------------------------------------------------------------------------------
_SURROGATE = re.compile("[\ud800-\udfff]")
_C1 = re.compile("[\x80-\x9f]")
# Windows-1252 punctuation read as Latin-1: IMDB has it, and "don\x92t" must stay a negation.
_WINDOWS_1252 = {0x85: "\u2026", 0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"', 0x96: "\u2013", 0x97: "\u2014"}
# Control characters, the replacement characters and noncharacters part words.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufff9-\uffff]")
# Format characters (Cf) but the joiner, variation selectors, and skin tones: one word for one gesture, and the
# sentiment of a text must not hang on a skin color.
_INVISIBLE = re.compile(
    "[\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180b-\u180f\u200b\u200c\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\U0001f3fb-\U0001f3ff\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_STRAY_JOINER = re.compile(f"(?<![{EMOJI}])\u200d|\u200d(?![{EMOJI}])")
# Putting n combining marks into order costs n * n steps in `unicodedata.normalize`. Unicode's stream-safe form
# (UAX 15) allows 30 in a row; only longer stretches of non-letters are looked at.
_MAX_MARKS = 30
_SYMBOLS = re.compile(rf"[^\w\x00-\x7f]{{{_MAX_MARKS + 1},}}")
_PUNCTUATION = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b\u2032\u02bc\uff07\xb4"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\xab\xbb\uff02"), '"'),
    0x2026: "...",
}
_CURLY = re.compile("[" + "".join(map(chr, _PUNCTUATION)) + "]")
_EMOJI_RUN = re.compile(rf"({EMOJI_SEQUENCE})(\1)?\1*")

# --- Tweets ---------------------------------------------------------------------------------------------------------
# The last character is not punctuation: in "(see http://a.b/c)." the address ends at "c".
_URL = re.compile(r"""(?:[hH][tT]{2}[pP][sS]?://|\b(?:[Ww]ww|WWW)\.)[^\s<>"]*[^\s<>"'`.,:;!?)\]}…]""")
# After a letter it is an e-mail address. At least one letter or digit, so that "@_@" stays an emoticon.
# Accents on the name go with it: left behind, U+0338 would turn the ">" of the token into another sign.
_MENTION = re.compile("(?<!\\w)@_*[^\\W_][\\w\u0300-\u036f]*(?:@[\\w\u0300-\u036f]+)*")
# "#FallonTonight" is a word and "#80s" too, "#1" is a rank and "C#" a language; a lone "#" says nothing.
_HASHTAG = re.compile(r"(?<!#)#+(?=\d*[^\W\d])|(?<!\S)#+(?!\S)")
_BACKQUOTE = re.compile(r"`+")
_DOTS = re.compile(r"\.{2,}")
_HEART = re.compile(r"<3{2,}")
_THRICE = re.compile(r"(.)\1\1")  # the cheap test: three times faster than the exact one below
_REPEAT = re.compile(r"([^\d.\s])\1{2,}")

_MASK = (1 << 64) - 1


def normalize(text: str) -> str:
    """The text as every model of this project reads it.

    HTML is unescaped and line-break tags become a space; addresses become `<url>` and mentions `<user>`; hashtags
    lose their "#"; three or more of one character become two (numbers stay, any run of dots becomes "..."); curly
    quotes become ASCII; emoji stand between spaces; invisible and control characters go; white space is collapsed.
    The result is in NFC. Not NFKC: that also rewrites what was meant as it stands ("½" to three signs, "™" to "TM",
    one Arabic ligature to eighteen letters) and lets a short text grow.

    Args:
        text: Any string, of any length; lone surrogates are allowed.

    Returns:
        One line that encodes to UTF-8; empty if nothing readable is left.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), _AMPERSANDS.sub("&", text))
    if not text.isascii():
        text = _fold_unicode(text)
    elif not text.isprintable():
        text = _CONTROL.sub(" ", text)
    if "<" in text:
        text = _HEART.sub("<3", _LINE_BREAK.sub(" ", text))
    if "://" in text or "ww." in text or "WW." in text:
        text = _URL.sub(URL, text)
    if "@" in text:
        text = _MENTION.sub(USER, text)
    if "#" in text:
        text = _HASHTAG.sub(" ", text)
    if "`" in text:
        text = _BACKQUOTE.sub("'", text)
    if ".." in text:
        text = _DOTS.sub("...", text)
    if _THRICE.search(text):
        text = _REPEAT.sub(r"\1\1", text)
    if not text.isascii():
        text = _EMOJI_RUN.sub(r" \1 \2 ", text)
    return " ".join(text.split())


def fingerprint(normalized: str) -> int:
    """A signed 64-bit hash of a normalized text, the same on any machine, in any process and for any case.

    It finds duplicates and chooses splits. Two different texts share a value with odds of about n² / 2⁶⁵ over n texts:
    1 in 14 million for the 1.6 million tweets of Sentiment140, 3 % for a billion, and the loss is one row taken for a
    duplicate.
    """
    digest = hashlib.blake2b(normalized.casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def split_of(fingerprint: int, validation_share: float, test_share: float, seed: int) -> int:
    """The split of a text, as an index into `schema.SPLITS`, by its fingerprint alone: duplicates share a split.

    Test takes the low end and validation the next stretch: changing the validation share leaves the test set as it
    was. Another seed assigns all texts anew. Shares are parts of all texts, 0 to 1; the rest is for training.
    """
    assert min(validation_share, test_share) >= 0, "a share can't be negative"
    assert validation_share + test_share <= 1, "validation and test can't take more than all"
    # The finalizer of SplitMix64: each bit of fingerprint and seed moves half the bits of the draw.
    draw = (fingerprint + (seed + 1) * 0x9E3779B97F4A7C15) & _MASK
    draw = ((draw ^ (draw >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    draw = ((draw ^ (draw >> 27)) * 0x94D049BB133111EB) & _MASK
    draw ^= draw >> 31
    if draw < test_share * 2**64:
        return 2
    return 1 if draw < (test_share + validation_share) * 2**64 else 0


def _fold_unicode(text: str) -> str:
    """The steps that plain ASCII never needs."""
    if _SURROGATE.search(text):
        # UTF-16 joins the halves of a pair that was split and replaces those that stand alone.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if _C1.search(text):
        text = _mend_encoding(text)
    text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))
    if "\u200d" in text:
        text = _STRAY_JOINER.sub("", text)
    text = unicodedata.normalize("NFC", _SYMBOLS.sub(_limit_marks, text))
    return _CURLY.sub(lambda match: _PUNCTUATION[ord(match[0])], text)


def _mend_encoding(text: str) -> str:
    r"""Sentiment140 holds UTF-8 that was read as Latin-1 ("donâ\x80\x99t"); real text has no C1 controls."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text.translate(_WINDOWS_1252)


def _limit_marks(symbols: re.Match[str]) -> str:
    kept, marks = [], 0
    for character in symbols[0]:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)
