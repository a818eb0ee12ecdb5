"""Texts to labels: the one inference path of evaluate, score and the server.

It has stages, so that callers can overlap them: `encode` (normalise and tokenise, on the CPU), `forward` (the model, in
length-ordered batches) and `predict`, which joins them and names the labels. A text's score is the same alone, in any
batch and in any order, to 1e-5 in float32 (1e-2 in bfloat16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sentiment.batching import TOKEN_BUDGET, length_ordered, pad, padded_rows
from sentiment.bundle import Bundle
from sentiment.devices import autocast, pick_device, resolve_precision
from sentiment.encoder_tokenizer import EncoderTokenizer
from sentiment.encoders import find_encoder, load_encoder
from sentiment.errors import BundleError
from sentiment.models import build_model
from sentiment.schema import LABELS, NEGATIVE, POSITIVE
from sentiment.settings import Precision
from sentiment.shapes import BertGruConfig
from sentiment.text import normalise

# Rows of a batch, fewer where texts are long (`TOKEN_BUDGET`).
BATCH_SIZE = 256

# On CPUs plain attention is 10 % faster than the fused kernel up to so many tokens, a quarter slower at 512 (MiniLM).
_PLAIN_ATTENTION_TOKENS = 256

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Attributes:
        label: `NEGATIVE` or `POSITIVE`.
        score: Probability of that label, as Hugging Face pipelines have it.
        p_positive: Probability of `POSITIVE`.
    """

    label: str
    score: float
    p_positive: float


class Predictor:
    """A loaded bundle. Make one with `Predictor.load`; threads may share it."""

    def __init__(self, bundle: Bundle, model: torch.nn.Module, device: torch.device, precision: Precision) -> None:
        self.model_id = bundle.model_id
        self.config = bundle.config
        self.device = device
        self.precision = resolve_precision(precision, device)
        self.tokenizer = bundle.tokenizer()
        is_short = bundle.config.max_length <= _PLAIN_ATTENTION_TOKENS
        if isinstance(bundle.config.model, BertGruConfig) and device.type == "cpu" and is_short:
            encoder: Any = model.get_submodule("encoder")
            encoder.set_attn_implementation("eager")
        self._model = model.to(device).eval()

    @classmethod
    def load(cls, path: str | Path, *, use_gpu: bool | None = None, precision: Precision = "auto") -> Predictor:
        """Open a bundle, check it, and load it once.

        Args:
            path: The bundle's folder.
            use_gpu: True or False; None for the GPU where there is one.
            precision: Number format of the forward pass; "auto" is bf16 where the hardware has it.

        Raises:
            BundleError: The bundle is incomplete, altered, or its weights don't fit its config.
            ConfigError: It refers to an encoder that can't be found.
        """
        bundle = Bundle.open(path)
        predictor = cls(bundle, _load_model(bundle), pick_device(use_gpu), precision)
        if predictor.tokenizer.vocabulary_size > bundle.config.model.vocabulary_size:
            raise BundleError(
                f"{bundle.path}: tokenizer.json knows {predictor.tokenizer.vocabulary_size} words, the model of "
                f"config.json {bundle.config.model.vocabulary_size}; copy or train it again"
            )
        return predictor

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Normalise and tokenise texts, cut to the model's maximum length.

        One without a word gets as many ids as the tokenizer has special tokens around it.
        """
        normalised = [normalise(text) for text in texts]
        if not isinstance(self.tokenizer, EncoderTokenizer):
            return self.tokenizer.encode(normalised, self.config.max_length)
        assert isinstance(self.config.model, BertGruConfig)
        return self.tokenizer.encode(normalised, self.config.max_length, truncation=self.config.model.truncation)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, were it not cut."""
        return [len(ids) for ids in self.tokenizer.encode([normalise(text) for text in texts])]

    def logits(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute the logit of the positive class of encoded texts, in their order.

        Args:
            ids: Token ids of each text.

        Returns:
            One float32 logit for each text.
        """
        logits_N = np.empty(len(ids), dtype=np.float32)
        lengths_N = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        with torch.inference_mode(), autocast(self.precision, self.device):
            for rows in length_ordered(lengths_N, BATCH_SIZE, TOKEN_BUDGET):
                texts, pad_id = [ids[row] for row in rows], self.config.model.pad_id
                ids_BT, lengths_B = pad(texts, pad_id, num_rows=padded_rows(len(rows)))
                logits_B = self._model(ids_BT.to(self.device), lengths_B.to(self.device))
                logits_N[rows] = logits_B[: len(rows)].float().cpu().numpy()
        return logits_N

    def forward(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute p(positive) of encoded texts, in their order.

        Args:
            ids: Token ids of each text.

        Returns:
            One float32 probability for each text.
        """
        return torch.sigmoid(torch.from_numpy(self.logits(ids))).numpy()

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts, in their order.

        Args:
            texts: Raw texts; an empty one gets the score that a model gives to no words.
        """
        p_positive = self.forward(self.encode(texts))
        labels, scores = labels_and_scores(p_positive)
        return [
            Prediction(label, float(score), float(p))
            for label, score, p in zip(labels, scores, p_positive, strict=True)
        ]

    def warm_up(self) -> None:
        """Run a few shapes once, so that the first real batch doesn't pay for setting up kernels."""
        for length in (8, 16, 32):
            self.forward([[self.config.model.unk_id] * length] * BATCH_SIZE)


def labels_and_scores(p_positive: FloatArray) -> tuple[list[str], FloatArray]:
    """Name the likelier label and give its probability; a tie is positive.

    Args:
        p_positive: Probability of the positive label.

    Returns:
        Labels and the probability of each.
    """
    is_positive = p_positive >= 0.5
    labels = [LABELS[POSITIVE] if positive else LABELS[NEGATIVE] for positive in is_positive]
    return labels, np.where(is_positive, p_positive, 1 - p_positive).astype(np.float32)


def _load_model(bundle: Bundle) -> torch.nn.Module:
    """The model with the bundle's weights, and with the encoder that it refers to, if it does."""
    config = bundle.config.model
    reference = config.encoder_reference if isinstance(config, BertGruConfig) else None
    # Not on the meta device: fresh weights made there import torch's compiler, which costs more than they do.
    model = build_model(config)
    if reference is not None:
        model.encoder = load_encoder(find_encoder(reference.name, reference.revision, sha256=reference.sha256))
    try:
        # assign: the tensors of the file become the weights, with no random weights made first.
        missing, unexpected = model.load_state_dict(bundle.weights(), assign=True, strict=reference is None)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise BundleError(f"{bundle.path}: weights don't fit config.json: {reason}") from error
    if unexpected or any(not name.startswith("encoder.") for name in missing):
        raise BundleError(f"{bundle.path}: weights don't fit config.json: {[*missing, *unexpected][:5]}")
    return model
