"""Bundles from strangers end in one clear line: none hangs, fills the memory, aborts, runs code or answers NaN.

Each is signed by its own manifest, as somebody would who means it to be loaded.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from forging import FILES, edit_manifest, forge, sign
from safetensors.torch import load_file, save_file
from test_bert_bundle import write
from tokenizers import Tokenizer
from tokenizers.models import BPE

from sentiment.bundle import Bundle
from sentiment.errors import BundleError, ConfigError
from sentiment.models.encoders import find_encoder, load_encoder
from sentiment.predictor import Predictor
from sentiment.tokenizers import EncoderTokenizer
from sentiment.untrusted import _GPT2, _LINEAR, parse_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., Bundle]
Change = Callable[[dict[str, Any]], object]
BILLION = 10**9
MUTANTS = int(os.environ.get("MUTANTS", "60"))
WEIGHTS = "model.safetensors"


@pytest.fixture
def words(make_bundle: Make) -> Path:
    """A bundle of a model on words, to be spoilt."""
    return make_bundle().path


@pytest.fixture(scope="module")
def whole_bert(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bert") / "bundle", find_encoder(str(tiny_encoder)))[0].path


@pytest.fixture
def bert(whole_bert: Path, tmp_path: Path) -> Path:
    """A bundle with a pretrained encoder, to be spoilt."""
    return Path(shutil.copytree(whole_bert, tmp_path / "bert"))


def refused(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Predictor.load(path, use_gpu=False, precision="float32")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def reweigh(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path / WEIGHTS)
    change(weights)
    save_file(weights, path / WEIGHTS)
    sign(path, WEIGHTS)


# --- Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "folder", "circle"])
def test_what_is_no_file_is_never_opened(words: Path, name: str, kind: str) -> None:
    path = words / name
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "link to a device":
            (words / "between").symlink_to("/dev/zero")
            path.symlink_to("between")
        case "folder":
            path.mkdir()
        case "circle":
            path.symlink_to(name)
    refused(words, rf"{name} (can't be read|is a link|is missing)")


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(words: Path, name: str) -> None:
    (words / name).rename(words.parent / "outside")
    (words / name).symlink_to("../outside")
    refused(words, rf"{name} is a link to .*outside, out of the bundle")


def test_links_as_the_hubs_cache_has_them_are_followed(words: Path, tmp_path: Path) -> None:
    """`snapshot_download` gives a folder of links into another of the same repository."""
    (tmp_path / "repo/snapshots/main").mkdir(parents=True)
    shutil.move(words, tmp_path / "repo/blobs")
    for file in (tmp_path / "repo/blobs").iterdir():
        (tmp_path / "repo/snapshots/main" / file.name).symlink_to(f"../../blobs/{file.name}")
    assert Predictor.load(tmp_path / "repo/snapshots/main").predict(["good"])


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_many_gigabytes_is_not_read(words: Path, name: str) -> None:
    os.truncate(words / name, 9 << 30)  # It takes no room on the disk.
    refused(words, f"{name} can't be read: it has 9,663,676,416 bytes, more than")
    edit_manifest(words, lambda manifest: manifest["files"][name].update(bytes=9 << 30))
    refused(words, f"{name} has 9,663,676,416 bytes; accepted are up to")


def test_a_manifest_of_many_gigabytes_is_not_read(words: Path) -> None:
    os.truncate(words / "MANIFEST.json", 9 << 30)
    refused(words, r"MANIFEST\.json can't be read: it has 9,663,676,416 bytes")


@pytest.mark.parametrize("name", ["MANIFEST.json", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(words: Path, name: str, opening: str) -> None:
    (words / name).write_text(opening * 100_000)
    if name != "MANIFEST.json":
        sign(words, name)
    refused(words, rf"{name}\b")


@pytest.mark.parametrize(
    "name", ["tokenizer.json\0", "../tokenizer.json", "/etc/passwd", "", ".", "LICENSE", "x" * 10**5]
)
def test_a_manifest_lists_a_bundles_files_only(words: Path, name: str) -> None:
    edit_manifest(words, lambda manifest: manifest["files"].update({name: manifest["files"]["README.md"]}))
    refused(words, "which isn't a file of a bundle")


# --- Weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["embedding.weight", "rnn.bias_hh_l1_reverse", "fc.bias"])
def test_weights_that_are_no_numbers(words: Path, name: str, number: float) -> None:
    reweigh(words, lambda weights: weights[name].view(-1)[-1:].fill_(number))
    refused(words, rf"model\.safetensors: {name} holds NaN or infinite numbers")


def test_weights_whose_sums_are_infinite(words: Path) -> None:
    reweigh(words, lambda weights: [weight.fill_(3e38) for weight in weights.values()])
    refused(words, "gives a text no score but NaN or infinity")


def test_a_score_that_is_no_number_is_never_given(words: Path) -> None:
    """One word's vector is enough, and no trial of a few texts would find it."""
    sunny = json.loads((words / "tokenizer.json").read_text())["model"]["vocab"]["sunny"]

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            weight.fill_(3e38 if name == "fc.weight" else 1.0 if "weight_ih" in name else 0.0)
        weights["embedding.weight"][sunny] = 1000.0

    reweigh(words, spoil)
    predictor = Predictor.load(words, use_gpu=False, precision="float32")
    assert predictor.predict(["good day"])
    with pytest.raises(BundleError, match="no score but NaN or infinity"):
        predictor.predict(["good day", "sunny day"])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_of_another_number_format(words: Path, dtype: torch.dtype) -> None:
    reweigh(words, lambda weights: weights.update({"fc.bias": weights["fc.bias"].to(dtype)}))
    refused(words, r"weights don't fit config\.json: fc\.bias is \w+ \(1,\), not F32 \(1,\)")


def test_weights_too_many_and_too_few(words: Path) -> None:
    bias = load_file(words / WEIGHTS)["fc.bias"]
    reweigh(words, lambda weights: weights.pop("fc.bias"))
    refused(words, r"fc\.bias is nothing, not F32")
    reweigh(words, lambda weights: weights.update({"fc.bias": bias, "encoder.x" * 1000: bias + 1}))
    refused(words, r"encoder\.x.* is F32 \(1,\), not nothing of that name")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 50_000) + b"[" * 50_000,
        struct.pack("<Q", 2) + b"{}" + b"\0" * 100,
    ],
)
def test_a_head_of_weights_that_lies(words: Path, head: bytes) -> None:
    (words / WEIGHTS).write_bytes(head)
    sign(words, WEIGHTS)
    refused(words, r"model\.safetensors can't be read|weights don't fit")


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ("F32", [BILLION, BILLION], [0, 4])},
        {"a": ("F32", [1 << 62, 8], [0, 4])},
        {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [0, 4])},
        {"a": ("F32", [1], [4, 0])},
        {"a": ("F32", [1], [1 << 40, (1 << 40) + 4])},
        {"a": ("F32", [-1], [0, 4])},
        {"a": ("F128", [1], [0, 4])},
    ],
)
def test_tensors_that_are_not_where_the_head_says(words: Path, tensors: dict[str, Any]) -> None:
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in tensors.items()
    }
    head = json.dumps(entries).encode()
    (words / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 4)
    sign(words, WEIGHTS)
    refused(words, r"model\.safetensors can't be read")


# --- config.json --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vocabulary_size",
        "embedding_dim",
        "hidden_dim",
        "num_layers",
        "state_layers",
        "padded_length",
        "pad_id",
        "unk_id",
    ],
)
@pytest.mark.parametrize("value", [BILLION, 10**400, -1, 1.5])
def test_sizes_beyond_all_limits(words: Path, name: str, value: float) -> None:
    forge(words, "config.json", lambda config: config["model"].update({name: value}))
    refused(words, r"config\.json can't be read as BundleConfig")


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": BILLION},
        {"labels": ["POSITIVE", "NEGATIVE"]},
        {"labels": ["NEGATIVE"] * 10**4},
        {"recipe": "small\r\nSet-Cookie: a=b"},
        {"recipe": "../../small"},
        {"recipe": "x" * 10**5},
        {"model": {"kind": "bag", "hidden_dims": [BILLION]}},
        {"x" * 10**5: 1},
    ],
)
def test_other_settings_beyond_limits(words: Path, change: dict[str, Any]) -> None:
    forge(words, "config.json", lambda config: config.update(change))
    refused(words, r"config\.json can't be read as BundleConfig|model id")


@pytest.mark.parametrize("name", ["dropout", "word_dropout", "embedding_std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_shares_that_are_none(words: Path, name: str, value: float) -> None:
    forge(words, "config.json", lambda config: config["model"].update({name: value}))
    refused(words, r"config\.json can't be read as BundleConfig")


@pytest.mark.parametrize("change", [{"vocabulary_size": 1 << 20, "embedding_dim": 1 << 14}, {"hidden_dim": 1 << 14}])
def test_a_size_that_the_weights_do_not_have_is_never_made(words: Path, change: dict[str, int]) -> None:
    """Each within its limit, and yet 64 GB of word vectors or 13 GB of an LSTM."""
    forge(words, "config.json", lambda config: config["model"].update(change))
    refused(words, r"weights don't fit config\.json: (embedding|rnn)\.weight\w* is F32")


def test_rows_that_are_filled_up_count_as_such(make_bundle: Make) -> None:
    """A batch is cut by its tokens: 256 rows filled up to 16,384 would be 4 million."""
    shape: dict[str, Any] = {"cell": "rnn", "num_layers": 1, "bidirectional": False, "padded_length": 1 << 11}
    path = make_bundle(max_length=1 << 11, **shape).path
    predictor = Predictor.load(path, use_gpu=False, precision="float32")
    rows: list[int] = []
    predictor._model.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    assert len(predictor.predict(["good day"] * 10)) == 10
    assert max(rows) <= 8


# --- tokenizer.json -----------------------------------------------------------------------------------------------


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def normalizer(*parts: dict[str, Any]) -> Change:
    return lambda document: document.update(normalizer={"type": "Sequence", "normalizers": list(parts)})


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


DOUBLE = replace({"String": "a"}, "aa")
TOKENIZERS: dict[str, Change] = {
    "a huge replacement": normalizer(replace({"String": "a"}, "a" * 10**6)),
    "a replacement a hundred times": normalizer(*[DOUBLE] * 100),
    "a replacement thirty times": normalizer(*[DOUBLE] * 30),
    "a replacement in sequences": normalizer(*[{"type": "Sequence", "normalizers": [DOUBLE] * 10}] * 10),
    "a replacement of nothing": normalizer(replace({"String": ""}, "aaaaaaaa")),
    "a replacement of what may be nothing": normalizer(replace({"Regex": "a*"}, "aa")),
    "sequences in sequences": normalizer(nested(50)),
    "a pattern that backtracks": normalizer(replace({"Regex": "(a+)+$"}, "")),
    "a pattern in quadratic time": normalizer(replace({"Regex": "a+b"}, "")),
    "a pattern of gigabytes": normalizer(replace({"Regex": "((a{1,999}){1,999}){1,999}"}, "")),
    "a pattern that is broken": normalizer(replace({"Regex": "["}, "")),
    "no pattern": normalizer(replace({"Regexp": "a"}, "")),
    "a split that backtracks": lambda document: document.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    ),
    "bytes as letters thirty times": lambda document: document.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
            ]
            * 30,
        }
    ),
    "a prefix of a megabyte": normalizer({"type": "Prepend", "prepend": "a" * 10**6}),
    "a table of characters that isn't one": normalizer({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "an unknown normalizer": normalizer({"type": "Expand"}),
    "pieces of length 0": lambda document: document.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "a normalizer that is a number": lambda document: document.update(normalizer=5),
    "an unknown part": lambda document: document.update(code="import os"),
    "no model": lambda document: document.pop("model"),
    "a model of no kind": lambda document: document["model"].pop("type"),
    "an unknown model": lambda document: document["model"].update(type="Sandwich"),
    "a model whose kind is a list": lambda document: document["model"].update(type=["WordLevel"]),
    "pieces without scores": lambda document: document.update(model={"type": "Unigram", "vocab": [5]}),
    "an unknown setting": lambda document: document["model"].update(surprise=1),
    "vocabulary that is none": lambda document: document["model"].update(vocab=[["a", 0]]),
    "ids that are no numbers": lambda document: document["model"].update(vocab={"a": "b"}),
    "an id of billions": lambda document: document["model"]["vocab"].update(a=(1 << 32) - 1),
    "an added token's id of billions": lambda document: document.update(
        added_tokens=[{"id": (1 << 32) - 1, "content": "a"}]
    ),
    "too many added tokens": lambda document: document.update(added_tokens=[{"id": 1, "content": "a"}] * 10**5),
    "an added token of a megabyte": lambda document: document.update(added_tokens=[{"id": 1, "content": "a" * 10**6}]),
    "a decoder with a pattern": lambda document: document.update(decoder=replace({"Regex": "(a+)+"}, "")),
    "special tokens by the million": lambda document: document.update(
        post_processor={"type": "BertProcessing", "sep": ["a", 10**12], "cls": ["[CLS]" * 10**6, 1]}
    ),
    "a text a thousand times": lambda document: document.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000,
            "pair": [],
            "special_tokens": {},
        }
    ),
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("kind", ["words", "bert"])
def test_tokenizers_with_parts_that_take_for_ever(request: pytest.FixtureRequest, kind: str, change: Change) -> None:
    path = request.getfixturevalue(kind)
    forge(path, "tokenizer.json", change)
    refused(path, r"tokenizer .*tokenizer\.json: .*; expected")


WORDS: dict[str, Change] = {
    "padding to a billion": lambda document: document.update(
        padding={
            "strategy": {"Fixed": BILLION},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
    ),
    "truncation": lambda document: document.update(
        truncation={"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    ),
    "another normalizer": lambda document: document.update(normalizer={"type": "NFKD"}),
    "another splitter": lambda document: document.update(pre_tokenizer={"type": "Whitespace"}),
    "added tokens": lambda document: document.update(added_tokens=[{"id": 0, "content": "<unk>"}]),
}


@pytest.mark.parametrize("change", WORDS.values(), ids=WORDS)
def test_word_tokenizers_are_all_alike_but_for_their_words(words: Path, change: Change) -> None:
    forge(words, "tokenizer.json", change)
    refused(words, r"tokenizer\.json: splits texts in another way than ours")


def test_names_that_occur_twice(words: Path) -> None:
    """One parser takes the first, another the last: what is checked must be what is used."""
    path = words / "tokenizer.json"
    path.write_text('{"normalizer": {"type": "Lowercase"}, ' + path.read_text().lstrip()[1:])
    sign(words, path.name)
    refused(words, "occurs twice")


def test_more_words_than_the_model_has(words: Path) -> None:
    size = len(json.loads((words / "tokenizer.json").read_text())["model"]["vocab"])
    forge(words, "tokenizer.json", lambda document: document["model"]["vocab"].update(zebra=size))
    refused(words, f"knows {size + 1} words, the model of config.json {size}")


BERT: dict[str, tuple[Change, str]] = {
    "a long word in cubic time": (lambda d: d["model"].update(max_input_chars_per_word=BILLION), "max_input_chars"),
    "a long prefix": (lambda d: d["model"].update(continuing_subword_prefix="#" * 10**6), "out of limits"),
    "a special token's id": (
        lambda d: d["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**6]),
        "knows 1000001",
    ),
    "a thousand special tokens": (
        lambda d: d["post_processor"]["special_tokens"]["[CLS]"].update(ids=[2] * 1000),
        "limits",
    ),
    "more special tokens than room": (
        lambda d: d["post_processor"]["special_tokens"]["[CLS]"].update(ids=[2] * 30, tokens=["[CLS]"] * 30),
        "31 tokens stand around every text, max_length is 24",
    ),
    "another padding": (lambda d: d["padding"].update(pad_id=3), r"pad_id 3, config\.json 0"),
    "a padding beyond the vocabulary": (lambda d: d["padding"].update(pad_id=10**7), r"knows 10000001"),
    "a padding that is no number": (lambda d: d["padding"].update(pad_id="x"), "damaged or not"),
    "no padding": (lambda d: d.update(padding=None), "without padding"),
}


@pytest.mark.parametrize(("change", "message"), BERT.values(), ids=BERT)
def test_tokenizers_of_encoders(bert: Path, change: Change, message: str) -> None:
    forge(bert, "tokenizer.json", change)
    refused(bert, message)


def test_padding_of_an_encoders_tokenizer_pads_nothing(bert: Path) -> None:
    """It aborted the process; a published tokenizer has one of 128 or 512, which never counted either."""
    expected = Predictor.load(bert, use_gpu=False, precision="float32").predict(["good day"])
    forge(bert, "tokenizer.json", lambda document: document["padding"].update(strategy={"Fixed": BILLION}))
    assert Predictor.load(bert, use_gpu=False, precision="float32").predict(["good day"]) == expected


# --- The encoder of a bundle --------------------------------------------------------------------------------------

ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "a billion wide": ({"hidden_size": BILLION}, "hidden_size is 1000000000; accepted are up to"),
    "a billion layers": ({"num_hidden_layers": BILLION}, "num_hidden_layers is 1000000000; accepted are up to 128"),
    "a billion words": ({"vocab_size": BILLION}, r"config\.json can't be read as BundleConfig"),
    "no words": ({"vocab_size": None}, r"config\.json can't be read as BundleConfig"),
    "more layers": ({"num_hidden_layers": 100}, r"weights don't fit config\.json"),
    "wider than its weights": ({"hidden_size": 1 << 20}, r"weights don't fit config\.json"),
    "more words than its weights": ({"vocab_size": 1 << 20}, r"weights don't fit config\.json"),
    "positions by the million": ({"max_position_embeddings": 1 << 20}, r"weights don't fit config\.json"),
    "fewer positions than are read": ({"max_position_embeddings": 3}, "the encoder reads 3 tokens"),
    "no head": ({"num_attention_heads": 0}, "describes no model that can be made"),
    "heads that don't fit": ({"num_attention_heads": 3}, "describes no model that can be made"),
    "a negative width": ({"intermediate_size": -5}, "describes no model that can be made|don't fit"),
    "an infinite number": ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf"),
    "NaN": ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan|BundleConfig"),
    "roots of negative numbers": ({"layer_norm_eps": -1e5}, "gives a text no score but NaN"),
    "an unknown function": ({"hidden_act": "os.system"}, "describes no model that can be made"),
    "code of its own": ({"auto_map": {"AutoModel": "evil.Model"}}, r"own code \(auto_map\), which is never run"),
    "another kind": ({"model_type": "gpt2"}, "model_type is 'gpt2'; accepted are albert, bert"),
    "a kind that is a list": ({"model_type": ["bert"]}, "model_type is"),
    "a decoder": ({"is_decoder": True}, "describes no model|has a decoder"),
}


@pytest.mark.parametrize(("change", "message"), ENCODERS.values(), ids=ENCODERS)
def test_encoders_that_cannot_be(bert: Path, change: dict[str, Any], message: str) -> None:
    forge(bert, "config.json", lambda config: config["model"]["encoder"].update(change))
    refused(bert, message)


def test_what_of_an_encoders_config_does_not_count(bert: Path) -> None:
    """Kernels that transformers would fetch, quantizers, methods to be overwritten, number formats."""
    expected = Predictor.load(bert, use_gpu=False, precision="float32").predict(["good day"])
    change: dict[str, Any] = {
        "attn_implementation": "kernels-community/evil",
        "_attn_implementation": "kernels-community/evil",
        "_attn_implementation_internal": "evil/evil",
        "experts_implementation": "evil/evil",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "dtype": "float16",
        "to_dict": 5,
        "chunk_size_feed_forward": 7,
        "gradient_checkpointing": True,
    }
    forge(bert, "config.json", lambda config: config["model"]["encoder"].update(change))
    assert Predictor.load(bert, use_gpu=False, precision="float32").predict(["good day"]) == expected


def test_an_encoder_by_reference_is_held_against_the_config(tmp_path: Path, tiny_encoder: Path) -> None:
    path = write(tmp_path / "bundle", find_encoder(str(tiny_encoder)), by_reference=True)[0].path
    forge(path, "config.json", lambda config: config["model"]["encoder"].update(num_hidden_layers=1))
    refused(path, r"the encoder that it refers to isn't of the shape that config\.json says")
    forge(path, "config.json", lambda config: config["model"]["encoder"].update(vocab_size=1 << 20))
    refused(path, r"the encoder that it refers to isn't of the shape that config\.json says")


# --- Bundles at URIs ----------------------------------------------------------------------------------------------


@pytest.fixture
def stored(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for file in words.iterdir():
        store.pipe_file(f"/{tmp_path.name}/{file.name}", file.read_bytes())
    yield f"/{tmp_path.name}"
    store.rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_no_more_is_fetched_than_a_manifest_says(stored: str, name: str, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file(f"{stored}/{name}", store.cat_file(f"{stored}/{name}") + b" " * (1 << 20))
    with pytest.raises(BundleError, match=rf"{name} has more than the [\d,]+ bytes that it should have"):
        Bundle.open(f"memory:/{stored}")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_manifest_that_asks_for_terabytes(stored: str) -> None:
    store = fsspec.filesystem("memory")
    manifest = json.loads(store.cat_file(f"{stored}/MANIFEST.json"))
    manifest["files"][WEIGHTS]["bytes"] = 1 << 40
    store.pipe_file(f"{stored}/MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(BundleError, match=r"model\.safetensors has 1,099,511,627,776 bytes; accepted are up to"):
        Bundle.open(f"memory:/{stored}")


@pytest.mark.parametrize("scheme", ["file", "local"])
@pytest.mark.parametrize("name", ["MANIFEST.json", "tokenizer.json"])
def test_pipes_behind_a_uri(
    words: Path, scheme: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (words / name).unlink()
    os.mkfifo(words / name)
    with pytest.raises(BundleError, match=rf"{name} is no regular file"):
        Bundle.open(f"{scheme}://{words}")


# --- At random ----------------------------------------------------------------------------------------------------


def test_altered_files(words: Path) -> None:
    """Bytes of the three files that count, changed at random and signed: refused, or a model that answers."""
    rng = random.Random(17)
    whole = {name: (words / name).read_bytes() for name in FILES[:3]}
    for _ in range(MUTANTS):
        name = rng.choice(FILES[:3])
        content = bytearray(whole[name])
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(min(len(content), 3000))
            content[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        (words / name).write_bytes(content)
        sign(words, name)
        try:
            Predictor.load(words, use_gpu=False, precision="float32").predict(["good day", ""])
        except BundleError as error:
            assert "\n" not in str(error)
        (words / name).write_bytes(whole[name])
        sign(words, name)


# --- Encoders: a folder, or what the hub gave ---------------------------------------------------------------------


@pytest.fixture
def encoder(tiny_encoder: Path, tmp_path: Path) -> Path:
    """An encoder's folder, to be spoilt."""
    return Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))


def use(folder: Path) -> None:
    source = find_encoder(str(folder))
    load_encoder(source)
    EncoderTokenizer.from_pretrained(folder)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_in_an_encoders_folder(encoder: Path, name: str, kind: str) -> None:
    (encoder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(encoder / name)
    else:
        (encoder / name).symlink_to("/dev/zero")
    with pytest.raises((BundleError, ConfigError), match=rf"{name} can't be read|no {name} in"):
        use(encoder)


def test_deep_nesting_in_an_encoders_folder(encoder: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        content = (encoder / name).read_bytes()
        (encoder / name).write_text("[" * 100_000)
        with pytest.raises(BundleError, match="nested too deeply"):
            use(encoder)
        (encoder / name).write_bytes(content)
    (encoder / WEIGHTS).unlink()
    (encoder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="nested too deeply"):
        use(encoder)


def test_weights_of_an_encoder(encoder: Path) -> None:
    weights = load_file(encoder / WEIGHTS)
    weights["encoder.layer.1.output.dense.bias"][0] = float("nan")
    save_file(weights, encoder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BundleError, match=r"encoder\.layer\.1\.output\.dense\.bias holds NaN or infinite numbers"):
        use(encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1 << 20, "hidden_size": 1 << 14}, "they are [0-9,]+ numbers, .* needs"),
        ({"intermediate_size": 1 << 20, "hidden_size": 1 << 10}, "they are [0-9,]+ numbers, .* needs"),
        ({"hidden_size": BILLION}, "hidden_size is 1000000000; accepted are up to"),
        ({"num_hidden_layers": BILLION}, "num_hidden_layers is 1000000000; accepted are up to 128"),
        ({"num_attention_heads": 0}, "describes no model that can be made"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps|describes no model"),
    ],
)
def test_sizes_of_an_encoder(encoder: Path, change: dict[str, Any], message: str) -> None:
    configure(encoder, **change)
    with pytest.raises((BundleError, ConfigError), match=message):
        use(encoder)


def test_an_encoders_kernels_are_its_own(encoder: Path) -> None:
    """transformers would fetch the ones that a config names, and run them."""
    configure(encoder, attn_implementation="kernels-community/evil", _attn_implementation="kernels-community/evil")
    use(encoder)
    (encoder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/evil", "peft_type": "LORA"}')
    with pytest.raises(ConfigError, match="holds an adapter"):
        use(encoder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.1.0.json"])
def test_an_encoders_tokenizer_is_checked_before_transformers_opens_it(encoder: Path, name: str) -> None:
    document = json.loads((encoder / "tokenizer.json").read_text())
    normalizer(*[DOUBLE] * 30)(document)
    document["added_tokens"].append({"id": 9999, "content": "a" * 60, "normalized": True, "special": False})
    (encoder / name).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=rf"{name}: its replacements let a text grow more than 8 times"):
        use(encoder)


# --- Tables of characters -----------------------------------------------------------------------------------------


def table(unit: int, values: bytes, *, length: int = 512) -> str:
    """A trie of one key, the letter a: at place 256 its follower, with the value there."""
    units = [0] * length
    units[0] = 256 << 10
    if length > 256 + 97:
        units[256 ^ 97] = (1 << 8) | 97 | (unit << 10)
    if 0 < (place := 256 ^ 97 ^ unit) < length:
        units[place] = 1 << 31
    raw = struct.pack(f"<I{length}I", 4 * length, *units) + values
    return base64.b64encode(raw).decode()


def precompiled(charsmap: str) -> dict[str, Any]:
    document = json.loads(Tokenizer(BPE()).to_str())
    return {**document, "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}}


def test_a_table_of_characters() -> None:
    document = parse_tokenizer(json.dumps(precompiled(table(1, b"bcd\0"))))
    made = Tokenizer.from_str(json.dumps(document))
    assert made.normalizer.normalize_str("xay") == "xbcdy"


@pytest.mark.parametrize(
    ("charsmap", "message"),
    [
        (table(1, b"b" * 13 + b"\0"), "grow more than 12 times"),
        (table(1, b"\xff\0"), "decode"),
        (table(1 << 20, b"b\0"), "leads out of itself"),
        (table(1, b"b\0", length=300), "leads out of itself"),
        (table(1, b"b\0")[:100], "damaged"),
        ("", "damaged"),
        ("A" * (1 << 21), "no text of at most"),
        ("*", "Precompiled"),
    ],
)
def test_tables_that_would_end_the_process_or_let_texts_grow(charsmap: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tokenizer(json.dumps(precompiled(charsmap)))


# --- What published encoders have ---------------------------------------------------------------------------------

SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "XLM-R": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": table(1, b"b\0")},
                replace({"Regex": " {2,}"}, " "),
            ],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]},
    },
    "ALBERT": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                replace({"String": "``"}, '"'),
                replace({"String": "''"}, '"'),
                *({"type": kind} for kind in ("NFKD", "StripAccents", "Lowercase")),
                {"type": "Precompiled", "precompiled_charsmap": table(1, b"b\0")},
                replace({"Regex": " {2,}"}, " "),
            ],
        },
        "pre_tokenizer": METASPACE,
    },
    "RoBERTa": {
        "pre_tokenizer": BYTES,
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": BYTES,
    },
    "BERT": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
    "DeBERTa-v3": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Strip", "strip_left": True, "strip_right": True}, replace({"Regex": "\n"}, " ")],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}, SPLIT, METASPACE],
        },
    },
    "T5's spaces": {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": " "}, "▁")]}},
    "digits and GPT-2's pattern": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**SPLIT, "pattern": {"Regex": _GPT2}, "behavior": "Isolated"},
                {**BYTES, "use_regex": False},
            ],
        }
    },
}


@pytest.mark.parametrize("parts", PUBLISHED.values(), ids=PUBLISHED)
def test_tokenizers_as_they_are_published_pass(parts: dict[str, Any]) -> None:
    document = {**json.loads(Tokenizer(BPE()).to_str()), **parts}
    made = Tokenizer.from_str(json.dumps(parse_tokenizer(json.dumps(document))))
    assert made.encode("Héllo  wörld 12", add_special_tokens=False).ids == []


def test_linear_patterns() -> None:
    linear = [" {2,}", "\n", r"\s+", r"[\r\n]+", r"\p{P}", r"[^\w\s]", r"\d{1,3}", "a{1,99}", ".", "é"]
    other = ["(a+)+", "a*", "a+b", r"\s+$", "a{0,}", "a|b", "[a-z&&[b]]", r"(\w)\1", "a++", "a+?", "(?i)a", "[]a]", ""]
    assert [pattern for pattern in linear + other if _LINEAR.fullmatch(pattern)] == linear
