"""Texts to labels: the inference path of evaluate, score, predict and the server.

It has stages, so that callers can overlap them: `encode` (normalize and tokenize, on the CPU), `forward` (the model, in
length-ordered batches) and `predict`, which joins them and names the labels.

In float32 a text's score is the same alone, in any batch and in any order, to 1e-5. In bfloat16 scores differ from that
by as much as processor, batch and weights make of its 8 significant bits: each rounding moves a value by up to 2^-8 of
itself, and kernels round in different places. There is no bound on it for all weights. Logits come out within a few
percent of their size (root mean square over texts), a probability within a quarter of its logit's error, and labels
change only near 0.5. What it comes to for a bundle is measured when training ends: `bf16_error` in its metrics.json.
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
from sentiment.bundle import WEIGHTS, Bundle
from sentiment.devices import autocast, pick_device, resolve_precision
from sentiment.errors import BundleError, brief
from sentiment.models.build import build_model, build_weightless
from sentiment.models.config import BertGruConfig, RecurrentConfig
from sentiment.models.encoders import find_encoder, load_encoder
from sentiment.schema import LABELS, NEGATIVE, POSITIVE
from sentiment.settings import Precision
from sentiment.text import normalize
from sentiment.tokenizers import EncoderTokenizer, WordTokenizer
from sentiment.untrusted import panics_are_errors, tensors_in

# Rows of a batch, fewer where texts are long (`TOKEN_BUDGET`).
BATCH_SIZE = 256

# On CPUs plain attention is 10 % faster than the fused kernel up to so many tokens, a quarter slower at 512 (MiniLM).
_PLAIN_ATTENTION_TOKENS = 256
# Of the longest text that a new predictor is tried on: as many as encoders read.
_TRIAL_TOKENS = 512

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

    def __init__(
        self,
        bundle: Bundle,
        model: torch.nn.Module,
        device: torch.device,
        precision: Precision,
        tokenizer: WordTokenizer | EncoderTokenizer,
    ) -> None:
        self._path = bundle.path
        self.model_id = bundle.model_id
        self.config = bundle.config
        self.device = device
        self.precision = resolve_precision(precision, device)
        self.tokenizer = tokenizer
        is_short = bundle.config.max_length <= _PLAIN_ATTENTION_TOKENS
        if isinstance(bundle.config.model, BertGruConfig) and device.type == "cpu" and is_short:
            encoder: Any = model.get_submodule("encoder")
            encoder.set_attn_implementation("eager")
        self._model = model.to(device).eval()

    @classmethod
    def load(cls, path: str | Path, *, use_gpu: bool | None = None, precision: Precision = "auto") -> Predictor:
        """Open a bundle, check it, and load it once.

        Args:
            path: The bundle's directory or URI.
            use_gpu: True or False; None for the GPU where there is one.
            precision: Number format of the forward pass; "auto" is bf16 where the hardware has it.

        Raises:
            BundleError: The bundle is incomplete, altered, or its parts don't fit together; or it gives no scores.
            ConfigError: It refers to an encoder that can't be found.
        """
        bundle = Bundle.open(path)
        tokenizer = bundle.tokenizer()
        _check_tokenizer(bundle, tokenizer)  # Before the weights: it is the likeliest to be forged.
        predictor = cls(bundle, _load_model(bundle), pick_device(use_gpu), precision, tokenizer)
        # Score a short text and a long one: settings may be valid each for itself and yet not go together.
        length = min(bundle.config.max_length, _TRIAL_TOKENS)
        try:
            with panics_are_errors():
                predictor.forward([*predictor.encode(["not bad"]), [bundle.config.model.unk_id] * length])
        except BundleError:
            raise
        except Exception as error:  # from anywhere in torch or an encoder's code
            raise BundleError(f"{bundle.path}: its model can't score a text: {brief(error)}") from error
        return predictor

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Normalize and tokenize texts, cut to the model's maximum length."""
        clean = [normalize(text) for text in texts]
        if isinstance(self.tokenizer, EncoderTokenizer) and isinstance(self.config.model, BertGruConfig):
            return self.tokenizer.encode(clean, self.config.max_length, truncation=self.config.model.truncation)
        return self.tokenizer.encode(clean, self.config.max_length)

    def has_text(self, ids: Sequence[int]) -> bool:
        """Tell whether an encoded text holds anything that the model reads.

        Without it (empty, blank, invisible or control characters alone) a model's guess is its bias: every caller
        answers `NO_TEXT` instead.
        """
        return len(ids) > self.tokenizer.num_special_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, were it not cut."""
        return [len(ids) for ids in self.tokenizer.encode([normalize(text) for text in texts])]

    def known_words(self, texts: Sequence[str]) -> list[tuple[int, int]] | None:
        """How many words of each text the model has seen in training, and how many it reads; None on word pieces."""
        if isinstance(self.tokenizer, EncoderTokenizer):
            return None
        return [(sum(id_ != self.tokenizer.unk_id for id_ in ids), len(ids)) for ids in self.encode(texts)]

    def logits(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute logits_N, the logit of the positive class of each encoded text.

        Raises:
            BundleError: A logit is no number: the weights are so large that sums of them are infinite.
        """
        logits_N = np.empty(len(ids), dtype=np.float32)
        lengths_N = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        if isinstance(self.config.model, RecurrentConfig):  # It may pad rows: those tokens count in a batch too.
            lengths_N = np.maximum(lengths_N, self.config.model.padded_length)
        with torch.inference_mode(), autocast(self.precision, self.device):
            for rows in length_ordered(lengths_N, BATCH_SIZE, TOKEN_BUDGET):
                texts, pad_id = [ids[row] for row in rows], self.config.model.pad_id
                ids_BT, lengths_B = pad(texts, pad_id, num_rows=padded_rows(len(rows)))
                logits_B = self._model(ids_BT.to(self.device), lengths_B.to(self.device))
                logits_N[rows] = logits_B[: len(rows)].float().cpu().numpy()
        if not np.isfinite(logits_N).all():
            raise BundleError(f"{self._path}: its model gives a text no score but NaN or infinity; train it again")
        return logits_N

    def forward(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Compute p(positive) of each encoded text, as `logits` does."""
        return torch.sigmoid(torch.from_numpy(self.logits(ids))).numpy()

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        """Classify raw texts, in their order; None for one with nothing to read in it (`has_text`)."""
        ids = self.encode(texts)
        p_positive = self.forward([row for row in ids if self.has_text(row)])
        labels, scores = labels_and_scores(p_positive)
        predictions = map(Prediction, labels, scores.tolist(), p_positive.tolist())
        return [next(predictions) if self.has_text(row) else None for row in ids]

    def warm_up(self) -> None:
        """Run a few shapes once, so that the first real batch doesn't pay for setting up kernels."""
        for length in (8, 16, 32):
            self.forward([[self.config.model.unk_id] * length] * BATCH_SIZE)


def labels_and_scores(p_positive: FloatArray) -> tuple[list[str], FloatArray]:
    """The likelier label of each p(positive), and its probability; a tie is positive."""
    is_positive = p_positive >= 0.5
    labels = [LABELS[POSITIVE] if positive else LABELS[NEGATIVE] for positive in is_positive]
    return labels, np.where(is_positive, p_positive, 1 - p_positive).astype(np.float32)


def _check_tokenizer(bundle: Bundle, tokenizer: WordTokenizer | EncoderTokenizer) -> None:
    """Refuse a tokenizer that doesn't fit the config beside it."""
    path, model, max_length = bundle.path, bundle.config.model, bundle.config.max_length
    if tokenizer.vocabulary_size > model.vocabulary_size:
        raise BundleError(
            f"{path}: tokenizer.json knows {tokenizer.vocabulary_size} words, the model of config.json "
            f"{model.vocabulary_size}; copy or train it again"
        )
    for name in ("pad_id", "unk_id"):
        theirs, ours = getattr(tokenizer, name), getattr(model, name)
        if theirs != ours:
            raise BundleError(f"{path}: tokenizer.json has {name} {theirs}, config.json {ours}; train it again")
    if tokenizer.num_special_tokens >= max_length:
        raise BundleError(
            f"{path}: {tokenizer.num_special_tokens} tokens stand around every text, max_length is {max_length}; train "
            "it again"
        )


def _load_model(bundle: Bundle) -> torch.nn.Module:
    """The model with the bundle's weights, and with the encoder that it refers to, if it does.

    Only shapes are made until it is clear that the weights have those that config.json asks for.
    """
    config = bundle.config.model
    reference = config.encoder_reference if isinstance(config, BertGruConfig) else None
    try:
        model = build_weightless(config)
        if isinstance(config, BertGruConfig):
            from sentiment.models.bert_gru import check_recipe

            check_recipe(config.encoder, config.unfreeze_layers, bundle.config.max_length)
    except Exception as error:  # any line of an encoder's code, where settings don't go together
        raise BundleError(f"{bundle.path}: config.json describes no model that can be made: {brief(error)}") from error
    needed, stored = _shapes(model), tensors_in(bundle.path / WEIGHTS)
    for name in [*needed, *sorted(stored.keys() - needed.keys())]:
        is_left_out = reference is not None and name.startswith("encoder.") and name not in stored
        if not is_left_out and stored.get(name) != ("F32", needed.get(name)):
            found = " ".join(map(str, stored.get(name, ("nothing",))))
            wanted = f"F32 {needed[name]}" if name in needed else "nothing of that name"
            raise BundleError(
                f"{bundle.path}: weights don't fit config.json: {name:.100} is {found:.100}, not {wanted}"
            )
    if reference is not None:
        model.encoder = load_encoder(find_encoder(reference.name, reference.revision, sha256=reference.sha256))
    elif isinstance(config, BertGruConfig):
        model = build_model(config)  # Encoders have tables that are in no file.
    # assign: the tensors of the file become the weights, with no random weights made first.
    model.load_state_dict(bundle.weights(), assign=True, strict=reference is None)
    if _shapes(model) != needed:
        raise BundleError(f"{bundle.path}: the encoder that it refers to isn't of the shape that config.json says")
    return model


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
