"""What the scoring job is held against, each run in a fresh process by `benchmarks/score.py`.

  python benchmarks/score_rivals.py NAME JSON      # prints JSON; NAME is a key of RIVALS, JSON its arguments

Loading the model and reading the texts are on nobody's clock, and each rival warms up before it is timed.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from score_archive import sample_of, texts_of
from torch import nn

from sentiment.batching import TOKEN_BUDGET, length_ordered, pad
from sentiment.bundle import Bundle
from sentiment.devices import autocast, limit_threads
from sentiment.encoders import EncoderSource, find_encoder, read_config
from sentiment.predictor import BATCH_SIZE, Predictor
from sentiment.schema import P_POSITIVE, TEXT
from sentiment.shapes import BertGruConfig
from sentiment.tokenizers import WordTokenizer

NOTEBOOK_BATCH = 64
PIPELINE_BATCHES = (1, 8, 16, 32, 64, 128)
# Addresses and mentions stay whole, as with spaCy; one pattern is far less work than spaCy's rules.
_WORD = re.compile(r"https?://\S+|@\w+|\w+(?:'\w+)?|[^\w\s]+")
_WARM_UP_ROWS = 256


def notebook(model: str, archive: str, rows: int, output: str) -> dict[str, Any]:
    """The notebooks' loop: one process, batches of 64 in the order of the file, padded, float32, torch's own threads.

    Texts are split in Python and looked up in the same vocabulary; the module is the job's.

    Args:
        model: Bundle of a word-level model.
        archive: The file.
        rows: Size of the sample.
        output: Parquet file to write.
    """
    predictor = Predictor.load(model, use_gpu=False, precision="float32")
    if not isinstance(predictor.tokenizer, WordTokenizer):
        raise SystemExit(f"{predictor.model_id} isn't a word-level model; the lane minilm is for the others")
    texts = sample_of(Path(archive), rows)
    loop = _Loop(predictor, predictor.tokenizer)
    loop(texts[:_WARM_UP_ROWS])
    started = time.perf_counter()
    scores = loop(texts)
    pq.write_table(pa.table({TEXT: texts, P_POSITIVE: scores}), output)
    elapsed_s = time.perf_counter() - started
    # That it is the same model: its labels against ours, whose tokens are a little different.
    ours = predictor.forward(predictor.encode(texts[:1000]))
    agreement = float(((np.array(scores[:1000]) >= 0.5) == (ours >= 0.5)).mean())
    return {
        **_rate(len(texts), elapsed_s),
        "threads": torch.get_num_threads(),
        "tokens_per_row": round(sum(len(loop.ids(text)) for text in texts) / len(texts), 1),
        "labels_as_ours": round(agreement, 4),
    }


class _Loop:
    """Texts to probabilities as the notebooks do it."""

    def __init__(self, predictor: Predictor, tokenizer: WordTokenizer) -> None:
        self._module = _module_of(predictor)
        self._ids = {token: number for number, token in enumerate(tokenizer.tokens)}
        self._unk_id, self._pad_id = tokenizer.unk_id, tokenizer.pad_id
        self._max_length = predictor.config.max_length

    def ids(self, text: str) -> list[int]:
        ids = [self._ids.get(word, self._unk_id) for word in _WORD.findall(text.lower())]
        return ids[: self._max_length] or [self._unk_id]

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(texts), NOTEBOOK_BATCH):
            rows = [torch.tensor(self.ids(text)) for text in texts[start : start + NOTEBOOK_BATCH]]
            ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad_id)
            lengths_B = torch.tensor([len(row) for row in rows])
            scores += torch.sigmoid(self._module(ids_BT, lengths_B)).tolist()
        return scores


def forward(model: str, archive: str, processes: int, slice_rows: int) -> dict[str, Any]:
    """The model's forward pass alone, on as many processes as the job has actors, a torch thread each.

    Batches are the job's: by length inside slices, padded, in its precision. They are made beforehand.

    Args:
        model: Bundle.
        archive: The file.
        processes: How many; slices are dealt out in turn.
        slice_rows: Rows that are sorted by length together.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _keep, (barrier,)) as pool:
        shares = [
            pool.submit(_forward_share, model, archive, share, processes, slice_rows) for share in range(processes)
        ]
        found = [share.result() for share in shares]
    elapsed_s = max(ended for _, ended, _ in found) - min(began for began, _, _ in found)
    return {**_rate(sum(rows for _, _, rows in found), elapsed_s), "processes": processes}


# Barriers reach a process when it starts, not with a task.
_barrier: list[Barrier] = []


def _keep(barrier: Barrier) -> None:
    _barrier.append(barrier)


def _forward_share(model: str, archive: str, share: int, processes: int, slice_rows: int) -> tuple[float, float, int]:
    """One process's slices: when it began and ended, and its rows. Nobody begins before all are ready."""
    try:
        limit_threads(1)
        predictor = Predictor.load(model, use_gpu=False)
        batches, num_rows = [], 0
        texts = list(texts_of(Path(archive)))
        for start in range(share * slice_rows, len(texts), processes * slice_rows):
            ids = predictor.encode(texts[start : start + slice_rows])
            ordered = length_ordered(np.array([len(row) for row in ids]), BATCH_SIZE, TOKEN_BUDGET)
            batches += [pad([ids[row] for row in rows], predictor.tokenizer.pad_id) for rows in ordered]
            num_rows += len(ids)
        predictor.warm_up()
    except BaseException:
        _barrier[0].abort()
        raise
    module = _module_of(predictor)
    _barrier[0].wait()
    began = time.time()
    with torch.inference_mode(), autocast(predictor.precision, predictor.device):
        for ids_BT, lengths_B in batches:
            torch.sigmoid(module(ids_BT, lengths_B).float()).numpy()
    return began, time.time(), num_rows


def batch_sizes(model: str, archive: str, rows: int) -> dict[str, Any]:
    """Rows a second of the pipeline with each batch size, on a small sample: which is best.

    Args:
        model: Bundle; its maximum length counts.
        archive: The file.
        rows: Size of the sample.
    """
    pipeline, texts = _pipeline(model), sample_of(Path(archive), rows)
    rates = {}
    for batch_size in PIPELINE_BATCHES:
        pipeline(texts[:batch_size], batch_size=batch_size)
        started = time.perf_counter()
        pipeline(texts, batch_size=batch_size)
        rates[str(batch_size)] = round(len(texts) / (time.perf_counter() - started), 1)
    return {"rows": len(texts), "rows_per_s": rates, "best": int(max(rates, key=rates.__getitem__))}


def pipeline(model: str, archive: str, rows: int, batch_size: int) -> dict[str, Any]:
    """Hugging Face's text-classification pipeline with the bundle's encoder: a list of texts to a list of labels.

    Args:
        model: Bundle; its maximum length counts.
        archive: The file.
        rows: Size of the sample.
        batch_size: Of the pipeline.
    """
    classify, texts = _pipeline(model), sample_of(Path(archive), rows)
    classify(texts[:_WARM_UP_ROWS], batch_size=batch_size)
    started = time.perf_counter()
    labelled = classify(texts, batch_size=batch_size)
    elapsed_s = time.perf_counter() - started
    return {**_rate(len(labelled), elapsed_s), "threads": torch.get_num_threads(), "batch_size": batch_size}


def _pipeline(model: str) -> Callable[..., list[Any]]:
    """The pipeline: the encoder's weights under a fresh head of two labels, its own fast tokenizer, float32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415  (takes seconds)
    from transformers import pipeline as make_pipeline  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # It says that the head is fresh: it is.
    logging.disable_progress_bar()
    config = Bundle.open(model).config
    source = _encoder_of(config.model)
    classifier = AutoModelForSequenceClassification.from_pretrained(source.path, num_labels=2, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    found = make_pipeline("text-classification", model=classifier.eval(), tokenizer=tokenizer, device="cpu")
    return lambda texts, batch_size: found(texts, batch_size=batch_size, truncation=True, max_length=config.max_length)


def _encoder_of(config: object) -> EncoderSource:
    """MiniLM, if that is what the bundle holds."""
    if not isinstance(config, BertGruConfig):
        raise SystemExit("the lane minilm wants a bundle of a BERT-GRU")
    source = find_encoder("minilm")
    theirs, shape = read_config(source), ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size")
    if any(theirs[name] != config.encoder[name] for name in shape):
        raise SystemExit("the bundle's encoder isn't minilm; train one with --encoder minilm")
    return source


def _module_of(predictor: Predictor) -> nn.Module:
    return predictor._model  # The very module that the job runs.


def _rate(rows: int, elapsed_s: float) -> dict[str, Any]:
    return {"rows": rows, "elapsed_s": round(elapsed_s, 3), "rows_per_s": round(rows / elapsed_s, 1)}


RIVALS: dict[str, Callable[..., dict[str, Any]]] = {
    "notebook": notebook,
    "forward": forward,
    "batch_sizes": batch_sizes,
    "pipeline": pipeline,
}

if __name__ == "__main__":
    print(json.dumps(RIVALS[sys.argv[1]](**json.loads(sys.argv[2]))))
