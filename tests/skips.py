"""In CI whatever a test needs is there, but for a GPU: there a skip for any other reason is a failure.

Otherwise tests that never run look like tests that pass. `.ci/run` sets CI=true, as CI services do.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

MAY_SKIP = {"needs a CUDA GPU"}

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests, with their marks and fixtures."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Whole files: `pytest.importorskip`, `pytest.skip(allow_module_level=True)`."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    if os.environ.get("CI") == "true" and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in MAY_SKIP:
            report.outcome = "failed"
            report.longrepr = f"skipped, and with CI=true nothing may be missing but a GPU: {reason}"
    return report
