"""The named recipes: every model of the notebooks under its notebook's settings, and what we would use instead.

`jobs/train_lstm.py --recipe NAME` needs nothing else. `source_result` is what the source prints; ours is in
docs/results/reproduction.md, which `jobs/reproduce.py` writes.

The notebooks' recipes keep their settings. What differs in all of them: padding never enters the recurrence (but in
`rnn`, whose point it is), a text is read up to `max_length` tokens, words are split as GloVe's (the notebooks use spaCy
or white space), validation rows are 5 % of the training rows by hash, forward passes are in bfloat16 where the hardware
has it, and Adam is AdamW without weight decay, which is the same.
"""

from __future__ import annotations

from sentiment.config import unknown
from sentiment.recipe import BagRecipe, RecurrentRecipe, WordRecipe

_BENTREVETT = "bentrevett/pytorch-sentiment-analysis"
_APS360 = "course notebook (University of Toronto, APS360)"

# "Simple Sentiment Analysis": doesn't learn. The state is read after the padding, where a tanh network has forgotten
# the text, and plain SGD at 1e-3 hardly moves it. The notebook pads to the longest row of a batch, ours to
# `max_length`: a text's score mustn't hang on its neighbours.
RNN = RecurrentRecipe(
    name="rnn",
    summary="Elman RNN that reads its state after the padding: the notebook that doesn't learn",
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

# The same network, read at the last real token and fitted by Adam: 75.0 % of the test reviews in place of a half. A
# falling learning rate makes it 77.2 %, fresh word vectors with a spread of 0.1 in place of 1 make it 81.4 %. Gradients
# of a tanh network over hundreds of steps explode now and then, hence the clipping.
RNN_FIXED = RNN.model_copy(
    update={
        "name": "rnn-fixed",
        "summary": "the same Elman RNN, read at the last real token and fitted by Adam",
        "source": f"{_BENTREVETT}, 1 Simple Sentiment Analysis, mended",
        "source_result": "–",
        "reads_padding": False,
        "embedding_std": 0.1,
        "optimizer": "adamw",
        "schedule": "one-cycle",
        "clip_norm": 1.0,
    }
)

# "Upgraded Sentiment Analysis": two-layer bidirectional LSTM on GloVe 100d. It lets padding into the recurrence; ours
# never does, so here it is the model that `bilstm-packed` is, and trained once it stands for both.
BILSTM = RecurrentRecipe(
    name="bilstm",
    summary="two-layer bidirectional LSTM on GloVe",
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

BILSTM_PACKED = BILSTM.model_copy(
    update={
        "name": "bilstm-packed",
        "summary": "the same with packed sequences in the source; here padding is always left out: equal to bilstm",
        "source": f"{_BENTREVETT}, 2 Upgraded Sentiment Analysis, packed",
        "source_result": "84.79 % (IMDB test)",
    }
)

LSTM = BILSTM.model_copy(
    update={
        "name": "lstm",
        "summary": "one-layer LSTM, left to right, on GloVe",
        "source": f"{_BENTREVETT}, one layer, one direction",
        "source_result": "–",
        "num_layers": 1,
        "bidirectional": False,
    }
)

# The source prints 3,393,641 parameters for two layers in one direction. That is 25,002 × 100 word vectors, 892,928 for
# the two layers, and a last layer of 512 + 1: sized for two directions, it is fed `cat(hidden[-2], hidden[-1])`, which
# without a backward direction are the last states of layer 1 and layer 2. So the head reads both layers, and so does
# ours. (A head on the upper layer alone makes 3,393,385.)
MULTILAYER_LSTM = BILSTM.model_copy(
    update={
        "name": "multilayer-lstm",
        "summary": "two-layer LSTM, left to right, on GloVe; the head reads both layers",
        "source": f"{_BENTREVETT}, two layers, one direction",
        "source_result": "83.98 % (IMDB test)",
        "bidirectional": False,
        "state_layers": 2,
    }
)

BIGRU = BILSTM.model_copy(
    update={
        "name": "bigru",
        "summary": "two-layer bidirectional GRU on GloVe",
        "source": f"{_BENTREVETT}, GRU in place of LSTM",
        "source_result": "88.95 % (IMDB test; its LSTM twin 84.36 %)",
        "cell": "gru",
    }
)

# The notebook leaves out words that GloVe doesn't have: a zero vector does the same to a sum.
GLOVE_MLP = BagRecipe(
    name="glove-mlp",
    summary="sum of frozen GloVe vectors through a three-layer MLP: no word order",
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
    summary="Elman RNN on frozen GloVe vectors, one logit for each class",
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

# Ours for tweets, the main job's default; needs nothing but the tweets. The layers are the notebook's.
TWEETS = BILSTM.model_copy(
    update={
        "name": "tweets",
        "summary": "our choice for tweets, the default: two-layer bidirectional LSTM, needs no download",
        "dataset": "sentiment140",
        "source": "this project",
        "source_result": "–",
        "vectors": None,
        "embedding_dim": 100,
        "embedding_std": 0.1,
        "subwords": True,
        "word_dropout": 0.1,
        "pooling": "concat",
        "max_length": 256,
        "batch_size": 128,
        "epochs": 3,
        "learning_rate": 2e-3,
        "schedule": "one-cycle",
        "clip_norm": 1.0,
    }
)

# At their own size GloVe's vectors drown the n-grams' (0.3 points).
TWEETS_GLOVE = TWEETS.model_copy(
    update={
        "name": "tweets-glove",
        "summary": "the same on GloVe",
        "vectors": "glove.twitter.27B.100d",
        "vector_scale": 0.5,
    }
)

# Ours for long texts: a quarter of the notebooks' cost. One narrow layer is enough where the head sees the maximum and
# the mean over the whole review; the last state alone has forgotten most of it. Character n-grams, worth half a point
# on tweets, gain nothing here.
REVIEWS = TWEETS.model_copy(
    update={
        "name": "reviews",
        "summary": "our choice for reviews and other long texts: one-layer bidirectional LSTM on GloVe",
        "dataset": "imdb",
        "vectors": "glove.6B.100d",
        "subwords": False,
        "hidden_dim": 128,
        "num_layers": 1,
        "max_length": 512,
        "batch_size": 64,
    }
)

RECIPES: dict[str, WordRecipe] = {
    recipe.name: recipe
    for recipe in (
        *(RNN, RNN_FIXED, LSTM, MULTILAYER_LSTM, BILSTM, BILSTM_PACKED, BIGRU),
        *(GLOVE_MLP, TWEET_RNN),
        *(TWEETS, TWEETS_GLOVE, REVIEWS),
    )
}


def get_recipe(name: str) -> WordRecipe:
    """Look a recipe up.

    Raises:
        ConfigError: There is none of that name; the message names the near ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise unknown("recipe", name, RECIPES, "sentiment/recipes.py")


def twin_of(recipe: WordRecipe) -> WordRecipe:
    """The first recipe with the same settings: a run of it is a run of this one."""
    words = set(recipe.WORDS)
    settings = recipe.model_dump(exclude=words)
    return next(
        other
        for other in RECIPES.values()
        if type(other) is type(recipe)
        and other.dataset == recipe.dataset
        and other.model_dump(exclude=words) == settings
    )
