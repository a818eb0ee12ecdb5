"""Words to ids for pretrained encoders: each one's own fast tokenizer (WordPiece, BPE or Unigram), in batch.

It has the surface of `sentiment.tokenizers.WordTokenizer` and is saved as one standard `tokenizer.json` too. Texts are
data here, through and through: a tweet that says "[SEP]" or "<s>" gets the ids of those characters, not of the special
token, with which it could end its own text, mask the rest of it or fake a second one. Left alone, the library gives it
just that. Input is text that `sentiment.text.normalise` returned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from sentiment.errors import BundleError, ConfigError, brief
from sentiment.shapes import Truncation
from sentiment.tokenizers import SavedTokenizer

_KINDS = ("WordPiece", "BPE", "Unigram")


class EncoderTokenizer(SavedTokenizer):
    """Splits normalised text as a pretrained encoder expects it. Immutable, so threads may share it."""

    def __init__(self, tokenizer: Tokenizer, pad_id: int, unk_id: int) -> None:
        """Wraps a tokenizer whose padding is set; callers use `from_pretrained`, `load` or `from_json`."""
        self._json = str(tokenizer.to_str())
        self._pad_id, self._unk_id = pad_id, unk_id
        tokenizer.no_padding()
        around = tokenizer.encode("a")
        first, last = around.special_tokens_mask.index(0), around.special_tokens_mask[::-1].index(0)
        self._prefix, self._suffix = around.ids[:first], around.ids[len(around.ids) - last :]
        # Special tokens in a text are text. The JSON doesn't hold this setting.
        tokenizer.encode_special_tokens = True
        # Yet a Unigram model has them among its pieces and finds "<s>" by itself: what no text may say.
        special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._reserved = (special - {self._unk_id}) | {self._pad_id, *self._prefix, *self._suffix}
        self._tokenizer = tokenizer
        self._size = max(tokenizer.get_vocab().values()) + 1

    @classmethod
    def from_pretrained(cls, path: Path) -> EncoderTokenizer:
        """Takes the tokenizer out of a checkpoint.

        Args:
            path: A folder as `save_pretrained` writes it; `sentiment.encoders.find_encoder` gives it.

        Returns:
            The tokenizer, without the limits on length and the padding that it may have been saved with.

        Raises:
            ConfigError: The folder holds no tokenizer, or none with a fast version and a padding token.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415  (takes seconds, and only training needs it)

        fix = "give the folder of an encoder with its tokenizer.json, or vocab.txt and tokenizer_config.json"
        try:
            # Without trust_remote_code=False it would ask on the terminal whether to run a checkpoint's code.
            whole: Any = AutoTokenizer.from_pretrained(
                path, local_files_only=True, use_fast=True, trust_remote_code=False
            )
        except Exception as error:  # anything, from the tokenizer's own constructor too
            raise ConfigError(f"no tokenizer in {path} ({brief(error)}); {fix}") from error
        tokenizer = getattr(whole, "backend_tokenizer", None)
        if not isinstance(tokenizer, Tokenizer):
            kind = type(whole).__name__
            raise ConfigError(f"the tokenizer in {path}, {kind}, has no fast version with a tokenizer.json; {fix}")
        # Without a vocabulary transformers makes a tokenizer that knows the special tokens only.
        if tokenizer.get_vocab_size() <= len(tokenizer.get_added_tokens_decoder()):
            raise ConfigError(f"the tokenizer in {path} has no vocabulary; {fix}")
        if whole.pad_token_id is None:
            raise ConfigError(f"the tokenizer in {path} has no padding token, so it isn't an encoder's; {fix}")
        tokenizer.no_truncation()
        # The one place in a tokenizer.json that says which token pads.
        tokenizer.enable_padding(pad_id=whole.pad_token_id, pad_token=whole.pad_token)
        return cls._parse(str(tokenizer.to_str()), source=f"in {path}")

    @classmethod
    def _parse(cls, text: str, source: str) -> Self:
        expected = f"expected an encoder's tokenizer.json ({', '.join(_KINDS)}) as a bundle has it, with its padding"
        try:
            document = json.loads(text)
            model, padding, kind = document["model"], document["padding"], document["model"]["type"]
            pad_id = None if padding is None else int(padding["pad_id"])
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the Rust side raises nothing narrower
            raise BundleError(f"tokenizer {source}: damaged or not a tokenizer; {expected}") from error
        if kind not in _KINDS or pad_id is None:
            without = " without padding" if pad_id is None else ""
            raise BundleError(f"tokenizer {source}: a {kind} tokenizer{without}; {expected}")
        tokenizer.no_truncation()
        if not tokenizer.encode("a", add_special_tokens=False).ids:
            raise BundleError(f"tokenizer {source}: makes no token of the letter a; {expected}")
        return cls(tokenizer, pad_id, _unk_id(tokenizer, model, pad_id))

    def encode(
        self, texts: Sequence[str], max_length: int | None = None, *, truncation: Truncation = "head"
    ) -> list[list[int]]:
        """Maps texts to ids, in parallel over the batch unless `TOKENIZERS_PARALLELISM=false` says otherwise.

        Args:
            texts: Normalised texts.
            max_length: Tokens at most, special ones included; as many as there are by default.
            truncation: What a text that is too long keeps: "head", its first tokens; "head+tail", a quarter of them
                from its start and three quarters from its end, that is 128 and 382 of BERT's 510. In long reviews the
                verdict is often at the end; best of those tried in Sun et al. 2019, "How to Fine-Tune BERT for Text
                Classification?".

        Returns:
            A list of ids for each text with the special tokens around it, such as [CLS] and [SEP]; only those for an
            empty text.
        """
        assert not isinstance(texts, str), "texts must be a sequence of texts, not one text"
        assert max_length is None or max_length > self.num_special_tokens, f"max_length {max_length}: no room for text"
        room = None if max_length is None else max_length - self.num_special_tokens
        # 128 of 510; all for the head where there is room for one token only.
        head = room if room is None or truncation == "head" else (room + 3) // 4
        # Added and cut here and not in Rust: there, limits are settings of the shared object, which fail while a
        # thread encodes.
        rows = []
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = encoding.ids
            if not self._reserved.isdisjoint(ids):
                ids = [id_ for id_ in ids if id_ not in self._reserved]
            if room is not None and head is not None and len(ids) > room:
                ids = ids[:head] + ids[len(ids) - (room - head) :]
            rows.append(self._prefix + ids + self._suffix)
        return rows

    def to_json(self) -> str:
        """Returns the whole tokenizer as text, for shipping to workers."""
        return self._json

    @property
    def num_special_tokens(self) -> int:
        """Tokens around every text."""
        return len(self._prefix) + len(self._suffix)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id: the rows that an encoder's embedding must have at least."""
        return self._size

    @property
    def unk_id(self) -> int:
        """The id of what the vocabulary can't express; the padding's where a tokenizer has none, as it needs none."""
        return self._unk_id

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows; no text encodes to it."""
        return self._pad_id


def _unk_id(tokenizer: Tokenizer, model: dict[str, Any], otherwise: int) -> int:
    if isinstance(model.get("unk_id"), int):  # Unigram
        return int(model["unk_id"])
    # Byte-level BPE has no use for one, but RoBERTa's vocabulary keeps it.
    for token in (model.get("unk_token"), "[UNK]", "<unk>"):
        if token is not None and (found := tokenizer.token_to_id(token)) is not None:
            return int(found)
    return otherwise
