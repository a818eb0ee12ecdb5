"""What mkdocs does beside its own work (`hooks` in mkdocs.yml): pages from outside docs/, links into the repository.

Links in Markdown files are those that work in the repository, so that the files can be read there too. On the site a
page may have another path, and a file that isn't a page (`ray_config.yaml`) is copied so that it can be opened.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Path in the repository → path on the site, of pages that lie outside docs/.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster-files.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
# Code blocks, which stay as they are, or a link's text and target.
LINK = re.compile(r"```.*?```|`[^`\n]+`|\[([^\]]+)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(uri, f"docs/{uri}"))

    def on_site(link: re.Match[str]) -> str:
        text, path, anchor = link.groups()
        if path is None:
            return link[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if (ROOT / target).is_dir():
            return str(text)
        new = PAGES.get(target) or target.removeprefix("docs/")
        if files.get_file_from_path(new) is None and (ROOT / target).is_file():
            files.append(File.generated(config, new, abs_src_path=str(ROOT / target)))
        return f"[{text}]({posixpath.relpath(new, posixpath.dirname(uri) or '.')}{anchor or ''})"

    return LINK.sub(on_site, markdown)
