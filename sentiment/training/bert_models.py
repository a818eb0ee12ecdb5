"""Training runs of BERT-GRU models: on features that are cached, or computed in each epoch.

Either way the same module is trained, `UpperLayers`, on batches of the same features, from shards that
`sentiment.training.encode` has written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sentiment.data.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import BundleError, ConfigError, DataError
from sentiment.models.bert_gru import BertGruClassifier, check_recipe
from sentiment.models.config import EncoderReference
from sentiment.models.encoders import EncoderSource, find_again, find_encoder, load_encoder, read_config
from sentiment.schema import SPLITS, TRAIN
from sentiment.settings import TrainBertSettings, TrainSettings
from sentiment.tokenizers import EncoderTokenizer
from sentiment.training.feature_cache import FEATURE_DTYPES, EncodedRows, EncodingBatches, FrozenEncoder, Slice
from sentiment.training.loop import Batches
from sentiment.training.recipes import BertRecipe
from sentiment.training.run import Rank, Run


@dataclass(kw_only=True, eq=False, repr=False)
class BertRun(Run):
    """A run of a BERT recipe.

    Attributes:
        recipe: Model and optimizer settings.
        encoder: The encoder, found.
        encoder_config: Its config, as transformers writes it.
        tokenizer: Its tokenizer.
        by_reference: The bundle names the encoder instead of carrying it.
        caches_features: Shards hold features, not token ids.
        shards: Folder with a subfolder of shards for each split.
        slices: What the shards are made of.
        cache_summary: What was decided on caching, for people.
    """

    recipe: BertRecipe
    encoder: EncoderSource
    encoder_config: dict[str, Any]
    tokenizer: EncoderTokenizer
    by_reference: bool = False
    caches_features: bool = False
    shards: str = ""
    slices: list[Slice] = field(default_factory=list)
    cache_summary: str = ""

    @property
    def tokenizer_sha256(self) -> str:
        """What tells its tokenizer from others."""
        return hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()

    @property
    def digests(self) -> dict[str, Any]:
        """The encoder's folder may differ: what is in it counts."""
        return {"encoder": self.encoder.sha256, "tokenizer": self.tokenizer_sha256, "encoder_revision": None}

    def prepare(self, settings: TrainSettings) -> None:
        """Write the shards that are missing."""
        from sentiment.training.encode import encode  # imports Ray

        encode(self, settings)

    def load(self, rank: Rank) -> None:
        """Open the shards and build the model."""
        recipe = self.recipe
        self.rank = rank
        self._splits = {split: self._open(split) for split in SPLITS}
        is_cached = self._splits[TRAIN].width is not None
        precision = resolve_precision(self.precision, rank.device)
        if is_cached and self._splits[TRAIN].dtype != FEATURE_DTYPES[precision]:
            raise DataError(
                f"the features in {self.shards} are of another number format than this worker computes in, "
                f"{precision}: machines differ; say which with --precision"
            )
        self._source = find_again(self.encoder)
        config = recipe.config(self.encoder_config, self.tokenizer.pad_id, self.tokenizer.unk_id)
        if self.by_reference:
            reference = EncoderReference(
                name=self.encoder.name, revision=self.encoder.revision, sha256=self.encoder.sha256
            )
            config = config.model_copy(update={"encoder_reference": reference})
        torch.manual_seed(self.seed)
        model = BertGruClassifier(**config.arguments)
        self._encoder_is_loaded = bool(recipe.unfreeze_layers) or not is_cached
        if self._encoder_is_loaded:
            model.encoder = load_encoder(self._source).requires_grad_(False)
        lower, self.model = model.halves(recipe.unfreeze_layers)
        self._frozen = None if is_cached else FrozenEncoder(lower.to(rank.device), rank.device, precision)
        self.config, self.full_model = config, model
        self.details = {
            "encoder": self.encoder.name,
            "encoder_revision": self.encoder.revision,
            "encoder_sha256": self.encoder.sha256,
            "features": "kept" if is_cached else "computed on the way",
        }

    def _open(self, split: str) -> EncodedRows:
        rows = EncodedRows(Path(self.shards, split))
        expected = PreparedData(self.data).manifest["splits"][split]["rows"]
        if len(rows) != expected:
            raise DataError(
                f"{self.shards}/{split} holds {len(rows):,} of {expected:,} rows: --features (or --output) must "
                "be a folder that all nodes see"
            )
        return rows

    def rows(self, split: str) -> EncodedRows:
        """Features or token ids of a split."""
        return self._splits[split]

    def batches(self, split: str, max_length: int | None = None) -> Batches:
        """This process's share of a split, as features."""
        batches = super().batches(split, max_length)
        return EncodingBatches(batches, self._frozen) if self._frozen else batches

    def weights(self) -> dict[str, Tensor]:
        """All of them, or by reference those that were trained."""
        assert isinstance(self.full_model, BertGruClassifier)
        if self.by_reference:
            trained = {id(weight) for weight in self.model.parameters()}
            return {name: weight.cpu() for name, weight in self.full_model.named_parameters() if id(weight) in trained}
        if not self._encoder_is_loaded:
            self.full_model.encoder = load_encoder(self._source).requires_grad_(False)
        return super().weights()


def plan_run(recipe: BertRecipe, data: str, settings: TrainBertSettings) -> BertRun:
    """Find the encoder and see that it can do what the recipe asks.

    Args:
        recipe: With its overrides applied.
        data: Folder that `jobs/prepare.py` wrote.
        settings: Section `train_bert`.

    Raises:
        SentimentError: It can't be found or loaded, or can't do it.
    """
    encoder = find_encoder(recipe.encoder, recipe.encoder_revision)
    config = read_config(encoder)
    check_recipe(config, recipe.unfreeze_layers, recipe.max_length)
    load_encoder(encoder)  # Actors and workers do too; here a damaged one is one clear line.
    tokenizer = EncoderTokenizer.from_pretrained(encoder.path)
    if recipe.max_length <= tokenizer.num_special_tokens:
        raise ConfigError(
            f"--max-length {recipe.max_length}: {tokenizer.num_special_tokens} tokens stand around every text"
        )
    if tokenizer.vocabulary_size > config["vocab_size"]:
        raise BundleError(
            f"encoder {encoder.name!r}: its tokenizer has {tokenizer.vocabulary_size} ids, its embedding "
            f"{config['vocab_size']}; save or copy both again"
        )
    return BertRun(
        recipe=recipe,
        data=data,
        seed=settings.seed,
        precision=settings.precision,
        checkpoint_steps=settings.checkpoint_steps,
        max_micro_batch_tokens=settings.pass_tokens,
        encoder=encoder,
        encoder_config=config,
        tokenizer=tokenizer,
        by_reference=settings.encoder_by_reference,
    )
