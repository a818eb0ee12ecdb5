"""Training runs of models on word vectors."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.pretrained import Pretrained, load_pretrained
from jobs.training_run import EVALUATION_BATCH, Place, Run, Setup
from sentiment.batching import LengthBucketedBatches
from sentiment.corpora.prepared import PreparedData
from sentiment.models import build_model
from sentiment.models.bag import BagClassifier
from sentiment.models.head import WordEmbedding
from sentiment.models.rnn import RecurrentClassifier
from sentiment.models.subwords import SubwordEmbedding
from sentiment.recipe import WordRecipe
from sentiment.schema import TRAIN
from sentiment.tokenizers import PAD_ID

# Of word vectors where neither the recipe nor pretrained vectors say; the notebooks'.
_DEFAULT_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class WordRun(Run):
    """A run of a word-level recipe.

    Attributes:
        recipe: Model and optimiser settings.
        pretrained: Word vectors to begin with.
    """

    recipe: WordRecipe
    pretrained: Pretrained | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The vectors' folder may differ: they are in the checkpoint's weights by then."""
        return self._identity({"vectors": Path(self.recipe.vectors).name} if self.recipe.vectors else {})

    def set_up(self, place: Place) -> WordSetup:
        """Load data and build the model."""
        return WordSetup(self, place)


class WordSetup(Setup):
    """A word-level model and its data in one process."""

    def __init__(self, run: WordRun, place: Place) -> None:
        self._run, self._place = run, place
        self._prepared = PreparedData(run.data)
        self.tokenizer = self._words = self._prepared.tokenizer()
        pretrained = run.pretrained
        self.facts = {
            "vectors": pretrained.name if pretrained else None,
            "token_coverage": pretrained.token_coverage if pretrained else None,
        }
        self.model = self.whole = self._model()

    def _model(self) -> RecurrentClassifier | BagClassifier:
        recipe, tokenizer = self._run.recipe, self._words
        table = self._run.pretrained.table if self._run.pretrained else None
        embedding_dim = table.matrix_VE.shape[1] if table else recipe.embedding_dim or _DEFAULT_WIDTH
        self.shape = recipe.model(tokenizer.vocabulary_size, embedding_dim, tokenizer.pad_id, tokenizer.unk_id)
        torch.manual_seed(self._run.seed)
        model = build_model(self.shape)
        assert isinstance(model, RecurrentClassifier | BagClassifier)
        if table:
            with torch.no_grad():
                model.get_parameter("embedding.weight").copy_(torch.from_numpy(table.matrix_VE))
        if recipe.subwords:
            assert isinstance(model.embedding, WordEmbedding)
            special = (tokenizer.unk_id, tokenizer.pad_id)
            model.embedding = SubwordEmbedding(model.embedding, tokenizer.tokens, recipe.embedding_std, special)
        return model

    def batches(self, split: str, max_length: int | None = None) -> LengthBucketedBatches:
        """A process's share of a split, its texts cut to the recipe's length or another."""
        is_train, recipe, world_size = split == TRAIN, self._run.recipe, self._place.world_size
        return LengthBucketedBatches(
            self._prepared.examples(split),
            batch_size=recipe.batch_size if is_train else EVALUATION_BATCH * world_size,
            pad_id=PAD_ID,
            max_length=max_length or recipe.max_length,
            shuffle=is_train,
            seed=self._run.seed,
            rank=self._place.rank,
            world_size=world_size,
        )

    def end_training(self) -> None:
        """Fold n-grams into the word vectors: what is measured is the model of the bundle."""
        assert isinstance(self.model, RecurrentClassifier | BagClassifier)
        if isinstance(self.model.embedding, SubwordEmbedding):
            self.model.embedding = self.model.embedding.folded()

    def weights(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: weight.cpu() for name, weight in self.model.state_dict().items()}


def with_vectors(run: WordRun) -> WordRun:
    """Give a run the vectors that its recipe asks for, and say what they cover.

    Raises:
        DataError: They can't be read or fetched.
    """
    pretrained = load_pretrained(run.recipe, PreparedData(run.data), run.seed)
    if pretrained is None:
        return run
    print(pretrained.line, file=sys.stderr, flush=True)
    return dataclasses.replace(run, pretrained=pretrained)
