"""What runs in every Ray Train worker: the run, with checkpoints and progress; rank 0 writes the bundle."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.collective import barrier

from jobs.metrics import EPOCHS
from jobs.train_storage import train_storage
from jobs.training_run import Place, Run, bundle_run, train_run
from sentiment.bundle import MANIFEST
from sentiment.checkpoint import STATE, Checkpoint
from sentiment.corpora.folder import Folder
from sentiment.errors import SentimentError
from sentiment.training import Hooks

BUNDLE, CHECKPOINTS = "bundle", "checkpoints"
_SHOW_EVERY_S = 0.5


@dataclass(frozen=True)
class Work:
    """What a worker needs to know.

    Attributes:
        run: What to train.
        use_gpu: On one GPU, else on CPUs.
        cpus: Torch threads.
        board: Actor that shows progress.
    """

    run: Run
    use_gpu: bool
    cpus: int
    board: Any


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Run by every Ray Train worker; rank 0 returns the result.

    A mistake of the user's is returned too, as `error`: raised, it would count as a lost worker and be tried again.
    """
    try:
        return _train_worker(config["work"], config["output"])
    except SentimentError as error:
        return {"error": error}


def _train_worker(work: Work, output: Folder) -> dict[str, Any] | None:
    context = ray.train.get_context()
    torch.set_num_threads(work.cpus)
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device() if work.use_gpu else torch.device("cpu"),
    )
    trained = train_run(work.run, place, hooks=_hooks(work, output, place.rank), resume=_last_checkpoint)
    if place.rank != 0:
        return None
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        bundle = bundle_run(Path(scratch), work.run, trained)
        output.upload(BUNDLE, bundle.path, last=MANIFEST)
    return {"bundle": output.address(BUNDLE), "model_id": bundle.model_id, **trained.metrics}


def _last_checkpoint() -> Checkpoint | None:
    """What Ray Train has kept of this run, if it was stopped or lost a worker."""
    kept = ray.train.get_checkpoint()
    if kept is None:
        return None
    with kept.as_directory() as folder:
        return Checkpoint.load(Path(folder))


def _hooks(work: Work, output: Folder, rank: int) -> Hooks:
    """Checkpoints go to Ray Train, words and steps to the progress board."""
    epochs = work.run.recipe.epochs
    shown_at = 0.0

    def on_checkpoint(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        # A checkpoint inside an epoch has no validation loss yet: it must not pass for the best.
        metrics = {"validation_loss": figures["validation_loss"] if figures else 1e30}
        keep(checkpoint, metrics, figures)
        # While rank 0 uploads, the others wait here: in torch's collectives they would for two minutes at most.
        barrier()

    def keep(checkpoint: Checkpoint, metrics: dict[str, Any], figures: dict[str, Any] | None) -> None:
        if rank != 0:
            ray.train.report(metrics)
            return
        if figures:
            lines = "".join(json.dumps(line) + "\n" for line in checkpoint.progress.history)
            output.write_text("metrics.jsonl", lines)
            work.board.say.remote(epoch_line(figures, epochs))
            work.board.measure.remote({**figures, EPOCHS: figures["epoch"]})
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            checkpoint.save(Path(folder))
            checkpoint_files = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint_files, checkpoint_upload_fn=upload)

    def upload(files: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """As Ray would, but a store that refuses something is asked again."""
        there = f"{CHECKPOINTS}/{name}"
        output.upload(there, Path(files.path), last=STATE)
        return ray.train.Checkpoint(output.inner(there), train_storage(output))

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal shown_at
        if rank == 0 and time.monotonic() - shown_at > _SHOW_EVERY_S:
            shown_at = time.monotonic()
            work.board.show.remote(f"epoch {epoch + 1}/{epochs}", step, steps)
            work.board.measure.remote({EPOCHS: epoch + step / steps})

    return Hooks(on_checkpoint, on_step)


def epoch_line(figures: dict[str, Any], epochs: int) -> str:
    """What a person sees of an epoch."""
    return (
        f"epoch {figures['epoch']}/{epochs}  {figures['train_s']:6.1f} s  "
        f"train loss {figures['train_loss']:.4f}  accuracy {figures['train_accuracy']:.2%}  |  "
        f"validation loss {figures['validation_loss']:.4f}  accuracy {figures['validation_accuracy']:.2%}  |  "
        f"{figures['rows_per_s']:,.0f} rows/s"
    )
