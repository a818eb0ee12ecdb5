"""The runs of `jobs/reproduce.py`: which there are, as Ray tasks those that are left, and the report after each.

Each run trains in one process and has a folder:

    run.json              what decides the result; with another one the run starts anew
    checkpoint-EPOCH/     the last epoch's, while the run isn't finished
    bundle/               the trained model
    result.json           figures, machine; written last: a run with it is finished
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.reproduction.page import BASELINE, RESULT, read_result, write_report
from sentiment.data.manifest import machine
from sentiment.data.prepared import PreparedData
from sentiment.devices import resolve_precision
from sentiment.errors import ConfigError, DataError, SentimentError
from sentiment.observability.progress import Progress
from sentiment.schema import LABEL, SPLITS, TEST, TEXT, TRAIN, VALIDATION
from sentiment.session import ray_session, require_capacity
from sentiment.settings import Precision, RaySettings, ReproduceSettings
from sentiment.storage.output_directory import OutputDirectory
from sentiment.storage.uris import is_uri
from sentiment.training.checkpoint import Checkpoint
from sentiment.training.loop import Hooks, evaluate
from sentiment.training.recipes import RECIPES, WordRecipe, get_recipe, twin_of
from sentiment.training.run import Rank, bundle_run, train_run
from sentiment.training.word_models import InitialVectors, WordRun, load_initial_vectors
from sentiment.vectors.loading import load_vectors

_log = logging.getLogger(__name__)

IDENTITY = "run.json"
# Inverse regularization of the baseline's logistic regression; the validation rows choose one.
_STRENGTHS = (0.5, 1.0, 4.0, 16.0)
_TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class Planned:
    """A run that the table asks for; the baseline has neither recipe nor seed."""

    dataset: str
    data: str
    recipe: WordRecipe | None
    seed: int | None
    folder: Path

    @property
    def label(self) -> str:
        """What people read."""
        recipe = self.recipe.name if self.recipe else BASELINE
        return f"{self.dataset} {recipe}" + (f" seed {self.seed}" if self.seed is not None else "")

    @property
    def split_rows(self) -> dict[str, int]:
        """Rows of each split."""
        splits = PreparedData(self.data).manifest["splits"]
        return {split: splits[split]["rows"] for split in SPLITS}

    def training(self, precision: Precision) -> WordRun:
        """The training run of a recipe."""
        assert self.recipe is not None
        assert self.seed is not None
        return WordRun(recipe=self.recipe, data=self.data, seed=self.seed, precision=precision)

    def identity(self, precision: Precision) -> dict[str, Any]:
        """What decides a run's result; a folder with another identity is another run's."""
        return self.training(precision).identity if self.recipe else {"data": PreparedData(self.data).digest}

    def finished(self, identity: dict[str, Any]) -> bool:
        """Whether its result exists and is of this identity."""
        result = read_result(self.folder / RESULT)
        return result is not None and result["identity"] == identity

    def owns_folder(self, identity: dict[str, Any]) -> bool:
        """Whether the folder was begun by a run of this identity."""
        try:
            return bool(json.loads((self.folder / IDENTITY).read_text()) == identity)
        except (OSError, ValueError):
            return False


def reproduce(settings: ReproduceSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Do the runs that aren't there yet, write the report, and return the job's JSON.

    Raises:
        SentimentError: Settings, data or resources are not as they must be, or runs failed for such a reason; the
            others are done all the same.
    """
    started = time.monotonic()
    planned = plan(settings)
    if settings.baseline:
        check_installed()
    todo = _find_missing(planned, settings)
    kept = len(planned) - len(todo)
    _log.info(f"{len(planned)} runs: {kept} are there, {len(todo)} to do")
    failures: dict[str, Exception] = {}
    if todo:
        with ray_session(ray_settings):
            resources = {"cpus": settings.cpus_per_run, "gpus": settings.gpus_per_run}
            require_capacity(1, "run", **resources, wait_s=ray_settings.wait_for_nodes_s)
            failures = _run_all(todo, settings)
    report = write_report(Path(settings.output), Path(settings.report))
    if failures:
        lines = "; ".join(f"{label}: {error}" for label, error in failures.items())
        kind = ConfigError if all(isinstance(error, SentimentError) for error in failures.values()) else RuntimeError
        raise kind(f"{len(failures)} of {len(todo)} runs failed, the others are in {report}: {lines}")
    return {
        "runs_kept": kept,
        "runs_done": len(todo),
        "report": str(report),
        "output": settings.output,
        "duration_s": round(time.monotonic() - started, 1),
    }


def plan(settings: ReproduceSettings) -> list[Planned]:
    """Which runs the settings ask for; recipes that differ in name only share theirs.

    Raises:
        ConfigError: There is no data, or none for a recipe that was asked for.
        DataError: A folder isn't prepared data, or lacks rows.
    """
    folders = {"imdb": settings.imdb, "sentiment140": settings.sentiment140}
    if not any(folders.values()):
        usual = {name: settings.at_root(f"runs/{name}") for name in folders}
        folders = {name: path if Path(path).exists() else None for name, path in usual.items()}
    data = {name: PreparedData(folder) for name, folder in folders.items() if folder is not None}
    if not data:
        raise ConfigError("nothing to train on: give --imdb, --sentiment140 or both, as jobs/prepare.py wrote them")
    for prepared in data.values():
        prepared.require(*SPLITS)
    for flag, uri in (("output", settings.output), ("report", settings.report)):
        if is_uri(uri):
            raise ConfigError(f"--{flag} {uri}: runs and report go to a local or shared folder, not to a URI")
    output = Path(settings.output).absolute()
    runs: dict[Path, Planned] = {}
    if settings.baseline:
        for dataset, prepared in data.items():
            folder = output / dataset / BASELINE
            runs[folder] = Planned(dataset, prepared.uri, None, None, folder)
    for recipe in map(get_recipe, settings.recipes or RECIPES):
        datasets = [name for name in data if settings.datasets == "all" or name == recipe.dataset]
        if settings.recipes and not datasets:
            raise ConfigError(
                f"recipe {recipe.name} is for {recipe.dataset}: give --{recipe.dataset}, or --datasets all"
            )
        same = twin_of(recipe)
        if same.vectors and settings.vectors:
            same = same.with_overrides({"vectors": settings.vectors})
        for dataset in datasets:
            for seed in settings.seeds:
                folder = output / dataset / same.name / f"seed-{seed}"
                runs[folder] = Planned(dataset, data[dataset].uri, same, seed, folder)
    return list(runs.values())


def _find_missing(planned: list[Planned], settings: ReproduceSettings) -> list[tuple[Planned, InitialVectors | None]]:
    """The runs that are left to do, with their vectors."""
    load = functools.cache(load_vectors)
    missing: list[tuple[Planned, InitialVectors | None]] = []
    identities = {run.folder: run.identity(settings.precision) for run in planned}
    others = [
        run.label
        for run in planned
        if ((run.folder / RESULT).exists() or list(run.folder.glob("checkpoint-[0-9]*")))
        and not run.owns_folder(identities[run.folder])
    ]
    if others and not settings.overwrite:
        raise ConfigError(
            f"{settings.output} holds {len(others)} of these runs with other data or settings (such as {others[0]}): "
            "replace them with --overwrite, or name another --output"
        )
    for run in planned:
        if run.finished(identities[run.folder]):
            continue
        vectors = None
        if run.recipe is not None and run.seed is not None:
            try:
                vectors = load_initial_vectors(run.recipe, run.data, run.seed, load)
            except SentimentError as error:
                # Better now than after hours of other runs; those are one --recipes away.
                raise type(error)(f"nothing was run: {run.label}: {error}") from error
        missing.append((run, vectors))
    for line in dict.fromkeys(f"{run.dataset}: {vectors.summary}" for run, vectors in missing if vectors):
        _log.info(line)
    return missing


def _run_all(todo: list[tuple[Planned, InitialVectors | None]], settings: ReproduceSettings) -> dict[str, Exception]:
    """Run tasks, as many at once as there is room for; returns what failed."""
    # A process for each run: one that has used a GPU would keep that one, and memory on it, whatever it is given next.
    task = ray.remote(num_cpus=settings.cpus_per_run, max_retries=2, max_calls=1)(run_planned)
    failures: dict[str, Exception] = {}
    with Progress("reproduce", "rows") as progress:
        rows = sum(run.split_rows[TRAIN] * run.recipe.epochs for run, _ in todo if run.recipe)
        progress.actor.show.remote("reproduce", 0, rows)
        waiting: dict[Any, Planned] = {}
        for run, vectors in todo:
            # Lengths matter where texts are long, and a seed's cost is every seed's. A model that reads padding has a
            # length of its own.
            reads_padding = getattr(run.recipe, "reads_padding", False)
            is_measured = run.dataset == "imdb" and run.seed == settings.seeds[0] and not reads_padding
            gpus = settings.gpus_per_run if run.recipe else 0
            lengths = settings.max_lengths if is_measured else []
            waiting[task.options(num_gpus=gpus).remote(run, vectors, settings, lengths, progress.actor)] = run
        while waiting:
            [ready], _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(ready)
            try:
                result = ray.get(ready)
                if error := result.get("error"):
                    raise error
                if not (run.folder / RESULT).exists():
                    raise ConfigError(
                        f"{run.folder} isn't seen from here: --output must be a folder that all nodes see"
                    )
            except (SentimentError, ray.exceptions.RayError) as error:
                failures[run.label] = error
                progress.actor.say.remote(f"{run.label}: failed: {error}")
                continue
            progress.actor.say.remote(f"{run.label}: test accuracy {result['test_accuracy']:.2%}")
            write_report(Path(settings.output), Path(settings.report))
    return failures


def run_planned(
    planned: Planned,
    vectors: InitialVectors | None,
    settings: ReproduceSettings,
    max_lengths: Sequence[int],
    board: Any,
) -> dict[str, Any]:
    """Do a run, or what is left of it.

    Args:
        planned: Which.
        vectors: What its embedding starts from.
        settings: Threads, GPU, precision.
        max_lengths: Other maximum lengths to measure the test rows at.
        board: Actor that shows progress in training rows.

    Returns:
        Its result; a user's mistake as `error`: raised, it would come out wrapped, and be tried again.
    """
    output = OutputDirectory(str(planned.folder))
    try:
        identity = planned.identity(settings.precision)
        # What an earlier try of the same run left is kept, what was made of something else dropped.
        if not planned.owns_folder(identity):
            shutil.rmtree(planned.folder, ignore_errors=True)
            planned.folder.mkdir(parents=True)
            output.write_json(IDENTITY, identity)
        if planned.recipe is None:
            figures = measure_baseline(planned.data)
        else:
            torch.set_num_threads(settings.cpus_per_run)
            run, device = planned.training(settings.precision), torch.device("cuda" if settings.gpus_per_run else "cpu")
            run.vectors = vectors
            resume = _last_checkpoint(planned, board)
            hooks = _hooks(planned, run, resume, board)
            figures = train_run(run, Rank(0, 1, device), hooks=hooks, resume=lambda: resume)
            bundle_run(planned.folder / "bundle", run, figures)
            accuracies = {run.recipe.max_length: figures["test_accuracy"]}
            for length in set(max_lengths) - {run.recipe.max_length}:
                resolved = resolve_precision(settings.precision, device)
                test = evaluate(run.model, run.batches(TEST, length), device=device, precision=resolved)
                accuracies[length] = test.accuracy if test.rows else None
            figures["test_accuracy_by_max_length"] = {str(length): accuracies[length] for length in sorted(accuracies)}
    except SentimentError as error:
        return {"error": error}
    gpu = {"gpu": torch.cuda.get_device_name()} if figures.get("device") == "cuda" else {}
    result = {
        "dataset": planned.dataset,
        "seed": planned.seed,
        "rows": planned.split_rows,
        **figures,
        "data": identity["data"][:12],
        "machine": {**machine("torch", "ray"), **gpu},
        "identity": identity,
    }
    output.write_json(RESULT, result)
    for checkpoint in planned.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return result


def check_installed() -> None:
    """Find out before hours of training that the baseline can be measured.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    if find_spec("sklearn") is None:
        raise ConfigError(
            "the baseline needs scikit-learn: pip install -e '.[baseline]' in the checkout, or --no-baseline"
        )


def measure_baseline(data: str) -> dict[str, Any]:
    """TF-IDF of words and word pairs with logistic regression: what a user would try first, and models have to beat.

    Args:
        data: Prepared folder; the same rows and the same normalized texts as the models get.

    Returns:
        Figures as a run's; `train_s` is that of all strengths tried. They are deterministic: there are no seeds.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    prepared = PreparedData(data)
    texts = {split: prepared.texts(split) for split in SPLITS}
    labels = {split: table[LABEL].to_numpy() for split, table in texts.items()}
    started = time.monotonic()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    train = vectorizer.fit_transform(texts[TRAIN][TEXT].to_pylist())
    validation = vectorizer.transform(texts[VALIDATION][TEXT].to_pylist())
    models = [LogisticRegression(C=strength, max_iter=1000).fit(train, labels[TRAIN]) for strength in _STRENGTHS]
    accuracies = [float(model.score(validation, labels[VALIDATION])) for model in models]
    best = models[accuracies.index(max(accuracies))]
    train_s = time.monotonic() - started
    started = time.monotonic()
    accuracy = best.score(vectorizer.transform(texts[TEST][TEXT].to_pylist()), labels[TEST])
    test_s = time.monotonic() - started
    return {
        "recipe": BASELINE,
        "strength": best.C,
        "parameters": train.shape[1] + 1,
        "validation_accuracy": max(accuracies),
        "test_rows": texts[TEST].num_rows,
        "test_accuracy": float(accuracy),
        "train_s": train_s,
        "rows_per_s": round(texts[TRAIN].num_rows / train_s),
        "test_rows_per_s": round(texts[TEST].num_rows / test_s),
    }


def _last_checkpoint(planned: Planned, board: Any) -> Checkpoint | None:
    """What an earlier try left. One that can't be read (the machine went down) is dropped: the run loses its epochs."""
    for folder in sorted(planned.folder.glob("checkpoint-[0-9]*"), reverse=True):
        try:
            return Checkpoint.load(folder)
        except DataError:
            board.say.remote(f"{planned.label}: {folder.name} is damaged and was dropped")
            shutil.rmtree(folder)
    return None


def _hooks(planned: Planned, run: WordRun, resume: Checkpoint | None, board: Any) -> Hooks:
    """Checkpoints go to the run's folder, lines and rows to the board."""
    told_at, untold = time.monotonic(), 0
    rows, batch_size = planned.split_rows[TRAIN], run.recipe.batch_size
    if resume is not None:
        board.add.remote(rows * resume.progress.epoch)

    def on_checkpoint(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        assert figures is not None
        unfinished = planned.folder / ".checkpoint.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        checkpoint.save(unfinished)
        unfinished.rename(planned.folder / f"checkpoint-{figures['epoch']:04}")
        for older in sorted(planned.folder.glob("checkpoint-[0-9]*"))[:-1]:
            shutil.rmtree(older)
        board.say.remote(
            f"{planned.label}: epoch {figures['epoch']}/{run.recipe.epochs}  {figures['train_s']:.0f} s  "
            f"validation loss {figures['validation_loss']:.4f}  accuracy {figures['validation_accuracy']:.2%}"
        )

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal told_at, untold
        untold += batch_size if step < steps else rows - (steps - 1) * batch_size
        if step == steps or time.monotonic() - told_at > _TELL_EVERY_S:
            board.add.remote(untold)
            told_at, untold = time.monotonic(), 0

    return Hooks(on_checkpoint, on_step)
