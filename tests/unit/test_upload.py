"""What goes to a cluster with a job: the code, its settings and nothing that lies about beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

ROOT = Path(__file__).parents[2]
CODE = ("benchmarks/reproduction", "jobs", "sentiment", "serve_app")
MOST_BYTES = 2_000_000
MEBIBYTE = bytes(1 << 20)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository, and what people have beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("upload") / "checkout"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    lying_about = (
        *(".git/objects/pack/pack-1.pack", ".git/HEAD", ".venv/lib/python3.11/site-packages/torch/lib/libtorch.so"),
        *(
            "runs/demo/model/bundle/model.safetensors",
            "runs/jobs/score.py",
            "data/imdb/train/pos/1_9.txt",
            "env/bin/ray",
        ),
        *("training.1600000.processed.noemoticon.csv", "glove.6B.50d.txt", ".mypy_cache/3.11/jobs/score.data.json"),
        *("jobs/__pycache__/score.cpython-311.pyc", "sentiment/data/__pycache__/plan.cpython-311.pyc", ".env"),
    )
    for name in lying_about:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(MEBIBYTE)
    (folder / "runs" / "empty").mkdir()
    return folder


def package(folder: Path, target: Path) -> zipfile.ZipFile:
    """Pack a working directory as the client does that `ray job submit` and jobs/submit.py use."""

    def pack(working_dir: str, excludes: list[str], is_file: bool = False) -> None:
        create_package(working_dir, target, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(folder)}, include_gitignore=True, upload_fn=pack)
    return zipfile.ZipFile(target)


# By default Ray leaves out .git, .venv and __pycache__ by itself; a variable turns that off.
@pytest.mark.parametrize("own_excludes", [".git,.venv,venv,__pycache__", ""])
def test_only_code_and_settings_are_sent(
    own_excludes: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", own_excludes)
    with package(checkout, tmp_path / "package.zip") as sent:
        names = set(sent.namelist())
    code = {path for folder in CODE for path in (checkout / folder).rglob("*") if path.is_file()}
    expected = {path.relative_to(checkout).as_posix() for path in code if "__pycache__" not in path.parts}
    assert names == expected | {"ray_config.yaml"}
    assert (tmp_path / "package.zip").stat().st_size < MOST_BYTES


def test_what_is_sent_runs(checkout: Path, tmp_path: Path) -> None:
    """Without the package being installed there, from the copy alone; the files that are run stay runnable."""
    with package(checkout, tmp_path / "package.zip") as sent:
        sent.extractall(tmp_path / "there")
        modes = {entry.filename: entry.external_attr >> 16 for entry in sent.infolist()}
    # Ray keeps the modes: `ray job submit --working-dir . jobs/train_bert.py` runs the file itself.
    assert modes["jobs/train_bert.py"] & 0o100
    code = "import jobs.train_bert, sentiment; print(jobs.train_bert.__file__, jobs.train_bert.JOB.parse([])[0].output)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "there",
        env={"PYTHONPATH": str(tmp_path / "there")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{tmp_path}/there/jobs/train_bert.py runs/bert\n", done.stderr
