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

# DESIGN: a module may import from lower layers and from its own package. `sentiment.corpora` and the others without
# further names stand for all their modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("sentiment.errors", "sentiment.schema", "sentiment.text", "sentiment.shapes", "sentiment.uris"),
    ("sentiment.section",),
    ("sentiment.settings",),
    ("sentiment.config", "sentiment.hub", "sentiment.stores"),
    (
        *("sentiment.tokenizers", "sentiment.vectors", "sentiment.batching", "sentiment.devices"),
        *("sentiment.encoders", "sentiment.optimisation"),
        *("sentiment.models", "sentiment.metrics"),
    ),
    ("sentiment.recipe", "sentiment.encoder_tokenizer"),
    ("sentiment.recipes", "sentiment.bert_recipes"),
    ("sentiment.bundle", "sentiment.checkpoint", "sentiment.features"),
    ("sentiment.training", "sentiment.predictor"),
    ("sentiment.corpora",),
    ("sentiment.cli", "sentiment.session"),
    ("sentiment.__main__",),
    ("jobs", "serve_app"),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
MAY_IMPORT_RAY = ("sentiment.corpora", "sentiment.session", "jobs", "serve_app")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name_of(path): path
    for folder in ("sentiment", "jobs", "serve_app")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def home_of(module: str) -> str | None:
    """The entry of `LAYERS` that a module belongs to."""
    parts = module.split(".")
    return next((home for end in range(len(parts), 0, -1) if (home := ".".join(parts[:end])) in LAYER_OF), None)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, inside functions too; `from a import b` counts as a.b where that is a module."""
    for node in ast.walk(tree):
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
        home = home_of(module)
        assert home is not None, f"{module} has no place in LAYERS: give it one"
        for target in imports_of(tree):
            if target.split(".")[0] not in ("sentiment", "jobs", "serve_app"):
                continue
            there = home_of(target)
            if there != home and (there is None or LAYER_OF[there] >= LAYER_OF[home]):
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_the_package_itself_imports_nothing() -> None:
    """Else `import sentiment.text` would pay for torch."""
    assert list(imports_of(TREES["sentiment"])) == []


def test_jobs_and_server_do_not_know_each_other() -> None:
    for module, tree in TREES.items():
        other = {"jobs": "serve_app", "serve_app": "jobs"}.get(module.split(".")[0])
        assert other not in {target.split(".")[0] for target in imports_of(tree)}, module


def test_ray_is_imported_only_at_the_edges() -> None:
    wrong = [
        module
        for module, tree in TREES.items()
        if home_of(module) not in MAY_IMPORT_RAY and any(target.split(".")[0] == "ray" for target in imports_of(tree))
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


def test_command_lines_answer_without_torch_and_ray(tmp_path: Path) -> None:
    """`--help` and a mistyped flag must not wait seconds for imports they don't need."""
    light = [
        "sentiment.config",
        "sentiment.recipes",
        "sentiment.bert_recipes",
        "sentiment.__main__",
        "sentiment.vectors.__main__",
        "sentiment.cli",
    ]
    light += [
        f"jobs.{name}"
        for name in ("prepare", "train_lstm", "train_bert", "score", "evaluate", "reproduce", "demo", "submit")
    ]
    code = (
        f"import importlib, sys\nfor name in {light}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'ray', 'pyarrow', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", sorted(FILES))
def test_every_file_is_short_and_says_why_it_is_there(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) < 300, f"{module} should be two files"
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert FILES[module].stem not in drawers, f"{module}: a drawer, name what it holds"
