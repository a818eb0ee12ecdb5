"""Ray tasks around `jobs.reproduction_run`: which runs there are, which are left, and the report after each."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import ray

from jobs.baseline import NAME as BASELINE
from jobs.baseline import check_installed
from jobs.pretrained import Pretrained, load_pretrained
from jobs.progress import Progress
from jobs.reproduction_page import write_report
from jobs.reproduction_run import RESULT, Planned, Resources, finished, identity_of, may_claim, run_planned
from sentiment.corpora.prepared import PreparedData
from sentiment.errors import ConfigError, SentimentError
from sentiment.recipes import RECIPES, get_recipe, twin_of
from sentiment.schema import SPLITS, TRAIN
from sentiment.session import ray_session, require, wait_for_room
from sentiment.settings import RaySettings, ReproduceSettings
from sentiment.uris import is_uri
from sentiment.vectors.loading import load_vectors


def reproduce(settings: ReproduceSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Do the runs that aren't there yet and write the report.

    Args:
        settings: Section `reproduce`.
        ray_settings: Section `ray`.

    Returns:
        The job's JSON: runs that were there, runs done now, and where the report is.

    Raises:
        SentimentError: Settings, data or resources are not as they must be, or runs failed for such a reason; the
            others are done all the same.
    """
    started = time.monotonic()
    planned = plan(settings)
    if settings.baseline:
        check_installed()
    todo, kept = _sort_out(planned, settings)
    _say(f"{len(planned)} runs: {len(kept)} are there, {len(todo)} to do")
    failures: dict[str, Exception] = {}
    if todo:
        with ray_session(ray_settings):
            wait_for_room(ray_settings, 1, "run", cpus=settings.cpus_per_run, gpus=settings.gpus_per_run)
            require(1, "run", cpus=settings.cpus_per_run, gpus=settings.gpus_per_run)
            failures = _run_all(todo, settings)
    report = write_report(Path(settings.output), Path(settings.report))
    if failures:
        lines = "; ".join(f"{label}: {error}" for label, error in failures.items())
        kind = ConfigError if all(isinstance(error, SentimentError) for error in failures.values()) else RuntimeError
        raise kind(f"{len(failures)} of {len(todo)} runs failed, the others are in {report}: {lines}")
    return {
        "runs_kept": len(kept),
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
    baselines = [
        Planned(dataset, prepared.uri, None, None, output / dataset / BASELINE)
        for dataset, prepared in data.items()
        if settings.baseline
    ]
    return [*baselines, *runs.values()]


def _sort_out(
    planned: list[Planned], settings: ReproduceSettings
) -> tuple[list[tuple[Planned, Pretrained | None]], list[Planned]]:
    """Which runs are left to do, with their vectors, and which are there."""
    load = functools.cache(load_vectors)
    todo: list[tuple[Planned, Pretrained | None]] = []
    kept: list[Planned] = []
    identities = {run.folder: identity_of(run, settings.precision) for run in planned}
    others = [run.label for run in planned if not may_claim(run.folder, identities[run.folder])]
    if others and not settings.overwrite:
        raise ConfigError(
            f"{settings.output} holds {len(others)} of these runs with other data or settings (such as {others[0]}): "
            "replace them with --overwrite, or name another --output"
        )
    for run in planned:
        if finished(run.folder, identities[run.folder]):
            kept.append(run)
            continue
        pretrained = None
        if run.recipe is not None and run.seed is not None:
            try:
                pretrained = load_pretrained(run.recipe, PreparedData(run.data), run.seed, load)
            except SentimentError as error:
                # Better now than after hours of other runs; those are one --recipes away.
                raise type(error)(f"nothing was run: {run.label}: {error}") from error
        todo.append((run, pretrained))
    for line in dict.fromkeys(f"{run.dataset}: {pretrained.line}" for run, pretrained in todo if pretrained):
        _say(line)
    return todo, kept


def _run_all(todo: list[tuple[Planned, Pretrained | None]], settings: ReproduceSettings) -> dict[str, Exception]:
    """Run tasks, as many at once as there is room for; returns what failed."""
    # A process for each run: one that has used a GPU would keep that one, and memory on it, whatever it is given next.
    task = ray.remote(num_cpus=settings.cpus_per_run, max_retries=2, max_calls=1)(run_planned)
    failures: dict[str, Exception] = {}
    with Progress("reproduce", "rows") as progress:
        progress.board.show.remote("reproduce", 0, sum(_rows(run) for run, _ in todo))
        waiting: dict[Any, Planned] = {}
        for run, pretrained in todo:
            # Lengths matter where texts are long, and a seed's cost is every seed's. A model that reads padding has a
            # length of its own.
            reads_padding = getattr(run.recipe, "reads_padding", False)
            is_measured = run.dataset == "imdb" and run.seed == settings.seeds[0] and not reads_padding
            resources = Resources(
                cpus=settings.cpus_per_run,
                use_gpu=settings.gpus_per_run > 0,
                precision=settings.precision,
                max_lengths=tuple(settings.max_lengths) if is_measured else (),
                board=progress.board,
            )
            gpus = settings.gpus_per_run if run.recipe else 0
            waiting[task.options(num_gpus=gpus).remote(run, pretrained, resources)] = run
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
                progress.board.say.remote(f"{run.label}: failed: {error}")
                continue
            progress.board.say.remote(f"{run.label}: test accuracy {result['test_accuracy']:.2%}")
            write_report(Path(settings.output), Path(settings.report))
    return failures


def _rows(run: Planned) -> int:
    """Training rows that a run goes through."""
    rows: int = PreparedData(run.data).manifest["splits"][TRAIN]["rows"]
    return rows * run.recipe.epochs if run.recipe else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
