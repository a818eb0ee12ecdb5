"""Training runs of BERT-GRU models: on features that are kept, or computed on the way.

Either way the same module is trained, `UpperLayers`, on batches of the same features; `jobs.ray_encoding` has written
the shards that they come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.training_run import EVALUATION_BATCH, Place, Run, Setup
from sentiment.batching import LengthBucketedBatches
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.encoder_tokenizer import EncoderTokenizer
from sentiment.encoders import EncoderSource, find_again, find_encoder, load_encoder, read_config
from sentiment.errors import BundleError, ConfigError, DataError
from sentiment.features import FEATURE_DTYPES, EncodedOnTheWay, EncodedRows, FrozenEncoder
from sentiment.models import build_model
from sentiment.models.bert_gru import BertGruClassifier, check_recipe
from sentiment.optimisation import Optimisation
from sentiment.recipe import BertRecipe
from sentiment.schema import SPLITS, TRAIN
from sentiment.settings import TrainBertSettings
from sentiment.shapes import BertGruConfig, EncoderReference

# Of `UpperLayers`: the encoder's layers that are trained.
_FINETUNED = "layers."


@dataclass(frozen=True, kw_only=True)
class BertRun(Run):
    """A run of a BERT recipe.

    Attributes:
        recipe: Model and optimiser settings.
        encoder: The encoder, found.
        pass_tokens: Padded tokens of a training pass.
        by_reference: The bundle names the encoder instead of carrying it.
        encoder_config: Its config, as transformers writes it.
        tokenizer: Its tokenizer.
        shards: Folder with a subfolder of shards for each split.
    """

    recipe: BertRecipe
    encoder: EncoderSource
    encoder_config: dict[str, Any]
    tokenizer: EncoderTokenizer
    pass_tokens: int
    by_reference: bool = False
    shards: str = ""

    @property
    def tokenizer_sha256(self) -> str:
        """What tells its tokenizer from others."""
        return hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """The encoder's folder may differ: what is in it counts."""
        made_of = {"encoder": self.encoder.sha256, "tokenizer": self.tokenizer_sha256, "encoder_revision": None}
        return self._identity(made_of)

    @property
    def optimisation(self) -> Optimisation:
        """How the weights are fitted."""
        return dataclasses.replace(
            super().optimisation,
            finetuned=_FINETUNED,
            finetuned_learning_rate=self.recipe.encoder_learning_rate,
            finetuned_warmup_share=self.recipe.encoder_warmup_share,
        )

    def set_up(self, place: Place) -> BertSetup:
        """Open the shards and build the model."""
        return BertSetup(self, place)


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
        encoder=encoder,
        encoder_config=config,
        tokenizer=tokenizer,
        pass_tokens=settings.pass_tokens,
        by_reference=settings.encoder_by_reference,
    )


class BertSetup(Setup):
    """A BERT-GRU model and its data in one process."""

    def __init__(self, run: BertRun, place: Place) -> None:
        self._run, self._place = run, place
        self._source = find_again(run.encoder)
        self.tokenizer = run.tokenizer
        self.shape = self._shape()
        self._splits = {split: self._rows(split) for split in SPLITS}
        are_kept = self._splits[TRAIN].width is not None
        precision = resolve_precision(run.precision, place.device)
        if are_kept and self._splits[TRAIN].dtype != FEATURE_DTYPES[precision]:
            raise DataError(
                f"the features in {run.shards} are of another number format than this worker computes in, {precision}: "
                "machines differ; say which with --precision"
            )
        torch.manual_seed(run.seed)
        model = build_model(self.shape)
        assert isinstance(model, BertGruClassifier)
        self.whole: BertGruClassifier = model
        self._is_loaded = False
        if run.recipe.unfreeze_layers or not are_kept:
            self._load_encoder()
        lower, self.model = model.halves(run.recipe.unfreeze_layers)
        self._encoder = None if are_kept else FrozenEncoder(lower.to(place.device), place.device, precision)
        self.facts = {
            "encoder": run.encoder.name,
            "encoder_revision": run.encoder.revision,
            "encoder_sha256": run.encoder.sha256,
            "features": "kept" if are_kept else "computed on the way",
        }

    def _shape(self) -> BertGruConfig:
        run, source, tokenizer = self._run, self._run.encoder, self.tokenizer
        shape = run.recipe.model(run.encoder_config, tokenizer.pad_id, tokenizer.unk_id)
        if not run.by_reference:
            return shape
        reference = EncoderReference(name=source.name, revision=source.revision, sha256=source.sha256)
        return shape.model_copy(update={"encoder_reference": reference})

    def _rows(self, split: str) -> EncodedRows:
        rows = EncodedRows(Path(self._run.shards, split))
        expected = PreparedData(self._run.data).manifest["splits"][split]["rows"]
        if len(rows) != expected:
            raise DataError(
                f"{self._run.shards}/{split} holds {len(rows):,} of {expected:,} rows: --features (or --output) must "
                "be a folder that all nodes see"
            )
        return rows

    def _load_encoder(self) -> None:
        self.whole.encoder = load_encoder(self._source).requires_grad_(False)
        self._is_loaded = True

    def batches(self, split: str) -> LengthBucketedBatches | EncodedOnTheWay:
        """A process's share of a split, as features."""
        run, place, is_train = self._run, self._place, split == TRAIN
        batches = LengthBucketedBatches(
            self._splits[split],
            batch_size=run.recipe.batch_size if is_train else EVALUATION_BATCH * place.world_size,
            pad_id=self.tokenizer.pad_id,
            max_length=run.recipe.max_length,
            shuffle=is_train,
            seed=run.seed,
            rank=place.rank,
            world_size=place.world_size,
            pass_tokens=run.pass_tokens,
        )
        return EncodedOnTheWay(batches, self._encoder) if self._encoder else batches

    def weights(self) -> dict[str, Tensor]:
        """All of them, or by reference those that were trained."""
        if not self._is_loaded and not self._run.by_reference:
            self._load_encoder()
        weights = {name: weight.cpu() for name, weight in self.whole.state_dict().items()}
        if not self._run.by_reference:
            return weights
        trained = {id(weight) for weight in self.model.parameters()}
        return {name: weights[name] for name, weight in self.whole.named_parameters() if id(weight) in trained}
