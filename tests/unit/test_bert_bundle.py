"""A BERT-GRU's bundle predicts as the notebook's `predict_sentiment` does, with and without the encoder inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import BF16, relative_error
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sentiment.bundle import Bundle, BundleConfig, write_bundle
from sentiment.errors import BundleError
from sentiment.models.bert_gru import BertGruClassifier
from sentiment.models.config import BertGruConfig, EncoderReference, Truncation
from sentiment.models.encoders import EncoderSource, find_encoder, load_encoder, read_config
from sentiment.predictor import Predictor
from sentiment.tokenizers import EncoderTokenizer

TEXTS = [
    "i love this phone, it is great",
    "not good. not good at all!",
    "bad",
    "what a day: the battery was awful, and so it is again and again and again " * 3,
    "Unknown words, zwölf ☃ and [SEP] too",
    "",
]


def write(
    path: Path,
    source: EncoderSource,
    *,
    by_reference: bool = False,
    truncation: Truncation = "head",
    max_length: int = 24,
) -> tuple[Bundle, BertGruClassifier]:
    """A bundle with a random head, and its model."""
    torch.manual_seed(0)
    model = BertGruClassifier(read_config(source), 8)
    model.encoder = load_encoder(source)
    for weight in model.head.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    tokenizer = EncoderTokenizer.from_pretrained(source.path)
    shape = BertGruConfig(
        encoder=read_config(source),
        encoder_reference=EncoderReference(name=source.name, sha256=source.sha256) if by_reference else None,
        hidden_dim=8,
        num_layers=2,
        bidirectional=True,
        dropout=0.25,
        truncation=truncation,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
    )
    weights = {
        name: weight for name, weight in model.state_dict().items() if name.startswith("head.") or not by_reference
    }
    config = BundleConfig(recipe="bert-gru", model=shape, max_length=max_length)
    bundle = write_bundle(path, config=config, weights=weights, tokenizer=tokenizer, metrics={}, card="")
    return bundle, model.eval()


def predict_sentiment(
    model: BertGruClassifier, tokenizer: PreTrainedTokenizerFast, sentence: str, max_length: int
) -> float:
    """The notebook's function: tokens of one sentence between [CLS] and [SEP], without padding."""
    tokens = tokenizer.tokenize(sentence, split_special_tokens=True)[: max_length - 2]
    indexed = [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(tokens), tokenizer.sep_token_id]
    with torch.inference_mode():
        logit = model(torch.tensor([indexed]), torch.tensor([len(indexed)]))
    return float(torch.sigmoid(logit))


@pytest.mark.parametrize("encoder", ["tiny", "minilm"])
def test_it_predicts_as_the_notebook_does(tmp_path: Path, tiny_encoder: Path, encoder: str) -> None:
    source = find_encoder(str(tiny_encoder) if encoder == "tiny" else "minilm")
    bundle, model = write(tmp_path / "bundle", source)
    predictor = Predictor.load(bundle.path, use_gpu=False, precision="float32")
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    expected = [predict_sentiment(model, tokenizer, text, 24) for text in TEXTS]
    found = predictor.forward(predictor.encode(TEXTS)).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.std(found) > 0.001
    assert predictor.known_words(TEXTS) is None, "word pieces spell what they don't know"
    ids, rough = predictor.encode(TEXTS), Predictor.load(bundle.path, use_gpu=False, precision="bf16")
    assert 0 < relative_error(rough.logits(ids), predictor.logits(ids)) < BF16


def test_head_and_tail_of_a_long_text_are_read(tmp_path: Path, tiny_encoder: Path) -> None:
    source = find_encoder(str(tiny_encoder))
    both = Predictor.load(write(tmp_path / "both", source, truncation="head+tail")[0].path, precision="float32")
    head = Predictor.load(write(tmp_path / "head", source)[0].path, precision="float32")
    one, other = ("good " * 30 + word for word in ("good", "bad"))
    assert head.predict([one])[0].p_positive == pytest.approx(head.predict([other])[0].p_positive, abs=1e-6)
    assert both.predict([one])[0].p_positive != pytest.approx(both.predict([other])[0].p_positive, abs=1e-4)


def test_by_reference_it_is_small_and_predicts_the_same(tmp_path: Path, tiny_encoder: Path) -> None:
    source = find_encoder(str(tiny_encoder))
    whole, _ = write(tmp_path / "whole", source)
    small, _ = write(tmp_path / "small", source, by_reference=True)
    assert {name.split(".")[0] for name in small.weights()} == {"head"}
    expected, found = (Predictor.load(bundle.path, precision="float32") for bundle in (whole, small))
    assert found.forward(found.encode(TEXTS)) == pytest.approx(expected.forward(expected.encode(TEXTS)), abs=1e-6)


def test_weights_of_another_shape_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    source = find_encoder(str(tiny_encoder))
    bundle, _ = write(tmp_path / "bundle", source)
    config = bundle.config.model_copy(update={"model": bundle.config.model.model_copy(update={"hidden_dim": 9})})
    weights, tokenizer = bundle.weights(), bundle.tokenizer()
    wrong = write_bundle(tmp_path / "wrong", config=config, weights=weights, tokenizer=tokenizer, metrics={}, card="")
    with pytest.raises(BundleError, match=r"weights don't fit config\.json"):
        Predictor.load(wrong.path)
    lacking = {name: weight for name, weight in weights.items() if not name.startswith("encoder.")}
    wrong = write_bundle(
        tmp_path / "lacking", config=bundle.config, weights=lacking, tokenizer=tokenizer, metrics={}, card=""
    )
    with pytest.raises(BundleError, match=r"weights don't fit config\.json"):
        Predictor.load(wrong.path)
