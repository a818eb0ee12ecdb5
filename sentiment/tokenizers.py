"""Words to ids, in Rust: the word-level tokenizer of the recurrent and bag-of-words models.

A tokenizer is one standard `tokenizer.json` of the Hugging Face `tokenizers` library, so that any of its bindings
opens what we save. Splitting and lookup run there, outside Python's lock; splitting words in Python is several times
slower and was the bottleneck of the classic notebooks. Input is text that `sentiment.text.normalise` returned.

The words are those of GloVe and the Penn Treebank, so that pretrained vectors find them: lower case, "don't" is
"do" + "n't", "i'm" is "i" + "'m". Faces and emoji stay whole, for in a tweet they often are the sentiment.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import tokenizers
from tokenizers import Regex
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer

from sentiment.errors import BundleError
from sentiment.text import EMOJI_SEQUENCE, URL, USER

UNK, PAD = "<unk>", "<pad>"
UNK_ID, PAD_ID = 0, 1

_LETTER = r"[\p{L}\p{M}\p{N}]"
_ALONE = rf"(?!{_LETTER})"
# Eyes, nose, mouth. A mouth that is a letter or digit must end the word: ":d" is a face, ":done" is not.
_FACE = (
    rf"[<>]?[:;=]['^-]?(?:\)+|\(+|\]+|\[+|/+|\\+|\|+|\*+|[@$}}{{]|(?:d+|p+|o+|s|x|3+){_ALONE})"
    r"|\([-']?[:;=]"  # (: and (-:
    rf"|[-^><.;ot0xu]_+[-^><.;ot0xu]{_ALONE}|\^[.-]?\^|\\[om]/"  # -_-  t_t  ^^  \o/
    r"|</?3+"
)
# Tried from the top at each place; white space matches none and is dropped. Nothing here can backtrack over more than
# one word, and each word is read a fixed number of times: a megabyte of anything takes linear time. (?>...) gives
# back nothing it took.
_PATTERN = "|".join(
    (
        rf"{URL}|{USER}",
        rf"[ot0xu]_+[ot0xu]{_ALONE}",  # the only faces that begin like a word
        rf"can(?=not{_ALONE})|o'clock{_ALONE}|y'all{_ALONE}",
        r"(?>\p{N}+)(?:[.,:]\p{N}+)+",  # 1,000.50 and 10:30; "2nd" is a word
        EMOJI_SEQUENCE,  # before words: the keycap 1⃣ begins with a digit
        rf"(?>{_LETTER}+)(?!'t{_ALONE})",  # almost every word ends here
        rf"n't{_ALONE}",
        rf"{_LETTER}+?(?=n't{_ALONE})",  # ca|n't, do|n't
        rf"{_LETTER}+",
        rf"'(?:s|m|d|t|re|ve|ll){_ALONE}",
        _FACE,
        r"(\S)\1*",  # "!!", "..." and whatever else there is
    )
)

# Texts handed to Rust at once while training: large enough to hide the crossing, small enough to stream.
_TRAINING_BATCH = 4096


class Tokenizer(Protocol):
    """What bundles and models ask of a tokenizer of any kind."""

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Maps normalised texts to ids, cut to `max_length`."""
        ...

    def save(self, path: str | Path) -> None:
        """Writes a standard `tokenizer.json`."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Ids that it knows."""
        ...

    @property
    def num_special_tokens(self) -> int:
        """Tokens around every text."""
        ...

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows."""
        ...

    @property
    def unk_id(self) -> int:
        """The id of what it doesn't know."""
        ...


class SavedTokenizer(ABC):
    """What tokenizers that are one `tokenizer.json` have in common: how they are opened, saved and sent to workers."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Opens what `save` wrote.

        Args:
            path: A `tokenizer.json`.

        Returns:
            The tokenizer, equal to the one that was saved.

        Raises:
            BundleError: The file is missing, damaged, or of another kind of tokenizer.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise BundleError(f"tokenizer {path}: can't be read ({reason}); train or export the model again") from error
        return cls._parse(text, source=str(path))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuilds a tokenizer from `to_json`, as a worker does.

        Raises:
            BundleError: The text is no tokenizer of this kind.
        """
        return cls._parse(text, source="JSON text")

    @classmethod
    @abstractmethod
    def _parse(cls, text: str, source: str) -> Self: ...

    @abstractmethod
    def to_json(self) -> str:
        """Returns the whole tokenizer as text, for shipping to workers."""

    def save(self, path: str | Path) -> None:
        """Writes a standard `tokenizer.json`, the same bytes for the same tokenizer."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        return type(self).from_json, (self.to_json(),)


class WordTokenizer(SavedTokenizer):
    """Splits normalised text into words and maps the frequent ones to ids. Immutable, so threads may share it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Wraps a tokenizer of this kind; callers use `train`, `load` or `from_json`."""
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self._tokens = sorted(ids, key=ids.__getitem__)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int = 25_000, min_frequency: int = 1) -> WordTokenizer:
        """Learns the vocabulary: the most frequent words of `texts`, ties in alphabetical order.

        Args:
            texts: Normalised texts; read once, never all in memory.
            vocabulary_size: Words at most; `<unk>` and `<pad>` come on top, as in torchtext (25,002 entries).
            min_frequency: Rarer words are left out.

        Returns:
            A tokenizer in which `<unk>` is 0, `<pad>` is 1 and the other ids go from frequent to rare.
        """
        assert not isinstance(texts, str), "texts must be an iterable of texts, not one text"
        learner = _assemble({UNK: UNK_ID, PAD: PAD_ID})
        trainer = WordLevelTrainer(
            vocab_size=vocabulary_size + 2,
            min_frequency=min_frequency,
            show_progress=False,
            special_tokens=[UNK, PAD],
        )
        learner.train_from_iterator(_batches(texts, _TRAINING_BATCH), trainer)
        # A fresh one, because the trainer also registers its special tokens to be found in text: a tweet that says
        # "<pad>" would then be masked.
        return cls(_assemble(learner.get_vocab()))

    @classmethod
    def _parse(cls, text: str, source: str) -> Self:
        expected = f"expected a word-level tokenizer.json with {UNK} = {UNK_ID} and {PAD} = {PAD_ID}"
        try:
            kind = json.loads(text)["model"]["type"]
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the Rust side raises nothing narrower
            raise BundleError(f"tokenizer {source}: damaged or not a tokenizer; {expected}") from error
        ids = tokenizer.get_vocab()
        if kind != "WordLevel" or ids.get(UNK) != UNK_ID or ids.get(PAD) != PAD_ID:
            raise BundleError(f"tokenizer {source}: a {kind} tokenizer that is not ours; {expected}")
        if sorted(ids.values()) != list(range(len(ids))):
            raise BundleError(f"tokenizer {source}: its ids are not 0 to {len(ids) - 1}, each once; {expected}")
        return cls(tokenizer)

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Maps texts to ids, in parallel over the batch unless `TOKENIZERS_PARALLELISM=false` says otherwise.

        Args:
            texts: Normalised texts.
            max_length: Tokens to keep from the start of each text; all by default.

        Returns:
            A list of ids for each text; empty for an empty text, which the caller has to handle.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        # Cut here and not in Rust: `enable_truncation` changes the shared object and fails while a thread encodes.
        return [encoding.ids[:max_length] for encoding in encodings]

    def split(self, text: str) -> list[str]:
        """Returns the words of one normalised text as the tokenizer sees them, known or not; for people and tests."""
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]

    def to_json(self) -> str:
        """Returns the whole tokenizer as text, for shipping to workers."""
        return str(self._tokenizer.to_str())

    @property
    def tokens(self) -> list[str]:
        """The words in the order of their ids."""
        return self._tokens

    @property
    def vocabulary_size(self) -> int:
        """Entries with `<unk>` and `<pad>`: the rows of an embedding."""
        return len(self._tokens)

    @property
    def num_special_tokens(self) -> int:
        """Tokens around every text: none."""
        return 0

    @property
    def unk_id(self) -> int:
        """The id of every word outside the vocabulary."""
        return UNK_ID

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows; no text encodes to it."""
        return PAD_ID


def _assemble(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = Lowercase()
    # "removed" + invert: keep the matches, drop what lies between.
    tokenizer.pre_tokenizer = Split(Regex(_PATTERN), behavior="removed", invert=True)
    return tokenizer


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
