"""The models on a GPU: the same scores as on the CPU, and training that runs there from end to end."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import BF16, relative_error

from sentiment.batching import Examples, LengthBucketedBatches, pad
from sentiment.models.bag import BagClassifier
from sentiment.models.bert_gru import BertGruClassifier
from sentiment.models.config import Cell, Pooling
from sentiment.models.encoders import find_encoder, load_encoder, read_config
from sentiment.models.layers import SubwordEmbedding, WordEmbedding
from sentiment.models.recurrence import run_direction
from sentiment.models.rnn import RecurrentClassifier
from sentiment.training.feature_cache import EncodedRows, FrozenEncoder, write_shard
from sentiment.training.loop import evaluate, fit
from sentiment.training.recipes import BERT_TWEETS, OptimizerConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # Each layer and direction is a call of its own, and cuDNN copies its weights together for it.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
]
WORDS = [f"word{number:02}" for number in range(60)]


def batches(num_rows: int = 512) -> LengthBucketedBatches:
    """Rows whose label is whether a word of the lower half stands first."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.integers(2, len(WORDS), lengths.sum()).astype(np.int32)
    labels = (ids[offsets[:-1]] < len(WORDS) // 2).astype(np.int32)
    return LengthBucketedBatches(Examples(ids, offsets, labels), batch_size=64, pad_id=1, max_length=32)


@pytest.mark.parametrize("pooling", ["last", "max", "concat"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_scores_are_those_of_the_cpu(cell: Cell, pooling: Pooling) -> None:
    """TF32 has ten bits of mantissa: 2e-3 of a logit near 1; padding that is let in would move it by 1e-1."""
    torch.manual_seed(0)
    model = RecurrentClassifier(len(WORDS), 16, 32, cell=cell, pooling=pooling).eval()
    batch = next(batches().epoch(0))
    with torch.inference_mode():
        expected_B = model(batch.inputs_BT, batch.lengths_B)
        found_B = model.cuda()(batch.inputs_BT.cuda(), batch.lengths_B.cuda())
    torch.testing.assert_close(found_B.cpu(), expected_B, atol=2e-3, rtol=0)


def test_recurrences_are_never_in_float16() -> None:
    model = RecurrentClassifier(len(WORDS), 16, 32).cuda()
    batch = next(batches().epoch(0)).to(torch.device("cuda"))
    with torch.autocast("cuda", torch.bfloat16):
        out_TBH = run_direction(model.rnn, 0, "", model.embedding(batch.inputs_BT.t()))
    assert out_TBH.dtype == torch.float32


@pytest.mark.parametrize("is_bag", [False, True])
def test_training_runs_there(is_bag: bool) -> None:
    torch.manual_seed(0)
    model = BagClassifier(len(WORDS), 16, (8,)) if is_bag else RecurrentClassifier(len(WORDS), 16, 32, 1, dropout=0.1)
    assert isinstance(model.embedding, WordEmbedding)
    model.embedding = SubwordEmbedding(model.embedding, WORDS, 0.1, (0, 1))
    config = OptimizerConfig(epochs=5, learning_rate=1e-2, schedule="one-cycle")
    cuda = torch.device("cuda")
    final = fit(model, batches(), batches(), config, seed=1, device=cuda, precision="bf16")
    history = final.progress.history
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.02
    unfolded = copy.deepcopy(model)
    model.embedding = model.embedding.folded()
    losses = [evaluate(each, batches(), device=cuda, precision="float32").loss for each in (unfolded, model)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_bert_gru_scores_and_trains_there(tiny_encoder: Path, tmp_path: Path, unfreeze: int) -> None:
    """Features in bfloat16, recurrences in TF32, against float32 on the CPU."""
    source = find_encoder(str(tiny_encoder))
    torch.manual_seed(0)
    whole = BertGruClassifier(read_config(source), 8)
    whole.encoder = load_encoder(source)
    lower, upper = copy.deepcopy(whole).halves(unfreeze)
    device = torch.device("cuda")
    encoder = FrozenEncoder(lower.to(device), device, "bf16")
    ids = [[2, *range(5, 5 + length), 3] for length in range(1, 30)]
    labels = np.array([length > 15 for length in range(1, 30)], np.int32)
    write_shard(tmp_path / "all.safetensors", np.arange(29, dtype=np.int64), labels, ids, encoder.rows(ids, 0))
    data = LengthBucketedBatches(EncodedRows(tmp_path), batch_size=8, pad_id=0, max_length=64, shuffle=False)
    upper.to(device).eval()
    for batch in data.epoch(0):
        on_gpu = batch.to(device)
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            found_B = upper(on_gpu.inputs_BT, on_gpu.lengths_B)
        assert found_B.isfinite().all()
    ids_BT, lengths_B = pad(ids, 0)
    with torch.inference_mode():
        expected_B = whole.eval()(ids_BT, lengths_B)
        with torch.autocast("cuda", torch.bfloat16):
            found_B = whole.cuda()(ids_BT.cuda(), lengths_B.cuda())
    assert relative_error(found_B.float().cpu(), expected_B) < BF16
    train = LengthBucketedBatches(EncodedRows(tmp_path), batch_size=8, pad_id=0, max_length=64)
    config = BERT_TWEETS.model_copy(update={"epochs": 20, "learning_rate": 1e-2, "encoder_learning_rate": 1e-3})
    history = fit(upper, train, data, config, seed=1, device=device, precision="bf16").progress.history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
