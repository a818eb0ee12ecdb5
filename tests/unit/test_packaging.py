"""What pyproject.toml asks for, constraints.txt locks, and CI installs and runs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = {name: list(map(Requirement, texts)) for name, texts in PROJECT["optional-dependencies"].items()}
DEPENDENCIES = list(map(Requirement, PROJECT["dependencies"]))
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
# Imported by the product, but part of what something else that it depends on is made of.
COME_WITH = {"pydantic-core": "pydantic"}


@pytest.mark.parametrize(
    "requirement",
    [one for ones in [DEPENDENCIES, *EXTRAS.values()] for one in ones if one.name != PROJECT["name"]],
    ids=str,
)
def test_every_direct_dependency_has_a_range_and_one_locked_version_in_it(requirement: Requirement) -> None:
    version = LOCK[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators == {"=="} or ">=" in operators, f"{requirement}: from which version on?"


def test_lines_of_the_lock_are_exact_versions_in_order() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [canonicalize_name(line.partition("==")[0]) for line in lines]
    assert len(lines) == len(LOCK)
    assert names == sorted(set(names))


def test_the_lock_holds_everything_that_is_installed_with_the_project() -> None:
    """From the direct dependencies through what each installed package says that it needs."""
    waiting = [*DEPENDENCIES, *(one for ones in EXTRAS.values() for one in ones if one.name != PROJECT["name"])]
    seen: set[tuple[str, str]] = set()
    missing = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in LOCK:
            missing.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = map(Requirement, requires(name) or [])
            except PackageNotFoundError:  # of an extra that isn't installed
                continue
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    assert len(seen) > 100
    assert missing == set()


def test_what_the_product_imports_is_a_dependency() -> None:
    """Directly: what merely comes along with something else may be gone with its next version."""
    imported: set[str] = set()
    for folder in ("sentiment", "serve_app", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.split(".")[0])
    imported -= {"sentiment", "serve_app", "jobs", "benchmarks"} | sys.stdlib_module_names
    declared = {canonicalize_name(one.name) for ones in [DEPENDENCIES, *EXTRAS.values()] for one in ones}
    distributions = packages_distributions()
    missing = {
        module: names
        for module in imported
        if not (names := {canonicalize_name(name) for name in distributions.get(module, [])}) & declared
        and not {COME_WITH.get(name) for name in names} & declared
    }
    assert missing == {}


def test_the_license_is_the_one_that_is_named() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert f"Copyright 2026 {PROJECT['authors'][0]['name']}" in text


def test_the_changelog_has_the_version() -> None:
    assert f"\n## {PROJECT['version']} - " in (ROOT / "CHANGELOG.md").read_text()


def make_targets(text: str) -> list[str]:
    return re.findall(r"^\s*(?:- run: )?make ([a-z-]+)$", text, re.MULTILINE)


def test_ci_services_and_a_fresh_clone_run_the_same_commands() -> None:
    """.ci/run is for any machine, .github/workflows/ci.yml for GitHub: both install what tests need, then call make."""
    script = (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert make_targets(script) == make_targets("\n".join(steps)) == ["lint", "test"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(make_targets(script)) <= set(targets)

    def packages(text: str) -> set[str]:
        (listed,) = re.findall(r"apt-get install (.*)", text.replace('"${as_root[@]}" ', ""))
        return {word for word in listed.split() if not word.startswith("-")}

    assert packages(script) == packages("\n".join(steps)) == {"chromium", "chromium-driver"}
    assert job["container"]["image"].startswith(f"python:{PROJECT['requires-python'].removeprefix('>=')}-")
    assert job["env"] == {"CI": "true"}
    assert "export CI=true" in script


def test_commit_hooks_run_the_commands_of_make_lint() -> None:
    """From the project's own environment: nothing is downloaded, and the versions are the locked ones."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    entries = [hook["entry"] for hook in hooks["repos"][0]["hooks"]]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert entries == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]


def test_mypy_looks_at_everything_that_tests_share() -> None:
    checked = PYPROJECT["tool"]["mypy"]["modules"]
    shared = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    names = [
        path.relative_to(ROOT).with_suffix("") if path.name == "conftest.py" else Path(path.stem) for path in shared
    ]
    assert checked == sorted(".".join(name.parts) for name in names)
    folders = set(PYPROJECT["tool"]["mypy"]["mypy_path"].split(":"))
    assert folders == {str(path.parent.relative_to(ROOT)) for path in shared}
