"""A checkpoint: everything that training needs to resume, as safetensors and JSON in one folder.

    model.safetensors   weights now
    best.safetensors    weights of the best epoch so far; absent while that is the epoch just ended
    optimizer.pt        optimizer state, loaded with `weights_only=True`: no pickle from outside
    state.json          epoch, step, figures of each epoch, sums of the epoch under way

No state of random generators: training derives them from (seed, step, rank).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentiment.errors import DataError

STATE = "state.json"
Weights = dict[str, Tensor]
# What reading a file that was cut short or altered has been seen to raise.
_DAMAGED = (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, UnpicklingError, SafetensorError)


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        epoch: The epoch under way, from 0.
        step: Steps done in it.
        sums: Counts over the steps done in it, over all ranks (`metrics.Counts.sums`).
        elapsed_s: Time already spent on it.
        best_epoch: Epoch with the lowest validation loss so far.
        best_validation_loss: That loss.
        history: Figures of each finished epoch.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0
    best_epoch: int | None = None
    best_validation_loss: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Checkpoint:
    """State of training at one moment; weights are copies on the CPU.

    Attributes:
        progress: Where training stands.
        weights: State dict of the model now.
        best_weights: State dict of the best epoch; None before the first epoch has ended.
        optimizer: State dict of the optimizer; its live tensors, so save it before the next step.
    """

    progress: Progress
    weights: Weights
    best_weights: Weights | None
    optimizer: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write to an existing, empty folder."""
        save_file(self.weights, folder / "model.safetensors")
        if self.best_weights is not None and self.best_weights is not self.weights:
            save_file(self.best_weights, folder / "best.safetensors")
        torch.save(self.optimizer, folder / "optimizer.pt")
        (folder / STATE).write_text(json.dumps(asdict(self.progress), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote.

        Raises:
            DataError: A file is missing or damaged.
        """
        try:
            progress = Progress(**json.loads((folder / STATE).read_text()))
            weights = load_file(folder / "model.safetensors")
            best_weights: Weights | None = None
            if progress.best_epoch is not None:
                # Absent only right after the best epoch; elsewhere the newest weights would pass for the best.
                is_best = progress.best_epoch == progress.epoch - 1 and progress.step == 0
                best = folder / "best.safetensors"
                best_weights = weights if is_best and not best.exists() else load_file(best)
            optimizer = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"checkpoint {folder} can't be read ({reason}); start anew with --overwrite instead of --resume"
            ) from error
        return cls(progress, weights, best_weights, optimizer)
