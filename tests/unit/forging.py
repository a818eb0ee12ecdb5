"""What somebody does to a bundle who means it to be taken for whole: files altered, the manifest made to agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = ("config.json", "model.safetensors", "tokenizer.json", "metrics.json", "README.md")


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    change(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def sign(path: Path, name: str) -> None:
    """What a careful forger does: make the manifest agree with an altered file, model id included."""

    def change(manifest: dict[str, Any]) -> None:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        hashes = [manifest["files"][each]["sha256"] for each in FILES[:3]]
        recipe = manifest["model_id"].rpartition("-")[0]
        manifest["model_id"] = f"{recipe}-" + hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]

    edit_manifest(path, change)


def forge(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a bundle in place, and sign it."""
    document = json.loads((path / name).read_text())
    change(document)
    (path / name).write_text(json.dumps(document))
    sign(path, name)
