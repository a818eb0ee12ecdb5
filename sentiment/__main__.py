"""Label texts with a trained bundle: the texts given, or each line of standard input.

  python -m sentiment "I love this" "not my day"
  python -m sentiment --json "bad start but I loved it"
  cat tweets.txt | python -m sentiment --model runs/model/bundle > labels.tsv
  python -m sentiment -- "-_-"                  # after --, a text may begin with a dash

Each text becomes one line on stdout, in order: label, probability of that label and the text, parted by tabs; or with
--json one object with text, label, score, p_positive and model_id. A text with nothing to read in it gets "-" for label
and score (--json: null, and the reason). Standard input is UTF-8, of any length: a pipe is answered 1,024 lines at a
time, a terminal line by line. Whole archives are for jobs/score.py.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from sentiment.config import unknown
from sentiment.errors import BundleError, ConfigError, DataError, ResourceError, SentimentError
from sentiment.settings import Precision
from sentiment.text import normalise
from sentiment.uris import is_uri

if TYPE_CHECKING:
    from sentiment.predictor import Prediction, Predictor

DEFAULT_MODEL = "runs/demo/model/bundle"  # what `make demo` writes
_CHUNK_LINES = 1024
# A chunk of long texts ends earlier, so that memory doesn't grow with the length of the lines.
_CHUNK_CHARACTERS = 1 << 20
# Whatever would end a line, begin a column or speak to the terminal: the texts come from strangers.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Text(NamedTuple):
    """One text and why it can't be scored, None for one that can."""

    text: str
    reason: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one command line.

    Args:
        argv: Arguments; those of the process if not given.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 for Ctrl-C.
    """
    try:
        _run(_parse(sys.argv[1:] if argv is None else argv))
    except SentimentError as error:
        print(f"sentiment: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0  # `| head` has seen enough: nothing went wrong.
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn a command line into options; texts and flags may be mixed."""
    parser = _Parser(
        prog="python -m sentiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label; none: the lines of standard input")
    parser.add_argument(
        "--model", metavar="PATH", help=f"bundle or its URI (default: $SENTIMENT_MODEL, else {DEFAULT_MODEL})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of columns")
    choices, about = typing.get_args(Precision), "auto: bf16 where the hardware has it (default: auto)"
    parser.add_argument("--precision", choices=choices, default="auto", help=about)
    about = "run on a GPU, or on the CPU (default: a GPU if there is one)"
    parser.add_argument("--use-gpu", action=argparse.BooleanOptionalAction, help=about)
    # Cut here, because argparse parses mixed arguments twice and forgets on the second pass where "--" stood.
    end = argv.index("--") if "--" in argv else len(argv)
    options, rest = parser.parse_known_intermixed_args(list(argv[:end]))
    if rest:
        flag = rest[0].split("=")[0]
        if not flag.startswith("--"):  # Likely a text, and errors don't repeat those.
            raise ConfigError("an argument that begins with a dash is no flag; put -- before texts that begin so")
        flags = ("--model", "--json", "--precision", "--use-gpu", "--no-use-gpu", "--help")
        raise unknown("flag", flag, flags, "python -m sentiment")
    options.texts += argv[end + 1 :]
    return options


def _run(options: argparse.Namespace) -> None:
    """Label what the options ask for.

    Raises:
        SentimentError: The bundle, standard input or standard output can't be used.
        BrokenPipeError: Nobody reads standard output any more.
    """
    model = _find_bundle(options.model)
    texts, chunk_lines = _given(options.texts), _CHUNK_LINES
    if not options.texts:
        if sys.stdin is None:
            raise DataError("there is no standard input: give texts, or pipe some in")
        texts = _lines_of(sys.stdin.buffer)
        if sys.stdin.isatty():
            chunk_lines = 1
            print("type a text and press Enter; Ctrl-D ends", file=sys.stderr)
    predictor = _load(model, options)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # An emoji must not stop a Latin-1 terminal.
    for chunk in _chunks(texts, chunk_lines):
        _write(_answers(predictor, chunk, as_json=options.json))


def _find_bundle(given: str | None) -> str:
    """Tell which bundle is meant, before torch is imported: a first call without one is answered at once."""
    path = str(given or os.environ.get("SENTIMENT_MODEL") or DEFAULT_MODEL)
    if not is_uri(path) and not Path(path).is_dir():
        raise BundleError(f"no bundle at {path}: run `make demo`, which trains one, or give --model PATH")
    return path


def _load(model: str, options: argparse.Namespace) -> Predictor:
    import torch

    from sentiment.predictor import Predictor

    if options.use_gpu and not torch.cuda.is_available():
        raise ResourceError("--use-gpu: torch finds no CUDA GPU here; leave the flag out to run on the CPU")
    return Predictor.load(model, use_gpu=options.use_gpu, precision=options.precision)


def _given(arguments: Iterable[str]) -> Iterator[_Text]:
    for argument in arguments:
        # Python hands on bytes that aren't UTF-8 as half surrogate pairs, which nothing can print.
        yield _judged(argument.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _lines_of(file: BinaryIO) -> Iterator[_Text]:
    """Read lines as they come; one too long to hold is cut and not scored, as jobs/score.py does."""
    from sentiment.corpora.lines import iter_lines

    def read(size: int) -> bytes:
        try:
            return file.readline(size)  # Not `read`, which would wait for more than the one line a person typed.
        except OSError as error:
            raise DataError(f"standard input can't be read: {error.strerror}") from error

    for lines in iter_lines(read):
        for raw in lines.raw:
            # Windows puts a mark at the beginning of files, and files are joined by `cat`.
            text = raw.removesuffix(b"\r").decode("utf-8-sig", "replace")
            yield _Text(text, lines.trouble) if lines.trouble else _judged(text)


def _judged(text: str) -> _Text:
    from sentiment.corpora.tables import NO_TEXT

    return _Text(text, None if normalise(text) else NO_TEXT)


def _chunks(texts: Iterable[_Text], most: int) -> Iterator[list[_Text]]:
    """Group texts to be scored together: the same groups however fast they arrive, so that scores repeat."""
    chunk: list[_Text] = []
    characters = 0
    for item in texts:
        chunk.append(item)
        characters += len(item.text)
        if len(chunk) == most or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _answers(predictor: Predictor, chunk: Sequence[_Text], *, as_json: bool) -> Iterator[str]:
    """Score a chunk; one line for each text."""
    predictions = iter(predictor.predict([text for text, reason in chunk if reason is None]))
    for text, reason in chunk:
        prediction = next(predictions) if reason is None else None
        if as_json:
            yield _as_json(text, prediction, reason, predictor.model_id)
        else:
            columns = ("-", "-") if prediction is None else (prediction.label, f"{prediction.score:.4f}")
            yield "\t".join((*columns, _CONTROL.sub(" ", text)))


def _as_json(text: str, prediction: Prediction | None, reason: str | None, model_id: str) -> str:
    """Make the object of one text, in ASCII: no terminal's encoding and no line separator in a text can break it."""
    from sentiment.schema import MODEL_ID, P_POSITIVE, REASON, SCORE, SCORE_LABEL, TEXT

    record = {
        TEXT: text,
        SCORE_LABEL: prediction and prediction.label,
        SCORE: prediction and prediction.score,
        P_POSITIVE: prediction and prediction.p_positive,
        MODEL_ID: model_id,
    }
    return json.dumps(record if reason is None else {**record, REASON: reason})


def _write(lines: Iterable[str]) -> None:
    """Print lines and push them out, so that whoever reads them sees each chunk when it is done."""
    try:
        print("\n".join(lines), flush=True)
    except OSError as error:
        # As Python's documentation has it: else the interpreter would flush what is left, and fail, on its way out.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise
        raise ResourceError(f"standard output can't be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
