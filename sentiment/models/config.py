"""What rebuilds a model: its hyperparameters and sizes, checked, as a bundle's `config.json` holds them.

A hyperparameter is declared once, with its range, default and text: recipes, and with them flags, inherit the fields.
Importing this needs no torch. Sizes have upper limits, because a config may come from a stranger: what exceeds them
would be a mistake, or take the machine's memory.

How to add a model: docs/extending.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sentiment.errors import ConfigError, brief

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Cell = Literal["rnn", "gru", "lstm"]
Pooling = Literal["last", "max", "concat"]
Truncation = Literal["head", "head+tail"]

# Rows of an embedding: XLM-V, which has the most of all encoders, has 902 thousand.
MAX_VOCABULARY = 1 << 20
# Of a vector or a state: those of the widest encoder have 4,096 numbers.
MAX_WIDTH = 1 << 14
MAX_LENGTH = 1 << 14
VocabularySize = Annotated[int, Field(gt=1, le=MAX_VOCABULARY)]
Width = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
Layers = Annotated[int, Field(gt=0, le=64)]
# Tokens of a text that are read.
Length = Annotated[int, Field(gt=0, le=MAX_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=MAX_VOCABULARY)]


class Hyperparameters(BaseModel):
    """Hyperparameters of all models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dropout: float = Field(ge=0, lt=1, description="share of values set to zero while training")


class WordHyperparameters(Hyperparameters):
    """Hyperparameters of models on word vectors."""

    # PyTorch's own default of 1 drowns what an LSTM learns in its first epochs; 0.1 is about the size of its weights.
    embedding_std: float = Field(
        ge=0, le=1e3, description="standard deviation of the initial vectors of words without a pretrained one"
    )
    frozen_embedding: bool = Field(False, description="don't train the word vectors")
    # So that the vector of unknown words is trained, and no single word is relied on (Iyyer et al. 2015).
    word_dropout: float = Field(0.0, ge=0, lt=1, description="share of words replaced by <unk> while training")
    num_logits: Literal[1, 2] = Field(1, description="outputs of the last layer: 1, or 2, one for each class")


class RecurrenceHyperparameters(Hyperparameters):
    """Hyperparameters of models with a stack of recurrent layers."""

    hidden_dim: Width = Field(description="size of a recurrent layer's state, per direction (recurrent models)")
    num_layers: Layers = Field(description="number of stacked recurrent layers")
    bidirectional: bool = Field(description="read the text in both directions")
    pooling: Pooling = Field(
        "last",
        description="states that the last layer gets: last, maximum over the text, or concat: last, maximum, mean",
    )


class RecurrentHyperparameters(WordHyperparameters, RecurrenceHyperparameters):
    """Hyperparameters of a `sentiment.models.rnn.RecurrentClassifier`."""

    cell: Cell = Field("lstm", description="kind of recurrent layer; rnn: Elman's, with tanh")
    state_layers: Layers = Field(
        1, description="top recurrent layers whose last states the last layer gets (pooling last only)"
    )

    @model_validator(mode="after")
    def _check_states(self) -> Self:
        if self.state_layers > self.num_layers:
            raise ValueError(f"the head can't read {self.state_layers} layers of {self.num_layers}")
        # A field of the config; of a recipe, a property.
        if self.pooling != "last" and (self.state_layers > 1 or getattr(self, "padded_length", False)):
            raise ValueError("state_layers and padded_length go with pooling last")
        return self


class BagHyperparameters(WordHyperparameters):
    """Hyperparameters of a `sentiment.models.bag.BagClassifier`."""

    hidden_dims: tuple[Width, ...] = Field(
        max_length=64, description="sizes of the MLP's hidden layers (bag-of-words models)"
    )


class BertGruHyperparameters(RecurrenceHyperparameters):
    """Hyperparameters of a `sentiment.models.bert_gru.BertGruClassifier`."""

    unfreeze_layers: int = Field(
        0, ge=0, le=128, description="number of the encoder's top layers that are trained; 0: none"
    )
    truncation: Truncation = Field(
        "head", description="what is read of texts longer than max_length: the beginning, or beginning and end"
    )


class _WordConfig(WordHyperparameters):
    """A word-level model for one vocabulary, special tokens included; `module` names its class.

    pad_id is the token that fills short rows, whose vector is zero and stays so; unk_id stands for unknown words.
    """

    module: ClassVar[str]

    vocabulary_size: VocabularySize
    embedding_dim: Width
    pad_id: TokenId
    unk_id: TokenId

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        if max(self.pad_id, self.unk_id) >= self.vocabulary_size:
            raise ValueError(f"pad_id and unk_id must be below vocabulary_size, {self.vocabulary_size}")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the model's class."""
        return self.model_dump(exclude={"kind"})


class RecurrentConfig(RecurrentHyperparameters, _WordConfig):
    """A recurrent classifier; padded_length: rows are filled up to it, and their padding is read (0: never)."""

    module = "sentiment.models.rnn:RecurrentClassifier"

    kind: Literal["rnn"] = "rnn"
    padded_length: int = Field(0, ge=0, le=MAX_LENGTH)


class BagConfig(BagHyperparameters, _WordConfig):
    """A bag of word vectors."""

    module = "sentiment.models.bag:BagClassifier"

    kind: Literal["bag"] = "bag"


class EncoderReference(BaseModel):
    """Where a pretrained encoder is found, and how to know that it is the one.

    Attributes:
        name: Hub id, folder, or "minilm".
        revision: Commit on the hub.
        sha256: Over its config and weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=4096)
    revision: str | None = Field(None, min_length=1, max_length=255)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class BertGruConfig(BertGruHyperparameters):
    """A BERT-GRU on one encoder, and how texts are cut for it.

    Attributes:
        encoder: The encoder's own `config.json`, as transformers has it.
        encoder_reference: Where its lower layers are found, if their weights aren't in the bundle.
        pad_id: Token that fills short rows.
        unk_id: Token that stands for what the tokenizer doesn't know.
    """

    # transformers takes seconds to import, which word-level models needn't pay: hence a name, not the class.
    module: ClassVar[str] = "sentiment.models.bert_gru:BertGruClassifier"

    kind: Literal["bert-gru"] = "bert-gru"
    encoder: dict[str, Any]
    encoder_reference: EncoderReference | None = None
    pad_id: TokenId
    unk_id: TokenId

    @field_validator("encoder")
    @classmethod
    def _check_vocabulary(cls, encoder: dict[str, Any]) -> dict[str, Any]:
        size = encoder.get("vocab_size")
        if not isinstance(size, int) or not 1 < size <= MAX_VOCABULARY:
            raise ValueError(f"its vocab_size must be a number from 2 to {MAX_VOCABULARY:,}")
        return encoder

    @property
    def vocabulary_size(self) -> int:
        """Rows of the encoder's embedding."""
        return int(self.encoder["vocab_size"])

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the model's class."""
        return self.model_dump(include={"encoder", *RecurrenceHyperparameters.model_fields})


WordModelConfig = RecurrentConfig | BagConfig
ModelConfig = Annotated[WordModelConfig | BertGruConfig, Field(discriminator="kind")]


# A pretrained encoder's `config.json` comes from strangers, with the encoder or inside a bundle, and transformers does
# much of what one says: runs code that lies beside it, fetches attention kernels, makes weights of any size. Only what
# decides what a text encoder computes is let through.

# Text encoders in whose states padding has no part, whatever stands beside a text; a test holds each to that. Others
# mix it in (mobilebert, convbert, fnet, nystromformer, yoso), or count their positions in ways of their own.
KINDS = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta"),
    *("xlm-roberta",),
)
ACCEPTED = f"accepted are {', '.join(KINDS)}"

# Settings that transformers' DeBERTa reads though its config class doesn't name them.
_UNNAMED = (
    *("attention_head_size", "conv_act", "conv_groups", "conv_kernel_size", "embedding_size", "norm_rel_ebd"),
    *("position_buckets", "share_att_key", "talking_head"),
)
# What doesn't say what the encoder computes: where it is from, number format, labels of a head that isn't used, how
# memory is saved, and how weights begin that come from a file anyway.
_IRRELEVANT = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id"),
    *("problem_type", "chunk_size_feed_forward", "sinusoidal_pos_embds", "model_type"),
)
# Layers are made one by one.
_MAX_COUNTS = {"num_hidden_layers": 128, "n_layers": 128, "num_hidden_groups": 16, "inner_group_num": 16}


def encoder_config(encoder: dict[str, Any]) -> PretrainedConfig:
    """The config object of an encoder's `config.json`; settings that don't decide what it computes are left out.

    Raises:
        ConfigError: It has code of its own, is another kind of model, asks for sizes beyond all that exist, or
            transformers can't make it.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if not isinstance(encoder, dict):
        raise ConfigError("encoder config: no JSON object")
    if encoder.get("auto_map"):
        raise ConfigError(
            f"encoder config: brings its own code (auto_map), which is never run; {ACCEPTED}; delete auto_map if it is "
            "a plain one of these"
        )
    kind = encoder.get("model_type")
    if kind not in KINDS:
        raise ConfigError(f"encoder config: its model_type is {kind!r:.80}; {ACCEPTED}")
    if encoder.get("is_decoder") or encoder.get("is_encoder_decoder"):
        raise ConfigError(f"encoder config: its model, {kind}, has a decoder; {ACCEPTED}")
    for name, value in encoder.items():
        limit = _MAX_COUNTS.get(name, MAX_VOCABULARY)
        if isinstance(value, int | float) and not abs(value) <= limit:
            raise ConfigError(f"encoder config: {name:.80} is {value!r:.40}; accepted are up to {limit:,}")
    try:
        known = (CONFIG_MAPPING[kind]().to_dict().keys() | {*_UNNAMED}) - {*_IRRELEVANT}
        return AutoConfig.for_model(kind, **{name: value for name, value in encoder.items() if name in known})
    except Exception as error:  # its checks of values raise classes of their own
        raise ConfigError(f"encoder config: {brief(error)}") from error
