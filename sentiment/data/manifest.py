"""What manifests and summaries say beside their counts: inputs, versions, the machine, reasons in short."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sentiment.data.read_plan import ReadPlan
from sentiment.settings import Section

# Kinds of reasons that are shown.
_MAX_REASONS = 10


def machine(*packages: str) -> dict[str, Any]:
    """What a measured number was measured on.

    Args:
        packages: Whose versions matter.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def machine_line(description: dict[str, Any]) -> str:
    """A `machine` in words."""
    versions = [f"{name} {found}" for name, found in description.items() if name not in ("processor", "cores", "gpu")]
    gpu = f", {description['gpu']}" if description.get("gpu") else ""
    return f"{description['cores']} cores of {description['processor']}{gpu}; {', '.join(versions)}"


def some_of(lines: Sequence[str], most: int = 100) -> list[str]:
    """The first lines and the number of the others: an archive may have tens of thousands of stray files."""
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest:,} more"] if rest > 0 else [])]


def kind_of_reason(reason: str) -> str:
    """A reason without the values in it: there are few of them, and nothing of the users' is in them."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|0x\w+", "…", reason.split(";", maxsplit=1)[0])


def reason_lines(reasons: Mapping[str, int]) -> str:
    """Rejected rows by reason as a person reads them, the commonest first.

    Args:
        reasons: Rows by kind of reason.
    """
    counted = sorted(reasons.items(), key=lambda item: -item[1])
    lines = some_of([f"{count:>12,}  {reason}" for reason, count in counted], _MAX_REASONS)
    return "\n".join([f"rejected rows: {sum(reasons.values()):,}", *lines])


def commonest(reasons: Mapping[str, int]) -> str:
    """The reason that most rows were rejected for, with its count."""
    reason = max(reasons, key=lambda kind: reasons[kind])
    return f"{reason} ({reasons[reason]:,} of {sum(reasons.values()):,} rejected rows)"


def manifest_head(plan: ReadPlan, settings: Section) -> dict[str, Any]:
    """What a manifest says beside the counts: inputs, settings, versions, time.

    Args:
        settings: How.
    """
    return {
        "inputs": [{"path": file.path, "bytes": file.size_bytes} for file in plan.files],
        "skipped": some_of(plan.skipped),
        "renamed_columns": dict(plan.renamed),
        "settings": settings.model_dump(exclude={"output", "overwrite"}),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("ray", "torch", "pyarrow", "tokenizers")},
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
