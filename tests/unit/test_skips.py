"""Skips in CI: only for want of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import MAY_SKIP

TESTS = Path(__file__).parents[1]
BODIES = {
    "mark": "@pytest.mark.skipif(True, reason={reason!r})\ndef test_it(): pass",
    "call": "def test_it(): pytest.skip({reason!r})",
    "fixture": "@pytest.fixture\ndef thing(): pytest.skip({reason!r})\ndef test_it(thing): pass",
    "file": "pytest.skip({reason!r}, allow_module_level=True)",
    "import": "pytest.importorskip('no_such_module', reason={reason!r})",
}


def test_in_ci_a_skip_is_a_failure_unless_it_is_for_want_of_a_gpu(tmp_path: Path) -> None:
    (gpu,) = MAY_SKIP
    for place, reason in (("allowed", gpu), ("missing", "needs chromium")):
        for name, body in BODIES.items():
            (tmp_path / f"test_{place}_{name}.py").write_text(f"import pytest\n{body.format(reason=reason)}\n")
    (tmp_path / "test_expected.py").write_text("import pytest\n@pytest.mark.xfail\ndef test_it(): raise ValueError\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", "--continue-on-collection-errors"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    # The test that skips itself fails; marks and fixtures are errors at its set-up, files at their collection.
    assert "1 failed, 5 skipped, 1 xfailed, 4 errors" in done.stdout
    assert done.stdout.count("nothing may be missing but a GPU: needs chromium") >= len(BODIES)
