"""Text to token ids, in Rust: a word-level tokenizer of our own, and the tokenizers of pretrained encoders.

Each is one standard `tokenizer.json` of the Hugging Face `tokenizers` library, so that any of its bindings opens what
we save. Splitting and lookup run there, outside Python's lock; splitting words in Python is several times slower and
was the bottleneck of the classic notebooks. Input is text that `sentiment.text.normalize` returned.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import Regex
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer

from sentiment.errors import BundleError, ConfigError, brief
from sentiment.models.config import Truncation
from sentiment.text import EMOJI_SEQUENCE, URL, USER
from sentiment.untrusted import MAX_TEXT_BYTES, panics_are_errors, parse_tokenizer, read_file

UNK, PAD = "<unk>", "<pad>"
UNK_ID, PAD_ID = 0, 1

_LETTER = r"[\p{L}\p{M}\p{N}]"
_ALONE = rf"(?!{_LETTER})"
# Eyes, nose, mouth. A mouth that is a letter or digit must end the word: ":d" is an emoticon, ":done" is not.
_EMOTICON = (
    rf"[<>]?[:;=]['^-]?(?:\)+|\(+|\]+|\[+|/+|\\+|\|+|\*+|[@$}}{{]|(?:d+|p+|o+|s|x|3+){_ALONE})"
    r"|\([-']?[:;=]"  # (: and (-:
    rf"|[-^><.;ot0xu]_+[-^><.;ot0xu]{_ALONE}|\^[.-]?\^|\\[om]/"  # -_-  t_t  ^^  \o/
    r"|</?3+"
)
# Tried from the top at each place; white space matches none and is dropped. Nothing here can backtrack over more than
# one word, and each word is read a fixed number of times: a megabyte of anything takes linear time. (?>...) gives
# back nothing it took. The tokenizers of bundles hold it: a new one must accept the old one too (`from_json`).
_PATTERN = "|".join(
    (
        rf"{URL}|{USER}",
        rf"[ot0xu]_+[ot0xu]{_ALONE}",  # the only emoticons that begin like a word
        rf"can(?=not{_ALONE})|o'clock{_ALONE}|y'all{_ALONE}",
        r"(?>\p{N}+)(?:[.,:]\p{N}+)+",  # 1,000.50 and 10:30; "2nd" is a word
        EMOJI_SEQUENCE,  # before words: the keycap 1⃣ begins with a digit
        rf"(?>{_LETTER}+)(?!'t{_ALONE})",  # almost every word ends here
        rf"n't{_ALONE}",
        rf"{_LETTER}+?(?=n't{_ALONE})",  # ca|n't, do|n't
        rf"{_LETTER}+",
        rf"'(?:s|m|d|t|re|ve|ll){_ALONE}",
        _EMOTICON,
        r"(\S)\1*",  # "!!", "..." and whatever else there is
    )
)

# Texts handed to Rust at once while training: large enough to hide the crossing, small enough to stream.
_TRAINING_BATCH = 4096
_WORDS_EXPECTED = f"expected a word-level tokenizer.json with {UNK} = {UNK_ID} and {PAD} = {PAD_ID}"

_ENCODER_MODELS = ("WordPiece", "BPE", "Unigram")
_ENCODER_EXPECTED = (
    f"expected an encoder's tokenizer.json ({', '.join(_ENCODER_MODELS)}) as a bundle has it, with its padding"
)
# As the library writes it.
_PADDING = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}


class Tokenizer(ABC):
    """A tokenizer that is one `tokenizer.json`. Immutable, so threads may share it; picklable.

    Attributes:
        vocabulary_size: One more than the largest id: the rows that an embedding must have at least.
        num_special_tokens: Tokens around every text.
        pad_id: The id that fills up short rows; no text encodes to it.
        unk_id: The id of what the vocabulary can't express.
    """

    vocabulary_size: int
    num_special_tokens: int
    pad_id: int
    unk_id: int

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a `tokenizer.json` that `save` wrote; BundleError if it is missing, damaged or of another kind."""
        try:
            text = read_file(Path(path), MAX_TEXT_BYTES).decode()
        except UnicodeDecodeError as error:
            raise BundleError(
                f"tokenizer {path}: can't be read (not UTF-8); train or export the model again"
            ) from error
        return cls.from_json(text, source=str(path))

    @classmethod
    @abstractmethod
    def from_json(cls, text: str, source: str = "JSON text") -> Self:
        """Rebuild a tokenizer from `to_json`, as a worker does; `source` is for the messages of BundleErrors."""

    @abstractmethod
    def to_json(self) -> str:
        """The whole tokenizer as text."""

    def save(self, path: str | Path) -> None:
        """Write a standard `tokenizer.json`, the same bytes for the same tokenizer."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        return type(self).from_json, (self.to_json(),)

    @abstractmethod
    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Map normalized texts to ids, in parallel over the batch unless `TOKENIZERS_PARALLELISM=false`.

        Args:
            texts: Normalized texts.
            max_length: Tokens to keep of each text, special ones included; all by default.

        Returns:
            Ids of each text with the special tokens around it, such as [CLS] and [SEP]; only those for an empty text.
        """


@contextmanager
def _bundle_errors(source: str, expected: str) -> Iterator[None]:
    """Turn whatever the library raises for a damaged file (nothing narrow, and panics) into a BundleError."""
    try:
        with panics_are_errors():
            yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"tokenizer {source}: damaged or not a tokenizer ({brief(error)}); {expected}") from error


class WordTokenizer(Tokenizer):
    """Splits text into words and maps the frequent ones to ids; callers use `train`, `load` or `from_json`.

    The words are those of GloVe and the Penn Treebank, so that pretrained vectors find them: lower case, "don't" is
    "do" + "n't", "i'm" is "i" + "'m". Emoticons and emoji stay whole, for in a tweet they often are the sentiment.

    Attributes:
        tokens: The words in the order of their ids, with `<unk>` and `<pad>`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.tokens: list[str] = sorted(ids, key=ids.__getitem__)
        self.vocabulary_size, self.num_special_tokens = len(ids), 0
        self.unk_id, self.pad_id = UNK_ID, PAD_ID

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int = 25_000, min_frequency: int = 1) -> WordTokenizer:
        """Learn the vocabulary: the most frequent words of `texts`, ties in alphabetical order.

        Args:
            texts: Normalized texts; read once, never all in memory.
            vocabulary_size: Words at most; `<unk>` (0) and `<pad>` (1) come on top, as in torchtext.
            min_frequency: Rarer words are left out.
        """
        assert not isinstance(texts, str), "texts must be an iterable of texts, not one text"
        learner = _assemble({UNK: UNK_ID, PAD: PAD_ID})
        trainer = WordLevelTrainer(
            vocab_size=vocabulary_size + 2,
            min_frequency=min_frequency,
            show_progress=False,
            special_tokens=[UNK, PAD],
        )
        iterator = iter(texts)
        batches = iter(lambda: list(itertools.islice(iterator, _TRAINING_BATCH)), [])
        learner.train_from_iterator(batches, trainer)
        # A fresh one, because the trainer also registers its special tokens to be found in text: a tweet that says
        # "<pad>" would then be masked.
        return cls(_assemble(learner.get_vocab()))

    @classmethod
    def from_json(cls, text: str, source: str = "JSON text") -> Self:
        """As `Tokenizer.from_json`; all but the vocabulary must be as `train` makes it."""
        with _bundle_errors(source, _WORDS_EXPECTED):
            document = parse_tokenizer(text, patterns=(_PATTERN,))
            kind, ids = document["model"]["type"], document["model"]["vocab"]
            if kind != "WordLevel" or ids.get(UNK) != UNK_ID or ids.get(PAD) != PAD_ID:
                raise BundleError(f"tokenizer {source}: a {kind} tokenizer that is not ours; {_WORDS_EXPECTED}")
            # Only the vocabulary of the file is used.
            tokenizer = _assemble(ids)
            if document | {"model": {**document["model"], "vocab": {}}} != json.loads(_assemble({}).to_str()):
                raise BundleError(f"tokenizer {source}: splits texts in another way than ours; {_WORDS_EXPECTED}")
        if sorted(ids.values()) != list(range(len(ids))):
            raise BundleError(f"tokenizer {source}: its ids are not 0 to {len(ids) - 1}, each once; {_WORDS_EXPECTED}")
        return cls(tokenizer)

    def to_json(self) -> str:
        """The whole tokenizer as text."""
        return str(self._tokenizer.to_str())

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """As `Tokenizer.encode`; no special tokens, so an empty text has no ids."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        # Cut here and not in Rust: `enable_truncation` changes the shared object and fails while a thread encodes.
        return [encoding.ids[:max_length] for encoding in encodings]

    def split(self, text: str) -> list[str]:
        """The words of one normalized text, known or not; for people and tests."""
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]


def _assemble(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = Lowercase()
    # "removed" + invert: keep the matches, drop what lies between.
    tokenizer.pre_tokenizer = Split(Regex(_PATTERN), behavior="removed", invert=True)
    return tokenizer


class EncoderTokenizer(Tokenizer):
    """Splits text as a pretrained encoder expects it (WordPiece, BPE or Unigram).

    Texts are data: a tweet that says "[SEP]" or "<s>" gets the ids of those characters. The library alone would give it
    the special token, with which it could end its own text, mask the rest of it or fake a second one.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, pad_id: int, unk_id: int) -> None:
        """Wraps a tokenizer whose padding is set; callers use `from_pretrained`, `load` or `from_json`."""
        self._json = str(tokenizer.to_str())
        self.pad_id, self.unk_id = pad_id, unk_id
        tokenizer.no_padding()
        letter = tokenizer.encode("a")
        first, last = letter.special_tokens_mask.index(0), letter.special_tokens_mask[::-1].index(0)
        self._prefix, self._suffix = letter.ids[:first], letter.ids[len(letter.ids) - last :]
        self.num_special_tokens = len(self._prefix) + len(self._suffix)
        # Special tokens in a text are text. The JSON doesn't hold this setting.
        tokenizer.encode_special_tokens = True
        # Yet a Unigram model has them among its pieces and finds "<s>" by itself: what no text may say.
        special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._reserved = (special - {unk_id}) | {pad_id, *self._prefix, *self._suffix}
        self._tokenizer = tokenizer
        self.vocabulary_size = max(*tokenizer.get_vocab().values(), *self._reserved, unk_id) + 1

    @classmethod
    def from_pretrained(cls, path: Path) -> EncoderTokenizer:
        """Take the tokenizer out of a checkpoint, without the limits on length and the padding it was saved with.

        Args:
            path: A directory as `save_pretrained` writes it; `sentiment.models.encoders.find_encoder` gives it.

        Raises:
            BundleError: A tokenizer file can't be read, or isn't harmless.
            ConfigError: The directory holds no tokenizer, or none with a fast version and a padding token.
        """
        from transformers import AutoTokenizer

        fix = "give the folder of an encoder with its tokenizer.json, or vocab.txt and tokenizer_config.json"
        for file in path.glob("tokenizer*.json"):  # A config may name any of them.
            if file.name != "tokenizer_config.json":
                _parse_encoder(read_file(file, MAX_TEXT_BYTES).decode("utf-8", "replace"), source=str(file))
        try:
            # Without trust_remote_code=False it would ask on the terminal whether to run a checkpoint's code.
            wrapper: Any = AutoTokenizer.from_pretrained(
                path, local_files_only=True, use_fast=True, trust_remote_code=False
            )
        except Exception as error:  # anything, from the tokenizer's own constructor too
            raise ConfigError(f"no tokenizer in {path} ({brief(error)}); {fix}") from error
        tokenizer = getattr(wrapper, "backend_tokenizer", None)
        if not isinstance(tokenizer, tokenizers.Tokenizer):
            kind = type(wrapper).__name__
            raise ConfigError(f"the tokenizer in {path}, {kind}, has no fast version with a tokenizer.json; {fix}")
        # Without a vocabulary transformers makes a tokenizer that knows the special tokens only.
        if tokenizer.get_vocab_size() <= len(tokenizer.get_added_tokens_decoder()):
            raise ConfigError(f"the tokenizer in {path} has no vocabulary; {fix}")
        if wrapper.pad_token_id is None:
            raise ConfigError(f"the tokenizer in {path} has no padding token, so it isn't an encoder's; {fix}")
        tokenizer.no_truncation()
        # The one place in a tokenizer.json that says which token pads.
        tokenizer.enable_padding(pad_id=wrapper.pad_token_id, pad_token=wrapper.pad_token)
        return cls.from_json(str(tokenizer.to_str()), source=f"in {path}")

    @classmethod
    def from_json(cls, text: str, source: str = "JSON text") -> Self:
        """As `Tokenizer.from_json`: limits on length are dropped, and of the padding only its token counts."""
        document = _parse_encoder(text, source)
        model, padding = document["model"], document.get("padding")
        if model["type"] not in _ENCODER_MODELS or padding is None:
            without = " without padding" if padding is None else ""
            raise BundleError(f"tokenizer {source}: a {model['type']} tokenizer{without}; {_ENCODER_EXPECTED}")
        with _bundle_errors(source, _ENCODER_EXPECTED):
            pad_id = int(padding["pad_id"])
            # It may have been saved to pad each text to some length.
            padding = {**_PADDING, "pad_id": pad_id, "pad_token": str(padding["pad_token"])}
            document |= {"truncation": None, "padding": padding}
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
            if not tokenizer.encode("a", add_special_tokens=False).ids:
                raise BundleError(f"tokenizer {source}: makes no token of the letter a; {_ENCODER_EXPECTED}")
            # The padding's where a tokenizer has none. Byte-level BPE needs none, but RoBERTa's vocabulary keeps it.
            names = (name for name in (model.get("unk_token"), "[UNK]", "<unk>") if name is not None)
            ids = (model.get("unk_id"), *map(tokenizer.token_to_id, names), pad_id)
            return cls(tokenizer, pad_id, next(id_ for id_ in ids if isinstance(id_, int)))

    def to_json(self) -> str:
        """The whole tokenizer as text."""
        return self._json

    def encode(
        self, texts: Sequence[str], max_length: int | None = None, *, truncation: Truncation = "head"
    ) -> list[list[int]]:
        """As `Tokenizer.encode`; `truncation` says what a text that is too long keeps.

        "head" keeps its first tokens; "head+tail" a quarter of them from its start and three quarters from its end,
        that is 128 and 382 of BERT's 510. In long reviews the verdict is often at the end; best of those tried in Sun
        et al. 2019, "How to Fine-Tune BERT for Text Classification?".
        """
        assert not isinstance(texts, str), "texts must be a sequence of texts, not one text"
        assert max_length is None or max_length > self.num_special_tokens, f"max_length {max_length}: no room for text"
        limit = None if max_length is None else max_length - self.num_special_tokens
        # 128 of 510; all for the head where the limit is one token.
        head = limit if limit is None or truncation == "head" else (limit + 3) // 4
        # Added and cut here and not in Rust: there, limits are settings of the shared object, which fail while a
        # thread encodes.
        rows = []
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = encoding.ids
            if not self._reserved.isdisjoint(ids):
                ids = [id_ for id_ in ids if id_ not in self._reserved]
            if limit is not None and head is not None and len(ids) > limit:
                ids = ids[:head] + ids[len(ids) - (limit - head) :]
            rows.append(self._prefix + ids + self._suffix)
        return rows


def _parse_encoder(text: str, source: str) -> dict[str, Any]:
    try:
        return parse_tokenizer(text)
    except Exception as error:  # An untrusted document may have any form.
        raise BundleError(f"tokenizer {source}: {error}; {_ENCODER_EXPECTED}") from error
