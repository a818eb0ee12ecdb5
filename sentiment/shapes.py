"""Shapes of models: everything that rebuilding one needs, checked, as a bundle's `config.json` holds it.

Apart from the models so that recipes and flags can be read without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Cell = Literal["rnn", "gru", "lstm"]
Pooling = Literal["last", "max", "concat"]
Truncation = Literal["head", "head+tail"]


class _Shape(BaseModel):
    """What all word-level models have: a table of word vectors at the bottom, a head on top."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary_size: int = Field(gt=1)
    embedding_dim: int = Field(gt=0)
    embedding_std: float = Field(ge=0)
    frozen_embedding: bool = False
    dropout: float = Field(ge=0, lt=1)
    word_dropout: float = Field(ge=0, lt=1)
    num_logits: Literal[1, 2] = 1
    pad_id: int = Field(ge=0)
    unk_id: int = Field(ge=0)


class RecurrentConfig(_Shape):
    """Shape of a `sentiment.models.rnn.RecurrentClassifier`."""

    kind: Literal["rnn"] = "rnn"
    cell: Cell = "lstm"
    hidden_dim: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    bidirectional: bool
    pooling: Pooling = "last"
    state_layers: int = Field(1, gt=0)
    padded_length: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _states_are_there(self) -> Self:
        if self.state_layers > self.num_layers:
            raise ValueError(f"the head can't read {self.state_layers} layers of {self.num_layers}")
        if self.pooling != "last" and (self.state_layers > 1 or self.padded_length):
            raise ValueError("state_layers and padded_length go with pooling last")
        return self


class BagConfig(_Shape):
    """Shape of a `sentiment.models.bag.BagClassifier`."""

    kind: Literal["bag"] = "bag"
    hidden_dims: tuple[Annotated[int, Field(gt=0)], ...]


class EncoderReference(BaseModel):
    """Where a pretrained encoder is found, and how to know that it is the one.

    Attributes:
        name: Hub id, folder, or "minilm".
        revision: Commit on the hub.
        sha256: Over its config and weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    revision: str | None = None
    sha256: str


class BertGruConfig(BaseModel):
    """Shape of a `sentiment.models.bert_gru.BertGruClassifier`, and how texts are cut for it.

    Attributes:
        encoder: The encoder's own `config.json`, as transformers has it.
        encoder_reference: Where its lower layers are found, if their weights aren't in the bundle.
        unfreeze_layers: Top layers of the encoder that were trained: always in the bundle.
        truncation: "head", or "head+tail": which part of a long text is read.
        pad_id: Token that fills short rows.
        unk_id: Token that stands for what the tokenizer doesn't know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bert-gru"] = "bert-gru"
    encoder: dict[str, Any]
    encoder_reference: EncoderReference | None = None
    unfreeze_layers: int = Field(0, ge=0)
    hidden_dim: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    bidirectional: bool
    dropout: float = Field(ge=0, lt=1)
    pooling: Pooling = "last"
    truncation: Truncation = "head"
    pad_id: int = Field(ge=0)
    unk_id: int = Field(ge=0)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the encoder's embedding."""
        return int(self.encoder["vocab_size"])


WordModelConfig = RecurrentConfig | BagConfig
ModelConfig = Annotated[RecurrentConfig | BagConfig | BertGruConfig, Field(discriminator="kind")]
