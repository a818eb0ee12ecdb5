"""What `make setup` shows while pip works, which takes minutes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

INSTALL = Path(__file__).parents[2] / ".ci" / "install.py"


def test_lines_of_pip_become_steps() -> None:
    spec = importlib.util.spec_from_file_location("install", INSTALL)
    assert spec is not None and spec.loader is not None
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    progress = install.Progress()
    steps = [
        ("Collecting torch==2.13.0 (from sentiment-at-scale==0.1.0)\n", False, "looking for torch==2.13.0"),
        (
            "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (192.4 MB)\n",
            True,
            "fetching torch-2.13.0 ",
        ),
        ("  Using cached tqdm-4.70.1-py3-none-any.whl (78 kB)\n", False, "fetching tqdm-4.70.1 (0 MB; 192 MB of about"),
        ("Requirement already satisfied: six in .venv/lib (1.17.0)\n", False, "fetching tqdm"),
        ("Installing collected packages: torch, tqdm\n", True, "unpacking 2 packages"),
    ]
    for line, is_shown, now in steps:
        assert progress.take(line) is is_shown
        assert progress.now.startswith(now)


def test_a_failure_shows_what_pip_said() -> None:
    command = [sys.executable, INSTALL, sys.executable, "--no-index", "--find-links", "/nowhere", "no-such-package==1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, *rest = done.stderr.splitlines()
    assert first == "asking the index, 0 s"
    assert any("No matching distribution found for no-such-package==1" in line for line in rest)
