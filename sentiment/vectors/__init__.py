"""Pretrained word vectors: load GloVe (`loading`), ask it about words (`space`), start an embedding with it.

    vectors = load_vectors("glove.6B.100d")           # or a file in GloVe's text format
    vectors.nearest("cat", 5)
    vectors.analogy("king", "man", "woman")
    vectors.table(tokenizer.tokens, std=0.1, seed=1)  # rows for a model's vocabulary

`python -m sentiment.vectors` asks from the command line.
"""
