"""What all tests share: one Ray for the tests that need one, and a small pretrained encoder on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sentiment.settings import RaySettings


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One embedded Ray for the whole session, with more logical CPUs than the machine may have; gives its address.

    Jobs that are called in this process join it; jobs in processes of their own get the address.
    """
    import ray

    from sentiment.session import ray_session

    with ray_session(RaySettings(num_cpus=4, num_gpus=0, object_store_gib=1, dashboard=True)):
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer BERT of random weights, 16 wide, with a WordPiece tokenizer that spells what it lacks."""
    import string

    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = [*("i", "love", "hate", "this", "phone", "it", "is", "great", "awful", "not", "good", "bad", "day", "the")]
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *string.punctuation]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words + pieces)]))
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.4)
        model.save_pretrained(folder)
    return folder
