"""What a recipe is: model, data and optimiser settings, complete. The named ones are in `sentiment.recipes`.

Each setting can be overridden by a flag of the same name, by `SENTIMENT_TRAIN_…` (`SENTIMENT_TRAIN_BERT_…`) in the
environment, or in `ray_config.yaml`. Imports neither torch nor Ray: flags are made of these classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sentiment.config import describe
from sentiment.errors import ConfigError
from sentiment.shapes import BagConfig, BertGruConfig, Cell, Pooling, RecurrentConfig, Truncation, WordModelConfig


class Recipe(BaseModel):
    """Everything that training needs beside data and machines; what all kinds of models share."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # What a recipe says of itself; the other fields are settings, which can be overridden.
    WORDS: ClassVar[tuple[str, ...]] = ("name", "summary", "dataset", "source", "source_result")

    name: str
    summary: str
    dataset: Literal["imdb", "sentiment140"] = Field(description="data that it is meant for")
    source: str = Field(description="where it is from")
    source_result: str = Field(description="accuracy that the source reports, and on what")
    max_length: int = Field(gt=0, description="tokens of a text that are read; the rest is cut")
    batch_size: int = Field(gt=0, description="rows of a step over all workers")
    epochs: int = Field(gt=0, description="passes over the training rows")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw without weight decay is Adam")
    learning_rate: float = Field(gt=0, description="(peak) learning rate")
    schedule: Literal["constant", "one-cycle"] = Field("constant", description="course of the learning rate")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of all steps that warm up (one-cycle)")
    weight_decay: float = Field(0.0, ge=0, description="weight decay: decoupled (adamw), L2 (sgd)")
    clip_norm: float = Field(1.0, ge=0, description="2-norm that gradients are scaled down to; 0: as they are")

    @property
    def usual_data(self) -> str:
        """Where the data that it is meant for is looked for, if nobody says."""
        return f"runs/{self.dataset}"

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Copy with some settings replaced.

        Raises:
            ConfigError: A value doesn't fit, or this kind of model has no such setting.
        """
        for name in overrides:
            if name not in type(self).model_fields:
                raise ConfigError(f"--{name.replace('_', '-')} is no setting of recipe {self.name}")
        try:
            return type(self).model_validate({**self.model_dump(), **overrides})
        except ValidationError as error:
            raise ConfigError(describe(error)) from error


class WordRecipe(Recipe):
    """A model on word vectors."""

    SHAPE: ClassVar[type[RecurrentConfig | BagConfig]]

    vectors: str | None = Field(
        None, description="pretrained vectors: a file in GloVe's format, a name such as glove.6B.100d, or none"
    )
    embedding_dim: int | None = Field(
        None, gt=0, description="width of a token's vector, unless pretrained ones are wider; none: theirs, or 100"
    )
    embedding_std: float = Field(ge=0, description="spread of what pretrained vectors don't fill")
    vector_scale: float = Field(1.0, gt=0, description="factor on pretrained vectors; fresh ones have embedding_std")
    frozen_embedding: bool = Field(False, description="keep the word vectors as they are")
    subwords: bool = Field(False, description="help word vectors by their character n-grams while training")
    dropout: float = Field(ge=0, lt=1, description="share of values zeroed in training")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="share of tokens replaced by <unk> in training")
    num_logits: Literal[1, 2] = Field(1, description="outputs of the head: one, or one for each class")

    def model(self, vocabulary_size: int, embedding_dim: int, pad_id: int, unk_id: int) -> WordModelConfig:
        """Shape of the recipe's model for a vocabulary and word vectors of a width."""
        fields = self.model_dump(include={*self.SHAPE.model_fields} - {"embedding_dim"})
        sizes = {"vocabulary_size": vocabulary_size, "embedding_dim": embedding_dim}
        config: WordModelConfig = self.SHAPE.model_validate({**fields, **sizes, "pad_id": pad_id, "unk_id": unk_id})
        return config

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Copy with some settings replaced.

        Raises:
            ConfigError: A value doesn't fit, alone or beside the others, or this kind of model has no such setting.
        """
        recipe = super().with_overrides(overrides)
        try:
            # Any vocabulary: the shape knows what doesn't go together, and here it is told before a worker starts.
            recipe.model(vocabulary_size=2, embedding_dim=1, pad_id=1, unk_id=0)
        except ValidationError as error:
            raise ConfigError(describe(error)) from error
        return recipe

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.vectors is None and (self.frozen_embedding or not self.embedding_std):
            raise ValueError("without --vectors they have to be trained: --no-frozen-embedding --embedding-std 0.1")
        if self.frozen_embedding and self.subwords:
            raise ValueError("--subwords trains word vectors, --frozen-embedding keeps them: one of both")
        return self

    @field_validator("vectors", "embedding_dim", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("num_logits", mode="before")
    @classmethod
    def _number_from_a_flag(cls, value: Any) -> Any:
        return int(value) if value in ("1", "2") else value


class RecurrentRecipe(WordRecipe):
    """A recurrent classifier, `sentiment.models.rnn`."""

    SHAPE = RecurrentConfig

    cell: Cell = Field("lstm", description="recurrent cell; rnn is Elman's, with tanh")
    hidden_dim: int = Field(gt=0, description="width of one direction's state, for the recurrent recipes")
    num_layers: int = Field(gt=0, description="stacked recurrent layers")
    bidirectional: bool = Field(description="read the text from both ends")
    pooling: Pooling = Field(
        "last", description="what the head sees: last state, maximum, or concat of last, maximum, mean"
    )
    state_layers: int = Field(1, gt=0, description="layers whose last states the head sees (pooling last)")
    reads_padding: bool = Field(
        False, description="fill texts up to max_length and read the padding too (pooling last)"
    )

    def model(self, vocabulary_size: int, embedding_dim: int, pad_id: int, unk_id: int) -> RecurrentConfig:
        """Shape of the recipe's model for a vocabulary."""
        config = super().model(vocabulary_size, embedding_dim, pad_id, unk_id)
        padded_length = self.max_length if self.reads_padding else 0
        return RecurrentConfig.model_validate({**config.model_dump(), "padded_length": padded_length})


class BagRecipe(WordRecipe):
    """A bag of word vectors, `sentiment.models.bag`."""

    SHAPE = BagConfig

    hidden_dims: tuple[int, ...] = Field(description="widths of the MLP's layers, for the recipes of bags of words")

    @field_validator("hidden_dims", mode="before")
    @classmethod
    def _list_from_the_environment(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            raise ValueError("a list is written as JSON, [30, 10]") from None


class BertRecipe(Recipe):
    """A GRU on a pretrained encoder, `sentiment.models.bert_gru`."""

    encoder: str = Field(
        description="pretrained BERT-family encoder: a hub id, a folder, or minilm (extra of that name)"
    )
    encoder_revision: str | None = Field(None, description="commit or tag on the hub; none: the newest")
    unfreeze_layers: int = Field(0, ge=0, description="top layers of the encoder to train too")
    encoder_learning_rate: float = Field(5e-5, gt=0, description="(peak) learning rate of those layers")
    encoder_warmup_share: float = Field(0.1, ge=0, lt=1, description="share of all steps in which theirs warms up")
    truncation: Truncation = Field("head", description="what is read of texts longer than max_length")
    hidden_dim: int = Field(256, gt=0, description="width of one direction's state")
    num_layers: int = Field(2, gt=0, description="stacked GRU layers")
    bidirectional: bool = Field(True, description="read the text from both ends")
    dropout: float = Field(0.25, ge=0, lt=1, description="share of values zeroed in training")
    pooling: Pooling = Field("last", description="what the head sees: last state, maximum, or last, maximum and mean")

    @field_validator("encoder_revision", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    def model(self, encoder: dict[str, Any], pad_id: int, unk_id: int) -> BertGruConfig:
        """Shape of the recipe's model on an encoder."""
        fields = self.model_dump(include={*BertGruConfig.model_fields} - {"encoder"})
        return BertGruConfig.model_validate({**fields, "encoder": encoder, "pad_id": pad_id, "unk_id": unk_id})
