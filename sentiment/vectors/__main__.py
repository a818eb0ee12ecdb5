"""Command line of the word vectors: `sentiment vectors COMMAND … --glove PATH_OR_NAME`.

The answer goes to stdout, as a table or with `--json` as one object. A user's mistake is one line on stderr and exit
code 2. Torch is imported after the command line has been understood.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from sentiment.errors import ConfigError
from sentiment.observability.log import run_command
from sentiment.observability.status import status_line

if TYPE_CHECKING:
    from sentiment.vectors.space import PretrainedVectors

PROGRAM = "sentiment vectors"
DEFAULT_SOURCE = "glove.6B.50d"
_FORMATTER = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
# What a command returns: the object for --json and the text for people.
Answer = tuple[dict[str, Any], str]

_ABOUT = """Ask pretrained word vectors (GloVe) about words.

examples:
  sentiment vectors nearest cat --glove glove.6B.50d.txt
  sentiment vectors nearest nurse -n 5 --metric euclid
  sentiment vectors similarity cat dog
  sentiment vectors analogy king man woman      # king is to man as ... is to woman: queen
  sentiment vectors midpoint happy sad
  sentiment vectors bias --words doctor nurse engineer --json
"""
_EPILOG = """vectors:
  --glove takes a file in GloVe's text format (also .gz), or a name such as glove.6B.100d or glove.twitter.27B.50d,
  which is downloaded once into ~/.cache/sentiment-at-scale/vectors. Without --glove: the environment variable
  SENTIMENT_GLOVE, or else glove.6B.50d (a download of 0.9 GB).

`COMMAND --help` shows the flags of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and answer; returns the exit code: 0, 2 for a user's mistake, 130 if interrupted."""

    def work() -> int:
        given = _parser().parse_args(argv)
        with status_line("loading PyTorch"):
            from sentiment.vectors.loading import load_vectors

        vectors = load_vectors(given.glove or os.environ.get("SENTIMENT_GLOVE") or DEFAULT_SOURCE)
        content, text = given.answer(vectors, given)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # "−" must not stop a Latin-1 terminal
        about = {"command": given.command, "vectors": vectors.name, "words": len(vectors), "dim": vectors.dim}
        sys.stdout.write((json.dumps({**about, **content}) if given.json else text) + "\n")
        return 0

    return run_command("vectors", work)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help explains its arguments")


def _parser() -> _Parser:
    parser = _Parser(prog=PROGRAM, description=_ABOUT, epilog=_EPILOG, formatter_class=_FORMATTER, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, about: str, example: str, answer: Callable[[PretrainedVectors, Any], Answer]) -> _Parser:
        command = commands.add_parser(
            name,
            help=about,
            description=f"{about}\n\nexample:\n  {PROGRAM} {name} {example}",
            formatter_class=_FORMATTER,
            allow_abbrev=False,
        )
        command.set_defaults(answer=answer)
        command.add_argument(
            "--glove", metavar="PATH_OR_NAME", help=f"vectors (default: $SENTIMENT_GLOVE, else {DEFAULT_SOURCE})"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
        return command

    nearest = add("nearest", "words nearest to a word", "cat -n 5 --metric euclid", _near)
    nearest.add_argument("word")
    similarity = add("similarity", "cosine and Euclidean distance of two words", "cat dog", _similarity)
    analogy = add("analogy", "words nearest to A − B + C, those three left out", "king man woman", _near)
    midpoint = add("midpoint", "words nearest to the mean of two, those left out", "happy sad", _near)
    for command, names in ((similarity, "ab"), (analogy, "abc"), (midpoint, "ab")):
        for name in names:
            command.add_argument(name, metavar=name.upper())
    bias = add("bias", "move words from man to woman and back, to see stereotypes", "--words doctor nurse", _bias)
    bias.add_argument("--words", nargs="+", metavar="WORD", help="words to probe (default: a dozen occupations)")
    for command, count in ((nearest, 10), (analogy, 10), (midpoint, 10), (bias, 5)):
        command.add_argument(
            "-n",
            "--count",
            type=_positive,
            default=count,
            metavar="N",
            help="nearest words to show (default: %(default)s)",
        )
        command.add_argument(
            "--metric", choices=("cosine", "euclid"), default="cosine", help="what near means (default: %(default)s)"
        )
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")
    return int(text)


def _near(vectors: PretrainedVectors, given: argparse.Namespace) -> Answer:
    """Answer of the commands that list near words."""
    query = [getattr(given, name) for name in ("word", *"abc") if name in given]
    found = getattr(vectors, given.command)(*query, given.count, given.metric)
    rows = [(near.word, near.cosine, near.distance) for near in found]
    title = {"nearest": "nearest to {}", "analogy": "nearest to {} − {} + {}", "midpoint": "between {} and {}"}
    content = {"query": query, "metric": given.metric, "neighbours": [asdict(near) for near in found]}
    return content, f"{title[given.command].format(*query)}\n\n{_table(('word', 'cosine', 'distance'), rows)}"


def _similarity(vectors: PretrainedVectors, given: argparse.Namespace) -> Answer:
    found = asdict(vectors.similarity(given.a, given.b))
    table = _table(("words", *found), [(f"{given.a} {given.b}", *found.values())])
    return {"query": [given.a, given.b], **found}, table


def _bias(vectors: PretrainedVectors, given: argparse.Namespace) -> Answer:
    from sentiment.vectors.space import OCCUPATIONS, bias_probe

    probe = bias_probe(vectors, given.words or OCCUPATIONS, count=given.count, metric=given.metric)
    first, second = probe.pair
    rows: list[tuple[str | float, ...]] = []
    for row in probe.rows:
        sides = (", ".join(near.word for near in side) for side in (row.toward_second, row.toward_first))
        rows.append((row.word, row.lean, *sides))
    parts = []
    if rows:
        parts.append(f"lean = cos(word, {second}) − cos(word, {first}); above 0: nearer to {second}")
        parts.append(_table(("word", "lean", f"word − {first} + {second}", f"word − {second} + {first}"), rows))
    if probe.missing:
        parts.append(f"no vector for: {', '.join(probe.missing)}")
    return {"metric": given.metric, **asdict(probe)}, "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Aligned columns: words to the left, numbers to the right."""
    cells = [[value if isinstance(value, str) else f"{value:.4f}" for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = ["<" if isinstance(value, str) else ">" for value in (rows[0] if rows else header)]
    lines = [
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, aligns, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
