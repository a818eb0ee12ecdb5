"""BERT-GRU: the shape of the source, both halves together are the whole, padding changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sentiment.errors import ConfigError
from sentiment.models.bert_gru import BertGruClassifier, check_recipe
from sentiment.models.build import count_parameters
from sentiment.models.config import KINDS
from sentiment.models.encoders import find_encoder, load_encoder, read_config

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": transformers.BertConfig(**SMALL).to_dict(),
    "roberta": transformers.RobertaConfig(**SMALL).to_dict(),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL).to_dict(),
    "camembert": transformers.CamembertConfig(**SMALL).to_dict(),
    "electra": transformers.ElectraConfig(**SMALL, embedding_size=8).to_dict(),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=40
    ).to_dict(),
}
OTHERS: dict[str, dict[str, Any]] = {
    "albert": transformers.AlbertConfig(**SMALL, embedding_size=8).to_dict(),
    "deberta": transformers.DebertaConfig(**SMALL).to_dict(),
    "deberta-v2": transformers.DebertaV2Config(**SMALL).to_dict(),
    "mpnet": transformers.MPNetConfig(**SMALL).to_dict(),
}


def model(encoder: dict[str, Any], **fields: Any) -> BertGruClassifier:
    torch.manual_seed(0)
    made = BertGruClassifier(encoder, 8, **fields)
    for weight in made.encoder.parameters():
        nn.init.normal_(weight, std=0.3)
    return made.eval()


def ragged(pad_id: int) -> tuple[Tensor, Tensor]:
    """Four rows of 1 to 9 tokens, padded to 10."""
    lengths_B = torch.tensor([9, 3, 1, 7])
    ids_BT = torch.randint(5, 50, (4, 10), generator=torch.Generator().manual_seed(1))
    ids_BT[torch.arange(10)[None] >= lengths_B[:, None]] = pad_id
    return ids_BT.int(), lengths_B


def test_parameters_are_the_sources() -> None:
    """The source prints both numbers for bert-base-uncased, whose config transformers' defaults are."""
    with torch.device("meta"):
        base = BertGruClassifier(transformers.BertConfig().to_dict())
    assert count_parameters(base) == 112_241_409
    assert count_parameters(base, trainable=True) == 2_759_169


@pytest.mark.parametrize("pooling", ["last", "concat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_halves_are_the_whole(family: str, pooling: Any) -> None:
    whole = model(FAMILIES[family], pooling=pooling)
    ids_BT, lengths_B = ragged(whole.encoder.config.pad_token_id)
    expected_B = whole(ids_BT, lengths_B)
    assert expected_B.std() > 0.001
    for unfrozen in range(4):
        lower, upper = whole.halves(unfrozen)
        torch.testing.assert_close(upper(lower(ids_BT, lengths_B), lengths_B), expected_B, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", KINDS)
def test_padding_never_changes_a_score(family: str) -> None:
    whole = model({**FAMILIES, **OTHERS}[family])
    ids_BT, lengths_B = ragged(whole.encoder.config.pad_token_id)
    together_B = whole(ids_BT, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone_B = whole(ids_BT[row : row + 1, :length], lengths_B[row : row + 1])
        torch.testing.assert_close(alone_B[0], together_B[row], atol=1e-5, rtol=1e-5)


def test_what_is_frozen_stays_as_it_is() -> None:
    """Also its dropout, which the notebook leaves on: a text has the same features in every epoch."""
    whole = model(FAMILIES["bert"])
    lower, upper = whole.halves(1)
    upper.train(), lower.train(), whole.train()
    ids_BT, lengths_B = ragged(0)
    features_BTE = lower(ids_BT, lengths_B)
    torch.testing.assert_close(lower(ids_BT, lengths_B), features_BTE, atol=0, rtol=0)
    upper(features_BTE, lengths_B).sum().backward()
    trained = {name for name, weight in whole.named_parameters() if weight.grad is not None}
    assert trained == {name for name, weight in whole.named_parameters() if weight.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"head", "encoder"}
    assert all(name.startswith(("head.", "encoder.encoder.layer.2.")) for name in trained)
    assert sum(name.startswith("encoder.") for name in trained) == 16


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match="--unfreeze-layers 4: the encoder has 3 layers"):
        model(FAMILIES["bert"]).halves(4)


def test_encoders_that_cannot_be_cut_can_stay_frozen() -> None:
    whole = model(OTHERS["mpnet"])
    lower, upper = whole.halves(0)
    ids_BT, lengths_B = ragged(whole.encoder.config.pad_token_id)
    torch.testing.assert_close(upper(lower(ids_BT, lengths_B), lengths_B), whole(ids_BT, lengths_B))
    with pytest.raises(ConfigError, match="--unfreeze-layers: not with mpnet encoders; with bert, camembert"):
        whole.halves(1)


def test_an_unknown_kind_of_encoder() -> None:
    with pytest.raises(ConfigError, match=r"encoder config: .*nosuch"):
        BertGruClassifier({"model_type": "nosuch"})


def test_texts_longer_than_the_encoder_reads() -> None:
    """Of RoBERTa's 40 positions the first two are the padding's."""
    for family, most in (("bert", 40), ("roberta", 38), ("xlm-roberta", 38), ("distilbert", 40)):
        check_recipe(FAMILIES[family], 0, most)
        with pytest.raises(ConfigError, match=f"--max-length {most + 1}: the encoder reads {most} tokens"):
            check_recipe(FAMILIES[family], 0, most + 1)
        whole = model(FAMILIES[family])
        assert whole(torch.full((1, most), 7), torch.tensor([most])).isfinite().all()


class Notebook(nn.Module):
    """The source's own model, as its notebook has it, without its data pipeline."""

    def __init__(self, bert: nn.Module, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.bert = bert
        self.rnn = nn.GRU(width, hidden_dim, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25)
        self.out = nn.Linear(hidden_dim * 2, 1)

    def forward(self, text: Tensor) -> Tensor:
        embedded = self.bert(text)[0]
        _, hidden = self.rnn(embedded)
        return self.out(torch.cat((hidden[-2], hidden[-1]), dim=1))


def test_it_computes_what_the_notebooks_model_does(tiny_encoder: Path) -> None:
    source = find_encoder(str(tiny_encoder))
    ours = BertGruClassifier(read_config(source), 8)
    ours.encoder = load_encoder(source)
    theirs = Notebook(load_encoder(source), 16, 8)
    theirs.rnn.load_state_dict(ours.head.rnn.state_dict())
    theirs.out.load_state_dict(ours.head.fc.state_dict())
    ours.eval(), theirs.eval()
    ids_BT = torch.randint(5, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids_BT, torch.tensor([12])), theirs(ids_BT)[:, 0], atol=1e-6, rtol=1e-6)
