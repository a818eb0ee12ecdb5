"""Shapes of models: everything that rebuilding one needs, checked, as a bundle's `config.json` holds it.

Apart from the models so that recipes and flags can be read without importing torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RecurrentConfig(BaseModel):
    """Shape of a `RecurrentClassifier`; a bundle's `config.json` holds one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["rnn"] = "rnn"
    vocabulary_size: int = Field(gt=1)
    embedding_dim: int = Field(gt=0)
    embedding_std: float = Field(gt=0)
    hidden_dim: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    bidirectional: bool
    dropout: float = Field(ge=0, lt=1)
    word_dropout: float = Field(ge=0, lt=1)
    pad_id: int = Field(ge=0)
    unk_id: int = Field(ge=0)


ModelConfig = RecurrentConfig
