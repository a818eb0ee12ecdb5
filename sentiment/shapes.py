"""Shapes of models: everything that rebuilding one needs, checked, as a bundle's `config.json` holds it.

Apart from the models so that recipes and flags can be read without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Cell = Literal["rnn", "gru", "lstm"]
Pooling = Literal["last", "max", "concat"]


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


ModelConfig = Annotated[RecurrentConfig | BagConfig, Field(discriminator="kind")]
