"""Pages: every link leads somewhere, and the site (mkdocs.yml) has all of them. `make docs` checks the rest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "cluster" / "README.md", *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Of its headings, as code hosts and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert not anchor or anchor in anchors_of(file), target


def site() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text()))
    return config


def in_navigation(entry: Any) -> Iterator[str]:
    match entry:
        case str():
            yield entry
        case list():
            for one in entry:
                yield from in_navigation(one)
        case dict():
            for one in entry.values():
                yield from in_navigation(one)


def test_every_page_is_on_the_site() -> None:
    (outside,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / ".ci" / "site.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAGES"
    ]
    pages = [path.relative_to(ROOT).as_posix() for path in PAGES]
    named = [outside.get(page) or page.removeprefix("docs/") for page in pages]
    assert sorted(in_navigation(site()["nav"])) == sorted(named)


def test_the_site_needs_no_other_servers() -> None:
    assert site()["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & set(site())
    for page in PAGES:
        assert not re.search(r"!\[[^]]*\]\(https?:|<(script|img|link)\b", page.read_text(encoding="utf-8")), page


def test_the_reference_is_about_modules_that_there_are() -> None:
    modules = [
        name
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert len(modules) == len(set(modules)) > 10
    for name in modules:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_files_that_pages_name_are_there() -> None:
    """In backticks, by their path in the repository; on the pages about the code by their name alone too."""
    folders = ("benchmarks", "cluster", "docs", "jobs", "sentiment", "serve_app", "tests", r"\.ci", r"\.github")
    named = re.compile(rf"`((?:{'|'.join(folders)})/[\w./-]+\.\w+)[`:]")
    missing = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert missing == []
    names = {path.name for folder in ("sentiment", "serve_app") for path in (ROOT / folder).rglob("*.py")}
    for page in ("architecture.md", "extending.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert set(re.findall(r"`([a-z_]+\.py)`", text)) <= names, page
