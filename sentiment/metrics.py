"""What is measured: counts that add up over batches and ranks, and the figures that follow from them.

Counts, not averages, cross the network: the mean of two ranks' accuracies is wrong when their rows differ, the sum of
their counts never is. The formulas are checked against torchmetrics in the tests; it isn't used here because importing
it takes seconds in every worker.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Figures:
    """Figures of a binary classifier over a set of rows; NaN where the set is empty.

    Attributes:
        rows: Rows that were measured.
        loss: Mean binary cross-entropy, nats.
        accuracy: Share of rows whose predicted label is right.
        macro_f1: Mean of both labels' F1 (a label that neither occurs nor is predicted counts 0).
        confusion: Counts as rows of the true label, columns of the predicted one, negative first.
    """

    rows: int
    loss: float
    accuracy: float
    macro_f1: float
    confusion: tuple[tuple[int, int], tuple[int, int]]

    def named(self, prefix: str) -> dict[str, Any]:
        """All figures by name behind a prefix, ready for JSON: None in place of a share or mean of no rows."""
        return {
            prefix + name: value if self.rows or not isinstance(value, float) else None
            for name, value in asdict(self).items()
        }


@dataclass
class Counts:
    """Running sums: loss and the four cells of the confusion matrix."""

    # loss sum, true negatives, false positives, false negatives, true positives
    sums: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))

    def add(self, logits_B: Tensor, labels_B: Tensor, losses_B: Tensor, weights_B: Tensor | None = None) -> None:
        """Count a batch by its logits of the positive class; rows of weight 0 are left out."""
        weights_B = torch.ones_like(labels_B) if weights_B is None else weights_B
        cells_B = (labels_B * 2 + (logits_B >= 0)).to(torch.int64)
        cells_4 = torch.zeros(4, dtype=torch.float64, device=labels_B.device).index_add_(0, cells_B, weights_B.double())
        loss_1 = (losses_B.detach().double() * weights_B).sum()[None]
        # The sums live where the logits do, so that a GPU isn't waited for at each step.
        self.sums = self.sums.to(labels_B.device) + torch.cat([loss_1, cells_4])

    def over_ranks(self) -> Counts:
        """Sum over all processes of the default group; a copy where there is no group."""
        sums = self.sums.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return Counts(sums)

    def figures(self) -> Figures:
        """Work out the figures."""
        loss_sum, *cells = self.sums.tolist()
        tn, fp, fn, tp = (round(cell) for cell in cells)
        rows = tn + fp + fn + tp
        f1_positive = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
        f1_negative = 2 * tn / (2 * tn + fp + fn) if tn + fp + fn else 0.0
        return Figures(
            rows=rows,
            loss=loss_sum / rows if rows else float("nan"),
            accuracy=(tn + tp) / rows if rows else float("nan"),
            macro_f1=(f1_positive + f1_negative) / 2 if rows else float("nan"),
            confusion=((tn, fp), (fn, tp)),
        )
