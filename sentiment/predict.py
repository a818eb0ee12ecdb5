"""Label texts with a trained bundle: the texts given, or each line of standard input.

  sentiment predict "I love this" "not my day"
  sentiment predict --json "bad start but I loved it"
  cat tweets.txt | sentiment predict --model runs/model/bundle > labels.tsv
  sentiment predict -- "-_-"                    # after --, a text may begin with a dash

Each text becomes one line on stdout, in order: label, probability of that label and the text, separated by tabs; or
with --json one object with text, label, score, p_positive and model_id. A text with nothing to read in it gets "-" for
label and score (--json: null, and the reason). If the model knows fewer than half of the words of a text that was given
or typed, stderr says so. Standard input is UTF-8, of any length: a pipe is answered 1,024 lines at a time, a terminal
line by line. Whole archives are for `sentiment score`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from sentiment.cli import Parser, print_lines
from sentiment.errors import BundleError, ConfigError, DataError, ResourceError
from sentiment.observability.log import run_command
from sentiment.observability.status import status_line
from sentiment.settings import Precision
from sentiment.storage.uris import is_uri
from sentiment.text import NO_TEXT

if TYPE_CHECKING:
    from sentiment.predictor import Prediction, Predictor

DEFAULT_MODEL = "runs/demo/model/bundle"  # what `sentiment demo` writes
_CHUNK_LINES = 1024
# A chunk of long texts ends earlier, so that memory doesn't grow with the length of the lines.
_CHUNK_CHARACTERS = 1 << 20
# Whatever would end a line, begin a column or control the terminal: the texts are untrusted.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_log = logging.getLogger(__name__)


class Line(NamedTuple):
    """One text to label; `reason` says why it could not be read completely, None if it could."""

    text: str
    reason: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one command line; returns the exit code. `argv` is the process's if not given."""

    def work() -> int:
        try:
            _label(parse(sys.argv[1:] if argv is None else argv))
        except BrokenPipeError:
            pass  # `| head` has seen enough: nothing went wrong.
        except KeyboardInterrupt:
            return 130
        return 0

    return run_command("predict", work)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn a command line into options; texts and flags may be mixed."""
    parser = Parser("sentiment predict", str(__doc__))
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label; none: the lines of standard input")
    about = f"bundle (folder or URI; default: $SENTIMENT_MODEL, else {DEFAULT_MODEL})"
    parser.add_argument("--model", metavar="PATH", help=about)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of columns")
    choices, about = typing.get_args(Precision), "number format; auto: bf16 where the hardware has it (default: auto)"
    parser.add_argument("--precision", choices=choices, default="auto", help=about)
    about = "run on a GPU, or on the CPU (default: a GPU if there is one)"
    parser.add_argument("--use-gpu", action=argparse.BooleanOptionalAction, help=about)
    # Cut at "--", because argparse parses mixed arguments twice and forgets on the second pass where it stood.
    end = argv.index("--") if "--" in argv else len(argv)
    options, rest = parser.parse_known_intermixed_args(list(argv[:end]))
    if rest and not rest[0].startswith("--"):  # Likely a text, and errors don't repeat those.
        raise ConfigError("an argument that begins with a dash is no flag; put -- before texts that begin so")
    parser.refuse_rest(rest)
    options.texts += argv[end + 1 :]
    return options


def _label(options: argparse.Namespace) -> None:
    """Print the labels of the texts that the options give; BrokenPipeError: nobody reads them any more."""
    model = str(options.model or os.environ.get("SENTIMENT_MODEL") or DEFAULT_MODEL)
    if not is_uri(model) and not Path(model).is_dir():  # Told before torch is imported, which takes seconds.
        raise BundleError(f"no bundle at {model}: run `sentiment demo`, which trains one, or give --model PATH")
    if not options.texts and sys.stdin is None:
        raise DataError("there is no standard input: give texts, or pipe some in")
    is_typed = not options.texts and sys.stdin.isatty()
    if is_typed:
        _log.info("type a text and press Enter; Ctrl-D ends")
    with status_line(f"loading {model}"):
        import torch

        from sentiment.predictor import Predictor

        if options.use_gpu and not torch.cuda.is_available():
            raise ResourceError("--use-gpu: torch finds no CUDA GPU here; leave the flag out to run on the CPU")
        predictor = Predictor.load(model, use_gpu=options.use_gpu, precision=options.precision)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # An emoji must not stop a Latin-1 terminal.
    # Python passes on bytes that aren't UTF-8 as half surrogate pairs, which nothing can print.
    given = (Line(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")) for text in options.texts)
    lines = given if options.texts else _lines_of(sys.stdin.buffer)
    for chunk in chunks(lines, 1 if is_typed else _CHUNK_LINES):
        print_lines(_answers(predictor, chunk, as_json=options.json))
        if options.texts or is_typed:
            _warn_of_unknown_words(predictor, chunk)


def _lines_of(file: BinaryIO) -> Iterator[Line]:
    """Read lines as they come; one too long to hold is cut and not scored, as `sentiment score` does."""
    from sentiment.data.text_records import iter_lines

    def read(size: int) -> bytes:
        try:
            return file.readline(size)  # Not `read`, which would wait for more than the one line a person typed.
        except OSError as error:
            raise DataError(f"standard input can't be read: {error.strerror}") from error

    for _, raws, problem in iter_lines(read):
        for raw in raws:
            # Windows puts a mark at the beginning of files, and files are joined by `cat`.
            yield Line(raw.removesuffix(b"\r").decode("utf-8-sig", "replace"), problem)


def chunks(lines: Iterable[Line], max_lines: int) -> Iterator[list[Line]]:
    """Group texts to be scored together: the same groups however fast they arrive, so that scores repeat."""
    chunk: list[Line] = []
    characters = 0
    for line in lines:
        chunk.append(line)
        characters += len(line.text)
        if len(chunk) == max_lines or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _answers(predictor: Predictor, chunk: Sequence[Line], *, as_json: bool) -> Iterator[str]:
    """Score a chunk; one line for each text."""
    predictions = iter(predictor.predict([text for text, reason in chunk if reason is None]))
    for text, reason in chunk:
        prediction = next(predictions) if reason is None else None
        if as_json:
            yield _json_line(text, prediction, reason, predictor.model_id)
        else:
            columns = ("-", "-") if prediction is None else (prediction.label, f"{prediction.score:.4f}")
            yield "\t".join((*columns, _CONTROL.sub(" ", text)))


def _json_line(text: str, prediction: Prediction | None, reason: str | None, model_id: str) -> str:
    """The object of one text, in ASCII: no terminal's encoding and no line separator in a text can break it."""
    from sentiment.schema import MODEL_ID, P_POSITIVE, REASON, SCORE, SCORE_LABEL, TEXT

    record = {
        TEXT: text,
        SCORE_LABEL: prediction and prediction.label,
        SCORE: prediction and prediction.score,
        P_POSITIVE: prediction and prediction.p_positive,
        MODEL_ID: model_id,
    }
    return json.dumps(record if prediction is not None else {**record, REASON: reason or NO_TEXT})


def _warn_of_unknown_words(predictor: Predictor, chunk: Sequence[Line]) -> None:
    """Say which texts the model can hardly read: a demo's knows a few hundred words, and guesses the rest."""
    # Numbered by their lines in the answer: texts don't go to stderr, which often is a log.
    for number, (known, words) in enumerate(predictor.known_words([text for text, _ in chunk]) or (), start=1):
        if 2 * known < words:
            which = "this text" if len(chunk) == 1 else f"text {number}"
            _log.warning("the model knows %d of %d words of %s", known, words, which)
