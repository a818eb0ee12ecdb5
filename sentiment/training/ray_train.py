"""Ray Train around a training run: what all training jobs share.

    driver                            each worker
    checks resources, starts Train →  loads the prepared rows, plans the same batches, takes its own
    shows progress                 ←  trains; rank 0 saves a checkpoint after each epoch
    writes metrics and the curve   ←  measures the best weights on the test rows; rank 0 writes the bundle

Output folder: `bundle/`, `checkpoints/` (the best by validation loss and the last), `metrics.jsonl` (a line an epoch),
`metrics.json`, `curve.png`, `run.json` (what the run was made of; `--resume` holds to it); `mlflow.json` with --mlflow.
"""

from __future__ import annotations

import io
import json
import logging
import posixpath
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import barrier
from ray.train.torch import TorchConfig, TorchTrainer

from sentiment.bundle import MANIFEST
from sentiment.data.prepared import PreparedData
from sentiment.errors import ConfigError, DataError, SentimentError
from sentiment.observability.mlflow import Tracker, check_tracking
from sentiment.observability.progress import Progress, ProgressState
from sentiment.observability.prometheus import EPOCHS, TrainingMeter
from sentiment.observability.status import status_line
from sentiment.schema import TRAIN, VALIDATION
from sentiment.session import ray_session, require_capacity
from sentiment.settings import RaySettings, TrainSettings
from sentiment.storage.lock import Lock
from sentiment.storage.output_directory import OutputDirectory
from sentiment.training.checkpoint import STATE, Checkpoint
from sentiment.training.loop import Hooks
from sentiment.training.recipes import Recipe
from sentiment.training.report import plot_curve
from sentiment.training.run import Rank, Run, bundle_run, train_run

_log = logging.getLogger(__name__)

BUNDLE, CHECKPOINTS, IDENTITY, METRICS, CURVE = "bundle", "checkpoints", "run.json", "metrics.json", "curve.png"
_SHOW_EVERY_S = 0.5
# Where the number of workers may change: how often Ray Train looks whether there is room for more. Each change resumes
# from the last checkpoint.
_RESIZE_S = 60.0


def train(
    settings: TrainSettings,
    ray_settings: RaySettings,
    recipe: Recipe,
    plan: Callable[[str], Run],
    inputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Train on Ray and report.

    Args:
        settings: Section `train` or `train_bert`.
        ray_settings: Section `ray`.
        recipe: With its overrides applied.
        plan: Makes the run on prepared data, whose folder it gets.
        inputs: What is read beside that: none of it may be in the output folder.

    Returns:
        The job's JSON: bundle, recipe, parameters, epochs, accuracies, rows_per_s and where things are.

    Raises:
        SentimentError: Data, settings or resources are not as they must be.
    """
    check_tracking(settings)
    output, started = OutputDirectory(settings.output), time.monotonic()
    prepared = PreparedData(settings.data or settings.at_root(recipe.usual_data))
    prepared.require(TRAIN, VALIDATION)
    is_resumed = settings.resume and output.has(IDENTITY)
    # The quick refusals first. Ray Train gives each worker a working directory of its own, so relative paths mean
    # nothing there.
    if not is_resumed:
        if output.has(IDENTITY) and not settings.overwrite:
            raise ConfigError(
                f"{output.absolute} holds a run: continue it with --resume, replace it with --overwrite, or name "
                "another"
            )
        output.check(overwrite=settings.overwrite, inputs=[prepared.uri, *inputs])
    with status_line("checking what to train on"):
        run = plan(prepared.uri)
    with Tracker(settings, recipe, output) as tracker:
        if is_resumed:
            _check_identity(output, run)
            if output.has(METRICS):
                _log.info(f"{output.uri} is finished: nothing left to do")
                tracker.start()
                return _report(json.loads(output.read(METRICS)), output)
        with ray_session(ray_settings):
            needed = {"cpus": settings.cpus_per_worker, "gpus": 1 if settings.use_gpu else 0}
            require_capacity(settings.workers[0], "training workers", wait_s=ray_settings.wait_for_nodes_s, **needed)
            run.find_inputs()
            with Lock(output) as lock:
                if not is_resumed:
                    output.claim(overwrite=settings.overwrite)
                    output.write_json(IDENTITY, run.identity)
                lock.renew()  # It was removed with all else.
                tracker.start()
                run.prepare(settings)
                meter = TrainingMeter(output.absolute, recipe.name)

                def tell(state: ProgressState) -> None:
                    meter.update(state)
                    tracker.log_epochs(int(state.measured.get("epoch", 0)))

                label = f"starting {settings.workers[0]} training worker(s)"
                with Progress(label, "steps", meter=tell) as progress:
                    result = _fit(run, settings, output, progress.actor)
        result["duration_s"] = round(time.monotonic() - started, 1)
        output.write_json(METRICS, result)
        return _report(result, output)


def _check_identity(output: OutputDirectory, run: Run) -> None:
    """Refuse to resume another run. Workers may differ: the same global batch gives the same losses."""
    try:
        before = json.loads(output.read(IDENTITY))
    except (OSError, ValueError) as error:
        raise DataError(f"{output.address(IDENTITY)} can't be read: start anew with --overwrite") from error
    differing = [key for key, value in run.identity.items() if before.get(key) != value]
    if differing:
        raise ConfigError(
            f"--resume: {output.absolute} was made with another {' and '.join(differing)}; use those again, or start "
            "anew with --overwrite instead of --resume"
        )


def _report(result: dict[str, Any], output: OutputDirectory) -> dict[str, Any]:
    """Draw the curve, say what came out, and give the job's JSON."""
    history = result.pop("history")
    curve = output.address(CURVE)
    with status_line("drawing the curve"):
        output.write_bytes(CURVE, plot_curve(history, title=result["recipe"]))
    test = "–" if result["test_accuracy"] is None else f"{result['test_accuracy']:.2%}"
    _log.info(
        f"best epoch {result['best_epoch']}: validation accuracy {result['validation_accuracy']:.2%}, test accuracy "
        f"{test}\nbundle {result['bundle']}\ncurve  {curve}"
    )
    return {**result, "curve": curve, "output": output.absolute}


def _fit(run: Run, settings: TrainSettings, output: OutputDirectory, board: Any) -> dict[str, Any]:
    """Run Ray Train; returns what rank 0 returned."""
    least, most = settings.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            # Put, for Ray Train's controller unpacks what it is given, and would import all that a worker needs.
            "run": ray.put(run),
            "use_gpu": settings.use_gpu,
            "cpus": settings.cpus_per_worker,
            "output": output,
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            elastic_resize_monitor_interval_s=_RESIZE_S,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})},
        ),
        torch_config=TorchConfig(timeout_s=settings.collective_timeout_s),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=output.base,
            storage_filesystem=train_storage(output),
            # The latest is always kept too, so one is enough for the best.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="validation_loss", checkpoint_score_order="min"
            ),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    with _interruptible():
        result = trainer.fit().return_value
    assert isinstance(result, dict)
    if error := result.get("error"):
        raise error
    return result


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays what it is elsewhere: Ray Train ends its workers, and then would end this process with success."""
    if threading.current_thread() is not threading.main_thread():
        yield  # There Ray leaves it alone too.
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        signal.signal(signal.SIGINT, before)


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Run by every Ray Train worker; rank 0 returns the result.

    A user's mistake is returned too, as `error`: raised, it would count as a lost worker and be tried again.
    """
    run, output, context = ray.get(config["run"]), config["output"], ray.train.get_context()
    torch.set_num_threads(config["cpus"])
    rank = Rank(
        index=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device() if config["use_gpu"] else torch.device("cpu"),
    )
    hooks = _hooks(rank.index, run.recipe.epochs, output, config["board"])
    try:
        metrics = train_run(run, rank, hooks=hooks, resume=_last_checkpoint)
        if rank.index != 0:
            return None
        with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
            bundle = bundle_run(Path(scratch), run, metrics)
            output.upload(BUNDLE, bundle.path, last=MANIFEST)
    except SentimentError as error:
        return {"error": error}
    return {"bundle": output.address(BUNDLE), "model_id": bundle.model_id, **metrics}


def _last_checkpoint() -> Checkpoint | None:
    """What Ray Train has kept of this run, if it was stopped or lost a worker."""
    kept = ray.train.get_checkpoint()
    if kept is None:
        return None
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        # Not `as_directory`: the workers of a node share that folder, and one that comes when the first has fetched all
        # fetches it again, into the files that the first is reading.
        return Checkpoint.load(Path(kept.to_directory(folder)))


def _hooks(rank: int, epochs: int, output: OutputDirectory, board: Any) -> Hooks:
    """Checkpoints go to Ray Train, lines and steps to the progress board."""
    shown_at = 0.0

    def upload(files: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """As Ray would, but with retries where a store refuses something."""
        output.upload(f"{CHECKPOINTS}/{name}", Path(files.path), last=STATE)
        return ray.train.Checkpoint(output.inner(f"{CHECKPOINTS}/{name}"), train_storage(output))

    def on_checkpoint(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        # A checkpoint inside an epoch has no validation loss yet: it must not pass for the best.
        score = {"validation_loss": figures["validation_loss"] if figures else 1e30}
        if rank != 0:
            ray.train.report(score)
        else:
            if figures:
                lines = "".join(json.dumps(line) + "\n" for line in checkpoint.progress.history)
                output.write_text("metrics.jsonl", lines)
                board.say.remote(
                    f"epoch {figures['epoch']}/{epochs}  {figures['train_s']:6.1f} s  "
                    f"train loss {figures['train_loss']:.4f}  accuracy {figures['train_accuracy']:.2%}  |  "
                    f"validation loss {figures['validation_loss']:.4f}  accuracy "
                    f"{figures['validation_accuracy']:.2%}  |  {figures['rows_per_s']:,.0f} rows/s"
                )
                board.measure.remote({**figures, EPOCHS: figures["epoch"]})
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
                checkpoint.save(Path(folder))
                files = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(score, checkpoint=files, checkpoint_upload_fn=upload)
        # While rank 0 uploads, the others wait here: in torch's collectives they would for two minutes at most.
        barrier()

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal shown_at
        if rank == 0 and time.monotonic() - shown_at > _SHOW_EVERY_S:
            shown_at = time.monotonic()
            board.show.remote(f"epoch {epoch + 1}/{epochs}", step, steps)
            board.measure.remote({EPOCHS: epoch + step / steps})

    return Hooks(on_checkpoint, on_step)


def train_storage(folder: OutputDirectory) -> pafs.FileSystem:
    """A folder's file system that writes as `OutputDirectory` does: complete files or none, with retries.

    Ray Train's controller overwrites its list of checkpoints in place and takes the first refusal for a lost run.

    Args:
        folder: Ray Train writes to paths in it.

    Returns:
        The file system; its paths are those of `folder.fs`.
    """
    return pafs.PyFileSystem(_Storage(folder))


class _Storage(pafs.FileSystemHandler):  # type: ignore[misc]
    def __init__(self, folder: OutputDirectory) -> None:
        self._folder, self._fs = folder, folder.fs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Storage) and (self._fs, self._folder.base) == (other._fs, other._folder.base)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return f"train+{self._fs.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._fs.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return list(self._folder.retry(lambda: self._fs.get_file_info(paths)))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return list(self._folder.retry(lambda: self._fs.get_file_info(selector)))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._folder.retry(lambda: self._fs.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._folder.retry(lambda: self._fs.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._folder.retry(lambda: self._fs.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("only the run's folder may be deleted")

    def delete_file(self, path: str) -> None:
        self._folder.retry(lambda: self._fs.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._fs.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._folder.retry(lambda: self._fs.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self._folder.retry(lambda: self._fs.open_input_stream(path))

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self._folder.retry(lambda: self._fs.open_input_file(path))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_WrittenAtClose(self._folder, posixpath.relpath(path, self._folder.base)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("files are written at once")


class _WrittenAtClose(io.BytesIO):
    """A small file: Ray Train's marker and its list of checkpoints; checkpoints go through `upload`."""

    def __init__(self, folder: OutputDirectory, name: str) -> None:
        super().__init__()
        self._folder, self._name = folder, name

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._folder.write_bytes(self._name, content)
