"""bert-base's shape on a CUDA GPU in bf16: tweets/s in training and scoring, and the share of the card's matrix rate.

Weights are random, for speed doesn't ask what they are. The rate that the card reaches on one large bf16 product,
measured here too, is the limit; the share of it counts the encoder's and the head's multiplications alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import BertConfig

from sentiment.features import FrozenEncoder
from sentiment.models.bert_gru import BertGruClassifier

_TOKENS = 24
_ROWS = 2048
# Multiply-adds of a token: 12 layers of 4 E² + 2·E·4E, and two layers of a bidirectional GRU; attention adds under 1 %.
_ENCODER_FLOPS = 2 * 12 * 12 * 768**2
_HEAD_FLOPS = 2 * 2 * 3 * 256 * (768 + 256 + 512 + 256)


def measure(rounds: int) -> dict[str, Any]:
    """Rates in tweets/s, and shares of the matrix rate."""
    assert torch.cuda.is_available(), "no CUDA GPU"
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    model = BertGruClassifier(BertConfig().to_dict())
    for weight in model.encoder.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    model.to(device).eval()
    lower, upper = model.halves(0)
    encoder = FrozenEncoder(lower, device, "bf16")
    ids_BT = torch.randint(1000, 30_000, (_ROWS, _TOKENS), device=device)
    lengths_B = torch.full((_ROWS,), _TOKENS, device=device)
    labels_B = torch.randint(0, 2, (_ROWS,), device=device).float()
    features_BTE = encoder(ids_BT, lengths_B)
    optimizer = torch.optim.AdamW(upper.parameters(), lr=1e-3, fused=True)

    def score() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            model(ids_BT, lengths_B)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits_B = upper(features_BTE, lengths_B)
        torch.nn.functional.binary_cross_entropy_with_logits(logits_B.float(), labels_B).backward()
        optimizer.step()

    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    peak = 2 * 8192**3 / _seconds(lambda: square @ square, rounds)
    scoring, encoding, training = (
        _ROWS / _seconds(run, rounds) for run in (score, lambda: encoder(ids_BT, lengths_B), train)
    )
    figures = {
        "matrix rate of the card, bf16, TFLOP/s": peak / 1e12,
        "scoring, tweets/s": scoring,
        "scoring, share of the matrix rate, %": 100 * scoring * _TOKENS * (_ENCODER_FLOPS + _HEAD_FLOPS) / peak,
        "encoding, tweets/s": encoding,
        "encoding, share of the matrix rate, %": 100 * encoding * _TOKENS * _ENCODER_FLOPS / peak,
        "training steps of the head on features in GPU memory, tweets/s": training,
        "training steps, share of the matrix rate, %": 100 * training * _TOKENS * 3 * _HEAD_FLOPS / peak,
    }
    return {"gpu_name": torch.cuda.get_device_name(), "rows": _ROWS, "tokens": _TOKENS, "figures": figures}


def _seconds(run: Callable[[], object], rounds: int) -> float:
    """Median time of ten calls, per call."""
    taken = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            run()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) / 10)
    return median(taken[1:])
