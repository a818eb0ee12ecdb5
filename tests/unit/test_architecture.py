"""The house stays in order: imports point one way, importing does nothing, and every file has one reason to be read."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module may import from lower lanes and from its own. A name stands for all modules below it, unless they are named
# themselves.
LANES: dict[str, tuple[str, ...]] = {
    "foundations": (
        *("sentiment.errors", "sentiment.schema", "sentiment.text", "sentiment.labels", "sentiment.background"),
        *("sentiment.settings", "sentiment.config", "sentiment.untrusted", "sentiment.devices", "sentiment.metrics"),
        *("sentiment.models.config", "sentiment.training.recipes", "sentiment.tokenizers", "sentiment.batching"),
        *("sentiment.storage", "sentiment.observability"),
    ),
    "models": ("sentiment.models", "sentiment.vectors"),
    "prediction": ("sentiment.bundle", "sentiment.predictor", "sentiment.session"),
    "data": ("sentiment.data",),
    "training and scoring": ("sentiment.training", "sentiment.scoring", "sentiment.observability.mlflow"),
    "commands": (
        *("sentiment.cli", "sentiment.commands", "sentiment.demo", "sentiment.submission"),
        *("sentiment.__main__", "sentiment.predict", "sentiment.api"),
    ),
    "entry points": ("jobs", "serve_app"),
}
LANE_OF = {name: number for number, names in enumerate(LANES.values()) for name in names}
MAY_IMPORT_RAY = (
    *("sentiment.session", "sentiment.submission", "sentiment.observability.progress"),
    *("sentiment.observability.prometheus", "sentiment.data.ray_source", "sentiment.data.workers"),
    *("sentiment.data.prepare", "sentiment.training.encode", "sentiment.training.ray_train"),
    *("sentiment.scoring.actors", "sentiment.scoring.pipeline"),
    "serve_app.app",
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name_of(path): path
    for folder in ("sentiment", "jobs", "serve_app")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def lane_of(module: str) -> int | None:
    """The lane of a module: that of the longest name in `LANES` that it begins with."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((LANE_OF[name] for name in names if name in LANE_OF), None)


def is_main(node: ast.AST) -> bool:
    """Whether it is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, inside functions too; `from a import b` counts as a.b where that is a module.

    But for what a module does when it is run itself.
    """
    nodes = tree.body if isinstance(tree, ast.Module) else [tree]
    for node in (inner for outer in nodes if not is_main(outer) for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where they point"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


def outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when the module is imported: class bodies, but no function bodies."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if not in_function or child not in (node.body if isinstance(node.body, list) else [node.body]):
                waiting.append(child)


def test_imports_point_one_way() -> None:
    wrong = []
    for module, tree in TREES.items():
        if module == "sentiment":
            continue  # checked below: it imports nothing
        lane = lane_of(module)
        assert lane is not None, f"{module} is in no lane: put it into LANES"
        for target in imports_of(tree):
            if target.split(".")[0] not in ("sentiment", "jobs", "serve_app") or target == "sentiment":
                continue
            there = lane_of(target)
            if there is None or there > lane:
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_the_package_itself_imports_nothing() -> None:
    """Else `import sentiment.text` would pay for torch; public names are imported when they are used."""
    ours = {name for name in imports_of(TREES["sentiment"]) if name.startswith("sentiment")}
    assert ours == {"sentiment.api"}  # for type checkers alone
    code = "import sentiment, sys; print([name for name in sys.modules if name.startswith(('sentiment.', 'pydantic'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [["jobs/score.py"], ["jobs/demo.py"], ["jobs/submit.py"], ["-m", "sentiment", "score"], ["-m", "serve_app"]],
)
def test_a_python_without_the_packages_is_told_in_one_line(command: list[str]) -> None:
    """-S: with the standard library alone, as a newcomer's own Python."""
    done = subprocess.run(
        [sys.executable, "-S", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert "run `make setup`, then .venv/bin/python" in done.stderr


def test_jobs_and_server_do_not_know_each_other() -> None:
    for module, tree in TREES.items():
        other = {"jobs": "serve_app", "serve_app": "jobs"}.get(module.split(".")[0])
        assert other not in {target.split(".")[0] for target in imports_of(tree)}, module


def test_ray_is_imported_only_at_the_edges() -> None:
    wrong = [
        module
        for module, tree in TREES.items()
        if module not in MAY_IMPORT_RAY and any(target.split(".")[0] == "ray" for target in imports_of(tree))
    ]
    assert wrong == []


def test_layer_check_sees_a_lazy_import() -> None:
    """The check itself: an import inside a function counts."""
    assert list(imports_of(ast.parse("def f():\n    from sentiment import training\n"))) == ["sentiment.training"]


def test_nothing_reads_the_environment_on_import() -> None:
    for module, tree in TREES.items():
        for node in outside_functions(tree):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            assert name not in {"environ", "getenv", "environb"}, f"{module} line {getattr(node, 'lineno', '?')}"


# Third parties come first, so that what they do on import isn't held against us. Then the hook sees whatever our own
# modules do while they are imported: files written, folders made, processes started, addresses looked up, variables
# set.
_IMPORT_ALL = """
import importlib, json, logging, os, sys, threading
theirs, ours = json.loads(sys.stdin.read())
for name in theirs:
    importlib.import_module(name)
seen = []
def hook(event, args):
    if event == "open":
        mode, flags = args[1], args[2]
        if any(sign in str(mode) for sign in "wax+") or (mode is None and flags & (os.O_WRONLY | os.O_RDWR)):
            seen.append(f"writes {args[0]}")
    elif event in {"os.mkdir", "os.putenv", "os.unsetenv", "os.remove", "os.rename", "subprocess.Popen", "os.fork",
                   "socket.connect", "socket.getaddrinfo", "socket.bind", "signal.signal"}:
        seen.append(f"{event} {args[:1]}")
handlers, level, threads = list(logging.root.handlers), logging.root.level, threading.active_count()
environment = dict(os.environ)
importlib.invalidate_caches()
sys.addaudithook(hook)
for name in ours:
    importlib.import_module(name)
print(json.dumps({
    "seen": seen,
    "environment": dict(os.environ) == environment,
    "logging": logging.root.handlers == handlers and logging.root.level == level,
    "threads": threading.active_count() - threads,
    "ray": sys.modules["ray"].is_initialized(),
}))
"""


def test_importing_any_module_does_nothing(tmp_path: Path) -> None:
    """One process for all modules: torch and Ray take seconds to import."""
    top_level = {
        target
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for target in imports_of(node)
    }
    theirs = sorted(name for name in top_level if name.split(".")[0] not in ("sentiment", "jobs", "serve_app"))
    result = subprocess.run(
        [sys.executable, "-B", "-c", _IMPORT_ALL],
        input=json.dumps([["ray", *theirs], sorted(FILES)]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "seen": [],
        "environment": True,
        "logging": True,
        "threads": 0,
        "ray": False,
    }
    assert list(tmp_path.iterdir()) == []


COMMAND_LINES = (
    *(
        "",
        "--help",
        "scroe",
        "train --help",
        "train lstm --help",
        "train --recipe bert-tweets --hepl",
        "predict --modle x",
    ),
    *(f"{name} --help" for name in ("prepare", "score", "evaluate", "predict", "serve", "submit", "vectors", "config")),
    *("demo --help", "config", "config --markdown", "score --model"),
)


def test_command_lines_answer_without_torch_and_ray(tmp_path: Path) -> None:
    """`--help` and a mistyped flag must not wait seconds for imports they don't need."""
    jobs = ["prepare", "train_lstm", "train_bert", "score", "evaluate", "reproduce", "demo", "submit"]
    code = f"""
import contextlib, importlib, sys
from sentiment.commands import main
codes = []
for line in {COMMAND_LINES}:
    try:
        codes.append(main(line.split()))
    except SystemExit as end:
        codes.append(end.code)
for name in {jobs}:
    importlib.import_module(f"jobs.{{name}}")
print(set(codes), [name for name in ('torch', 'ray', 'pyarrow', 'matplotlib') if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "{0, 2} []"


@pytest.mark.parametrize("module", sorted(FILES))
def test_every_file_says_why_it_is_there(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert FILES[module].stem not in drawers, f"{module}: a drawer, name what it holds"
