"""Recipes: the complete settings of a training: model, word vectors or encoder, and optimizer.

The named ones are the models of two sets of notebooks, bentrevett/pytorch-sentiment-analysis and a course notebook
(APS360), with the notebooks' settings, and this project's own. `source_result` is the accuracy that a notebook prints;
what the same recipe reaches here is in docs/results/reproduction.md and docs/results/bert_gru.md.

A recipe's fields are declared once, here or in `sentiment.models.config`: each can be overridden by a flag of the same
name, by `SENTIMENT_TRAIN_…` (`SENTIMENT_TRAIN_BERT_…`) in the environment, or in `ray_config.yaml`. Imports neither
torch nor Ray, since flags are made of these classes.

All recipes differ from the notebooks in this: padding is never read (except by `rnn`, which shows what that costs), a
text is read up to `max_length` tokens, words are split as GloVe's (the notebooks use spaCy or white space), validation
rows are 5 % of the training rows by hash, forward passes are in bfloat16 where the hardware has it, and Adam is AdamW
without weight decay, which is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sentiment.errors import ConfigError, describe, unknown
from sentiment.models.config import (
    MAX_WIDTH,
    BagConfig,
    BagHyperparameters,
    BertGruConfig,
    BertGruHyperparameters,
    Length,
    RecurrentConfig,
    RecurrentHyperparameters,
    WordHyperparameters,
    WordModelConfig,
)


class OptimizerConfig(BaseModel):
    """How weights are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # Weights whose names begin so are pretrained and fine-tuned, with a learning rate of their own; empty: none are.
    finetuned_prefix: ClassVar[str] = ""

    epochs: int = Field(gt=0, description="passes over the training rows")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="adamw is Adam if weight_decay is 0; sgd has no momentum"
    )
    learning_rate: float = Field(gt=0, description="learning rate; with schedule one-cycle, its peak")
    schedule: Literal["constant", "one-cycle"] = Field(
        "constant",
        description="how the learning rate changes; one-cycle: linear warm-up, then cosine decay to 1 % of the peak",
    )
    warmup_share: float = Field(
        0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises to its peak (one-cycle)"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay: decoupled with adamw, an L2 penalty with sgd")
    clip_norm: float = Field(
        1.0, ge=0, description="maximum 2-norm of the gradients; larger ones are scaled down to it; 0: no limit"
    )

    def peak_and_warmup(self, *, finetuned: bool) -> tuple[float, float]:
        """Peak learning rate, and share of all steps that warm up, of weights that are fine-tuned or of all others."""
        return self.learning_rate, self.warmup_share


class Recipe(OptimizerConfig):
    """All settings of a training except data and machines; here those that all kinds of models share."""

    # Fields that describe a recipe; the others are settings, which can be overridden.
    WORDS: ClassVar[tuple[str, ...]] = ("name", "summary", "dataset", "source", "source_result")

    name: str
    summary: str
    dataset: Literal["imdb", "sentiment140"] = Field(description="data that it is meant for")
    source: str = Field(description="where it is from")
    source_result: str = Field(description="accuracy that the source reports, and on what")
    max_length: Length = Field(description="maximum tokens read of a text; the rest is ignored")
    batch_size: int = Field(gt=0, description="rows per optimizer step, over all workers")

    def variant(self, name: str, summary: str, **changes: Any) -> Self:
        """A recipe with another name that differs from this one in some fields."""
        return self.model_copy(update={"name": name, "summary": summary, **changes})

    @property
    def usual_data(self) -> str:
        """Folder of the data that the recipe is meant for, if no other is given."""
        return f"runs/{self.dataset}"

    @property
    def settings(self) -> dict[str, Any]:
        """All fields that decide what is trained, ready for JSON."""
        return self.model_dump(mode="json", exclude={*self.WORDS})

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Copy with some settings replaced.

        Raises:
            ConfigError: A value doesn't fit, alone or beside the others, or this kind of model has no such setting.
        """
        for name in overrides:
            if name not in type(self).model_fields:
                raise ConfigError(f"--{name.replace('_', '-')} is no setting of recipe {self.name}")
        try:
            return type(self).model_validate({**self.model_dump(), **overrides})
        except ValidationError as error:
            raise ConfigError(describe(error)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _parse_text(cls, value: Any, info: ValidationInfo) -> Any:
        """What pydantic doesn't read from a flag's or variable's text: none, lists, and choices of numbers."""
        if not isinstance(value, str) or info.field_name is None:
            return value
        annotation = cls.model_fields[info.field_name].annotation
        choices = get_args(annotation)
        if value == "none" and NoneType in choices:
            return None
        if get_origin(annotation) is Literal:
            return next((choice for choice in choices if str(choice) == value), value)
        if get_origin(annotation) is not tuple:
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            raise ValueError("a list is written as JSON, [30, 10]") from None


class WordRecipe(WordHyperparameters, Recipe):
    """A model on word vectors."""

    config_class: ClassVar[type[WordModelConfig]]

    vectors: str | None = Field(
        None,
        description="pretrained word vectors: a file in GloVe's format, a name such as glove.6B.100d, or none",
    )
    embedding_dim: int | None = Field(
        None,
        gt=0,
        le=MAX_WIDTH,
        description="size of a word's vector, unless pretrained ones are larger; none: their size, or 100 without them",
    )
    vector_scale: float = Field(1.0, gt=0, description="factor that pretrained word vectors are multiplied by")
    subwords: bool = Field(
        False, description="train vectors of character n-grams too, which are added to their words' vectors"
    )

    def config(self, vocabulary_size: int, embedding_dim: int, pad_id: int, unk_id: int) -> WordModelConfig:
        """Config of the recipe's model for a vocabulary and word vectors of a width."""
        fields = {name: getattr(self, name) for name in self.config_class.model_fields if hasattr(self, name)}
        sizes = {"vocabulary_size": vocabulary_size, "embedding_dim": embedding_dim}
        config: WordModelConfig = self.config_class(**{**fields, **sizes, "pad_id": pad_id, "unk_id": unk_id})
        return config

    @model_validator(mode="after")
    def _check_embedding(self) -> Self:
        if self.vectors is None and (self.frozen_embedding or not self.embedding_std):
            raise ValueError("without --vectors they have to be trained: --no-frozen-embedding --embedding-std 0.1")
        if self.frozen_embedding and self.subwords:
            raise ValueError("--subwords trains word vectors, --frozen-embedding keeps them: one of both")
        return self


class RecurrentRecipe(RecurrentHyperparameters, WordRecipe):
    """A recurrent classifier, `sentiment.models.rnn`."""

    config_class = RecurrentConfig

    reads_padding: bool = Field(
        False, description="pad texts to max_length and let the model read the padding (pooling last only)"
    )

    @property
    def padded_length(self) -> int:
        """Tokens that each text is filled up to; 0: padding is never read."""
        return self.max_length if self.reads_padding else 0


class BagRecipe(BagHyperparameters, WordRecipe):
    """A bag of word vectors, `sentiment.models.bag`."""

    config_class = BagConfig


class BertRecipe(BertGruHyperparameters, Recipe):
    """A GRU on a pretrained encoder, `sentiment.models.bert_gru`."""

    # The encoder's top layers, as `sentiment.models.bert_gru.UpperLayers` calls them.
    finetuned_prefix = "layers."

    encoder: str = Field(
        description="pretrained BERT-family encoder: a Hugging Face id, a folder, or minilm (needs the extra minilm)"
    )
    encoder_revision: str | None = Field(
        None, description="commit or tag of the encoder on the Hugging Face hub; none: the newest"
    )
    encoder_learning_rate: float = Field(
        5e-5, gt=0, description="peak learning rate of the encoder's trained layers (unfreeze_layers)"
    )
    encoder_warmup_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the steps in which encoder_learning_rate rises to its peak, with any schedule",
    )

    def peak_and_warmup(self, *, finetuned: bool) -> tuple[float, float]:
        """As for all recipes; the encoder's layers have a rate and warm-up of their own."""
        if finetuned:
            return self.encoder_learning_rate, self.encoder_warmup_share
        return super().peak_and_warmup(finetuned=False)

    def config(self, encoder: dict[str, Any], pad_id: int, unk_id: int) -> BertGruConfig:
        """Config of the recipe's model on an encoder, whose own `config.json` is given."""
        shared = {name: getattr(self, name) for name in BertGruHyperparameters.model_fields}
        return BertGruConfig(**shared, encoder=encoder, pad_id=pad_id, unk_id=unk_id)


_BENTREVETT = "bentrevett/pytorch-sentiment-analysis"
_APS360 = "course notebook (University of Toronto, APS360)"

# "Simple Sentiment Analysis" stays at chance: its state is read after the padding, where a tanh network has forgotten
# the text, and plain SGD at 1e-3 hardly changes the weights. The notebook pads to the longest row of a batch, this
# recipe to `max_length`: a text's score must not depend on its neighbors.
RNN = RecurrentRecipe(
    name="rnn",
    summary="Elman RNN that reads the padding too and so hardly learns; compare rnn-fixed",
    dataset="imdb",
    source=f"{_BENTREVETT}, 1 Simple Sentiment Analysis",
    source_result="45.5 % (IMDB test)",
    embedding_dim=100,
    embedding_std=1.0,
    cell="rnn",
    hidden_dim=256,
    num_layers=1,
    bidirectional=False,
    reads_padding=True,
    dropout=0.0,
    max_length=512,
    batch_size=64,
    epochs=5,
    optimizer="sgd",
    learning_rate=1e-3,
    clip_norm=0.0,
)

# The same network, read at the last real token and trained with Adam, is right on 75.0 % of the test reviews, not on
# half of them. A falling learning rate makes it 77.2 %, and initial vectors with a standard deviation of 0.1 instead
# of 1 make it 81.4 %. Gradients of a tanh network over hundreds of steps explode now and then, hence the clipping.
RNN_FIXED = RNN.variant(
    "rnn-fixed",
    "Elman RNN, one layer, read at the text's last word and trained with Adam",
    source=f"{_BENTREVETT}, 1 Simple Sentiment Analysis, corrected",
    source_result="–",
    reads_padding=False,
    embedding_std=0.1,
    optimizer="adamw",
    schedule="one-cycle",
    clip_norm=1.0,
)

# "Upgraded Sentiment Analysis": two-layer bidirectional LSTM on GloVe 100d. The notebook's reads padding, this one
# doesn't, so it equals `bilstm-packed`, and jobs/reproduce.py trains it once for both.
BILSTM = RecurrentRecipe(
    name="bilstm",
    summary="two-layer bidirectional LSTM on GloVe word vectors",
    dataset="imdb",
    source=f"{_BENTREVETT}, 2 Upgraded Sentiment Analysis",
    source_result="87.40 % (IMDB test)",
    vectors="glove.6B.100d",
    embedding_std=1.0,
    cell="lstm",
    hidden_dim=256,
    num_layers=2,
    bidirectional=True,
    dropout=0.5,
    max_length=512,
    batch_size=64,
    epochs=5,
    learning_rate=1e-3,
    clip_norm=0.0,
)

BILSTM_PACKED = BILSTM.variant(
    "bilstm-packed",
    "same model as bilstm; stands for the source's variant with packed sequences",
    source=f"{_BENTREVETT}, 2 Upgraded Sentiment Analysis, packed",
    source_result="84.79 % (IMDB test)",
)

LSTM = BILSTM.variant(
    "lstm",
    "one-layer LSTM, left to right, on GloVe word vectors",
    source=f"{_BENTREVETT}, one layer, one direction",
    source_result="–",
    num_layers=1,
    bidirectional=False,
)

# The source prints 3,393,641 parameters for two layers in one direction. That is 25,002 × 100 word vectors, 892,928 for
# the two layers, and a last layer of 512 + 1: sized for two directions, it is fed `cat(hidden[-2], hidden[-1])`, which
# without a backward direction are the last states of layer 1 and layer 2. So the head reads both layers, and so does
# ours. (A head on the upper layer alone makes 3,393,385.)
MULTILAYER_LSTM = BILSTM.variant(
    "multilayer-lstm",
    "two-layer LSTM, left to right, on GloVe word vectors; the last layer reads both",
    source=f"{_BENTREVETT}, two layers, one direction",
    source_result="83.98 % (IMDB test)",
    bidirectional=False,
    state_layers=2,
)

BIGRU = BILSTM.variant(
    "bigru",
    "two-layer bidirectional GRU on GloVe word vectors",
    source=f"{_BENTREVETT}, GRU in place of LSTM",
    source_result="88.95 % (IMDB test; its LSTM twin 84.36 %)",
    cell="gru",
)

# The notebook leaves out words that GloVe doesn't have: a zero vector does the same to a sum.
GLOVE_MLP = BagRecipe(
    name="glove-mlp",
    summary="sum of fixed GloVe word vectors, then a three-layer MLP; ignores the order of words",
    dataset="sentiment140",
    source=f"{_APS360}, GloVe embeddings and an MLP",
    source_result="67.7 % (Sentiment140 validation)",
    vectors="glove.6B.50d",
    embedding_std=0.0,
    frozen_embedding=True,
    hidden_dims=(30, 10),
    num_logits=2,
    dropout=0.0,
    max_length=256,
    batch_size=64,
    epochs=20,
    learning_rate=1e-3,
    clip_norm=0.0,
)

# The notebook draws batches of exactly one length; ours are of nearly one length and exact whatever the length is. It
# has hidden 50 and 100, takes each 29th tweet and skips words that GloVe doesn't have, which are zeros here.
TWEET_RNN = RecurrentRecipe(
    name="tweet-rnn",
    summary="Elman RNN on fixed GloVe word vectors, with one output for each class",
    dataset="sentiment140",
    source=f"{_APS360}, recurrent network on tweets",
    source_result="67.7 and 68.2 % (Sentiment140 validation)",
    vectors="glove.6B.50d",
    embedding_std=0.0,
    frozen_embedding=True,
    cell="rnn",
    hidden_dim=100,
    num_layers=1,
    bidirectional=False,
    num_logits=2,
    dropout=0.0,
    max_length=256,
    batch_size=64,
    epochs=20,
    learning_rate=2e-4,
    clip_norm=0.0,
)

# This project's own for tweets, the default of `sentiment train`. The layers are the notebook's.
TWEETS = BILSTM.variant(
    "tweets",
    "recommended for tweets, the default: two-layer bidirectional LSTM; needs no download",
    dataset="sentiment140",
    source="this project",
    source_result="–",
    vectors=None,
    embedding_dim=100,
    embedding_std=0.1,
    subwords=True,
    word_dropout=0.1,
    pooling="concat",
    max_length=256,
    batch_size=128,
    epochs=3,
    learning_rate=2e-3,
    schedule="one-cycle",
    clip_norm=1.0,
)

# At their own size GloVe's vectors drown the n-grams' (0.3 points).
TWEETS_GLOVE = TWEETS.variant(
    "tweets-glove",
    "two-layer bidirectional LSTM for tweets, on GloVe's word vectors from Twitter",
    vectors="glove.twitter.27B.100d",
    vector_scale=0.5,
)

# This project's own for long texts: a quarter of the cost of `bilstm`. One narrow layer is enough where the head sees
# the maximum and the mean over the whole review; the last state alone has forgotten most of it. Character n-grams,
# worth half a point on tweets, gain nothing here.
REVIEWS = TWEETS.variant(
    "reviews",
    "recommended for reviews and other long texts: one-layer bidirectional LSTM on GloVe word vectors",
    dataset="imdb",
    vectors="glove.6B.100d",
    subwords=False,
    hidden_dim=128,
    num_layers=1,
    max_length=512,
    batch_size=64,
)

# "Transformers for Sentiment Analysis". The notebook's encoder drops out values while training although it is frozen;
# ours doesn't, so that its features need to be computed only once. The notebook reads 512 tokens, from the start.
BERT_GRU = BertRecipe(
    name="bert-gru",
    summary="two-layer bidirectional GRU on a frozen bert-base-uncased encoder",
    dataset="imdb",
    source="bentrevett/pytorch-sentiment-analysis, 6 Transformers for Sentiment Analysis",
    source_result="91.40 % (IMDB test)",
    encoder="bert-base-uncased",
    hidden_dim=256,
    num_layers=2,
    bidirectional=True,
    dropout=0.25,
    max_length=512,
    batch_size=128,
    epochs=2,
    learning_rate=1e-3,
    clip_norm=0.0,
)

# This project's own, on a small encoder: its features of 87,000 tweets take 1.3 GB, of 50,000 reviews 10 GB.
BERT_TWEETS = BERT_GRU.variant(
    "bert-tweets",
    "recommended for tweets: GRU on MiniLM, a small frozen encoder (needs the extra `minilm`)",
    dataset="sentiment140",
    source="this project",
    source_result="–",
    encoder="minilm",
    pooling="concat",
    max_length=128,
    epochs=3,
    learning_rate=2e-3,
    schedule="one-cycle",
    clip_norm=1.0,
)

BERT_TWEETS_TUNED = BERT_TWEETS.variant(
    "bert-tweets-tuned",
    "GRU on MiniLM whose layers are trained too: better than bert-tweets, several times slower",
    unfreeze_layers=6,
    encoder_learning_rate=1e-4,
    learning_rate=1e-3,
    epochs=2,
)

BERT_REVIEWS = BERT_TWEETS.variant(
    "bert-reviews",
    "recommended for reviews: GRU on frozen MiniLM; reads the beginning and the end of a text",
    dataset="imdb",
    max_length=256,
    truncation="head+tail",
    epochs=2,
)

RECIPES: dict[str, WordRecipe] = {
    recipe.name: recipe
    for recipe in (
        *(RNN, RNN_FIXED, LSTM, MULTILAYER_LSTM, BILSTM, BILSTM_PACKED, BIGRU),
        *(GLOVE_MLP, TWEET_RNN),
        *(TWEETS, TWEETS_GLOVE, REVIEWS),
    )
}
BERT_RECIPES: dict[str, BertRecipe] = {
    recipe.name: recipe for recipe in (BERT_GRU, BERT_TWEETS, BERT_TWEETS_TUNED, BERT_REVIEWS)
}


def get_recipe(name: str) -> WordRecipe:
    """Look a recipe on word vectors up.

    Raises:
        ConfigError: There is none of that name; the message names the near ones.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES, "sentiment/training/recipes.py")
    return RECIPES[name]


def get_bert_recipe(name: str) -> BertRecipe:
    """Look a recipe on a pretrained encoder up.

    Raises:
        ConfigError: There is none of that name; the message names the near ones.
    """
    if name not in BERT_RECIPES:
        raise unknown("recipe", name, BERT_RECIPES, "sentiment/training/recipes.py")
    return BERT_RECIPES[name]


def twin_of(recipe: WordRecipe) -> WordRecipe:
    """The first recipe with the same settings, which gives the same model; the recipe itself if there is no other."""
    return next(
        other
        for other in RECIPES.values()
        if type(other) is type(recipe) and other.dataset == recipe.dataset and other.settings == recipe.settings
    )
