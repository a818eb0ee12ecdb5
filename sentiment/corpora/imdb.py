"""IMDB's folder layout: `aclImdb/{train,test}/{pos,neg}/<id>_<rating>.txt`, one review a file, label from its folder.

Each file is one record of its own: row 0, line 1. See https://ai.stanford.edu/~amaas/data/sentiment/.
"""

from __future__ import annotations

from sentiment.corpora.columns import Head
from sentiment.corpora.inputs import IMDB_FILE
from sentiment.corpora.lines import MAX_LINE_BYTES, OVERLONG, UNREADABLE, decode, undecodable
from sentiment.corpora.streams import ByteSource, UnreadableError

SPLIT, ID, RATING, LABEL, TEXT = "split", "id", "rating", "label", "text"


def head() -> Head:
    """Columns of the layout."""
    columns = {SPLIT: "string", ID: "string", RATING: "int", LABEL: "string", TEXT: "string"}
    return Head(dict(columns), {TEXT})


def record(root: str, inner: str, encoding: str) -> tuple[dict[str, str | int | None] | None, str | None, bytes]:
    """Read one review.

    Args:
        root: URI of the file system, empty for the local disk.
        inner: Path of the text file.
        encoding: utf-8 or latin-1.

    Returns:
        (fields, reason, raw bytes): the fields are None where there is a reason.
    """
    source, raw = ByteSource(root, inner, None), bytearray()
    try:
        while len(raw) <= MAX_LINE_BYTES and (piece := source.read()):
            raw += piece
        text = decode(bytes(raw), encoding)
    except UnreadableError as failure:
        return None, UNREADABLE + str(failure), bytes(raw)
    except UnicodeDecodeError as error:
        return None, undecodable(error), bytes(raw)
    finally:
        source.close()
    if len(raw) > MAX_LINE_BYTES:
        return None, OVERLONG, bytes(raw)
    split, label, stem = IMDB_FILE.findall(inner)[0]
    rating = stem.rpartition("_")[2]
    number = int(rating) if rating.isascii() and rating.isdigit() and len(rating) < 4 else None
    return ({SPLIT: split, ID: stem, RATING: number, LABEL: label, TEXT: text}, None, bytes(raw))
