"""One run of `jobs/reproduce.py`: trains in one process, keeps a checkpoint after each epoch, leaves its result behind.

run.json              what decides the result; another one starts the run anew
checkpoint-EPOCH/     the last epoch's, while the run isn't finished
bundle/               the trained model
result.json           figures, machine; written last: a run with it is finished
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.baseline import NAME as BASELINE
from jobs.baseline import measure
from jobs.pretrained import Pretrained
from jobs.report import machine
from jobs.training_run import Place, Run, bundle_run, train_run
from jobs.word_run import WordRun, WordSetup
from sentiment.checkpoint import Checkpoint
from sentiment.corpora.folder import Folder
from sentiment.corpora.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import DataError, SentimentError
from sentiment.recipe import WordRecipe
from sentiment.schema import SPLITS, TEST
from sentiment.settings import Precision
from sentiment.training import Hooks, evaluate

RESULT, IDENTITY = "result.json", "run.json"
_TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class Planned:
    """A run that the table asks for.

    Attributes:
        dataset: "imdb" or "sentiment140".
        data: Its prepared folder.
        recipe: None for the baseline.
        seed: None for the baseline, which has none.
        folder: Where the run lives.
    """

    dataset: str
    data: str
    recipe: WordRecipe | None
    seed: int | None
    folder: Path

    @property
    def label(self) -> str:
        """For people."""
        recipe = self.recipe.name if self.recipe else BASELINE
        return f"{self.dataset} {recipe}" + (f" seed {self.seed}" if self.seed is not None else "")


@dataclass(frozen=True)
class Resources:
    """What a run computes with, and whom it tells.

    Attributes:
        cpus: Torch threads.
        use_gpu: On a GPU.
        precision: As in `Run`.
        max_lengths: Other maximum lengths to measure the test rows at.
        board: Actor that shows progress in training rows.
    """

    cpus: int
    use_gpu: bool
    precision: Precision
    max_lengths: tuple[int, ...]
    board: Any


def identity_of(planned: Planned, precision: Precision) -> dict[str, Any]:
    """What decides a run's result; a folder with another identity is another run's."""
    if planned.recipe is None or planned.seed is None:
        return {"data": PreparedData(planned.data).digest}
    return _run_of(planned, planned.recipe, planned.seed, precision).identity


def _run_of(planned: Planned, recipe: WordRecipe, seed: int, precision: Precision) -> WordRun:
    return WordRun(recipe=recipe, data=planned.data, seed=seed, precision=precision)


def finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run that is there already, unless it was made of something else."""
    result = read_result(folder / RESULT)
    return result if result and result["identity"] == identity else None


def read_result(path: Path) -> dict[str, Any] | None:
    """A run's result; None if it isn't there or was cut short."""
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return result if "identity" in result else None


def run_planned(planned: Planned, pretrained: Pretrained | None, resources: Resources) -> dict[str, Any]:
    """Do a run, or what is left of it.

    A mistake of the user's is returned as `error`: raised, it would come out wrapped, and be tried again.
    """
    try:
        if planned.recipe is None:
            identity = identity_of(planned, resources.precision)
            _claim(planned.folder, identity)
            return _finish(planned, identity, measure(planned.data))
        return _train(planned, planned.recipe, pretrained, resources)
    except SentimentError as error:
        return {"error": error}


def _train(planned: Planned, recipe: WordRecipe, pretrained: Pretrained | None, resources: Resources) -> dict[str, Any]:
    assert planned.seed is not None
    torch.set_num_threads(resources.cpus)
    run = dataclasses.replace(_run_of(planned, recipe, planned.seed, resources.precision), pretrained=pretrained)
    identity = run.identity
    _claim(planned.folder, identity)
    place = Place(rank=0, world_size=1, device=torch.device("cuda" if resources.use_gpu else "cpu"))
    resume = _last_checkpoint(planned, resources)
    trained = train_run(run, place, hooks=_hooks(planned, run, resources, resume), resume=lambda: resume)
    bundle_run(planned.folder / "bundle", run, trained)
    precision = resolve_precision(run.precision, place.device)
    accuracies = {recipe.max_length: trained.metrics["test_accuracy"]}
    for length in resources.max_lengths:
        if length not in accuracies:
            assert isinstance(trained.setup, WordSetup)
            data = trained.setup.batches(TEST, max_length=length)
            figures = evaluate(trained.setup.model, data, device=place.device, precision=precision)
            accuracies[length] = figures.accuracy if figures.rows else None
    by_length = {str(length): accuracies[length] for length in sorted(accuracies)}
    return _finish(planned, identity, {**trained.metrics, "test_accuracy_by_max_length": by_length})


def _finish(planned: Planned, identity: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    result = {
        "dataset": planned.dataset,
        "seed": planned.seed,
        "rows": {split: PreparedData(planned.data).manifest["splits"][split]["rows"] for split in SPLITS},
        **figures,
        "data": identity["data"][:12],
        "machine": _machine(figures.get("device") == "cuda"),
        "identity": identity,
    }
    Folder(str(planned.folder)).write_json(RESULT, result)
    for checkpoint in planned.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return result


def _machine(use_gpu: bool) -> dict[str, Any]:
    gpu = {"gpu": torch.cuda.get_device_name()} if use_gpu else {}
    return {**machine("torch", "ray"), **gpu}


def may_claim(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder holds nothing that took time, or this very run."""
    if not (folder / RESULT).exists() and not list(folder.glob("checkpoint-[0-9]*")):
        return True
    return _is(folder, identity)


def _is(folder: Path, identity: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((folder / IDENTITY).read_text()) == identity)
    except (OSError, ValueError):
        return False


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Keep what an earlier try of the same run left; drop what was made of something else."""
    if not _is(folder, identity):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        Folder(str(folder)).write_json(IDENTITY, identity)


def _last_checkpoint(planned: Planned, resources: Resources) -> Checkpoint | None:
    """What an earlier try left. One that can't be read (the machine went down) is dropped: the run loses its epochs."""
    for folder in sorted(planned.folder.glob("checkpoint-[0-9]*"), reverse=True):
        try:
            return Checkpoint.load(folder)
        except DataError:
            resources.board.say.remote(f"{planned.label}: {folder.name} is damaged and was dropped")
            shutil.rmtree(folder)
    return None


def _hooks(planned: Planned, run: Run, resources: Resources, resume: Checkpoint | None) -> Hooks:
    """Checkpoints go to the run's folder, words and rows to the board."""
    told_at, untold = time.monotonic(), 0
    rows = PreparedData(run.data).manifest["splits"]["train"]["rows"]
    if resume is not None:
        resources.board.add.remote(rows * resume.progress.epoch)

    def on_checkpoint(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        assert figures is not None
        beside = planned.folder / ".checkpoint.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        checkpoint.save(beside)
        beside.rename(planned.folder / f"checkpoint-{figures['epoch']:04}")
        for older in sorted(planned.folder.glob("checkpoint-[0-9]*"))[:-1]:
            shutil.rmtree(older)
        resources.board.say.remote(
            f"{planned.label}: epoch {figures['epoch']}/{run.recipe.epochs}  {figures['train_s']:.0f} s  "
            f"validation loss {figures['validation_loss']:.4f}  accuracy {figures['validation_accuracy']:.2%}"
        )

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal told_at, untold
        untold += run.recipe.batch_size if step < steps else rows - (steps - 1) * run.recipe.batch_size
        if step == steps or time.monotonic() - told_at > _TELL_EVERY_S:
            resources.board.add.remote(untold)
            told_at, untold = time.monotonic(), 0

    return Hooks(on_checkpoint, on_step)
