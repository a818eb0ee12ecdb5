"""The named recipes on pretrained encoders, for `jobs/train_bert.py`; results are in docs/results/bert_gru.md."""

from __future__ import annotations

from sentiment.config import unknown
from sentiment.recipe import BertRecipe

# "Transformers for Sentiment Analysis". The notebook's encoder drops out values while training although it is frozen;
# ours doesn't, so that its features need to be computed only once. The notebook reads 512 tokens, from the start.
BERT_GRU = BertRecipe(
    name="bert-gru",
    summary="the notebook's: frozen BERT, bidirectional two-layer GRU, linear layer",
    dataset="imdb",
    source="bentrevett/pytorch-sentiment-analysis, 6 Transformers for Sentiment Analysis",
    source_result="91.40 % (IMDB test)",
    encoder="bert-base-uncased",
    max_length=512,
    batch_size=128,
    epochs=2,
    learning_rate=1e-3,
    clip_norm=0.0,
)

# Ours on a small encoder: its features of 87,000 tweets take 1.3 GB, of 50,000 reviews 10 GB.
BERT_TWEETS = BERT_GRU.model_copy(
    update={
        "name": "bert-tweets",
        "summary": "our choice for tweets: frozen MiniLM, which comes as the extra `minilm`",
        "dataset": "sentiment140",
        "source": "this project",
        "source_result": "–",
        "encoder": "minilm",
        "pooling": "concat",
        "max_length": 128,
        "epochs": 3,
        "learning_rate": 2e-3,
        "schedule": "one-cycle",
        "clip_norm": 1.0,
    }
)

BERT_TWEETS_TUNED = BERT_TWEETS.model_copy(
    update={
        "name": "bert-tweets-tuned",
        "summary": "the same with the encoder's layers trained too: better, and several times the work",
        "unfreeze_layers": 6,
        "encoder_learning_rate": 1e-4,
        "learning_rate": 1e-3,
        "epochs": 2,
    }
)

BERT_REVIEWS = BERT_TWEETS.model_copy(
    update={
        "name": "bert-reviews",
        "summary": "our choice for reviews: frozen MiniLM, the beginning and the end of a text",
        "dataset": "imdb",
        "max_length": 256,
        "truncation": "head+tail",
        "epochs": 2,
    }
)

BERT_RECIPES: dict[str, BertRecipe] = {
    recipe.name: recipe for recipe in (BERT_GRU, BERT_TWEETS, BERT_TWEETS_TUNED, BERT_REVIEWS)
}


def get_bert_recipe(name: str) -> BertRecipe:
    """Look a recipe up.

    Raises:
        ConfigError: There is none of that name; the message names the near ones.
    """
    if name in BERT_RECIPES:
        return BERT_RECIPES[name]
    raise unknown("recipe", name, BERT_RECIPES, "sentiment/bert_recipes.py")
