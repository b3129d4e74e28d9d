"""What mkdocs calls while it builds the site: pages made from the code, and links to files outside docs/."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import gallery
import notebooks
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Pages of the site that are files of the repository's root.
OF_ROOT = {
    "changelog.md": "CHANGELOG.md",
    "code-of-conduct.md": "CODE_OF_CONDUCT.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
# Pages with wide tables or reports.
WIDE = ("gallery.md", "glossary.md", "index.md", "methods.md")
LINK = re.compile(r"(\]\(|(?:src|srcset|href)=\")([^)\"#\s]+)(?=[)\"#\s])")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Fills the sections of the navigation whose pages are made."""
    made = {"API": reference.api_pages(), "Command reference": reference.command_pages()}
    for entry in config.nav or []:
        for title in made.keys() & entry.keys():
            entry[title] = [{name: uri} for uri, (name, _) in made[title].items()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that are made, and files of the repository that pages link to."""
    for pages in (reference.api_pages(), reference.command_pages()):
        for uri, (_, text) in pages.items():
            files.append(File.generated(config, uri, content=text))
    for uri, name in OF_ROOT.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    made = notebooks.drafts if os.environ.get("DOCS_DRAFT") else executed
    for uri, content in made(ROOT / "docs"):
        if known := files.get_file_from_path(uri):
            files.remove(known)
        files.append(File.generated(config, uri, content=content))
    linked = {path for file in files.documentation_pages() for path in outside(file)}
    for path in sorted(linked):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))


def executed(docs: Path) -> Iterator[tuple[str, str | bytes]]:
    """Pages that jobs run for: notebooks, and the gallery of reports."""
    yield from notebooks.pages(docs / "notebooks")
    yield from gallery.files(docs / "gallery.md")


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A page's text with links to where the site has what they name; wide pages have no list of contents beside."""
    if page.file.src_uri in WIDE or page.file.src_uri.startswith("commands/"):
        page.meta["hide"] = ["toc"]

    def on_site(found: re.Match[str]) -> str:
        target = site_path(page.file.src_uri, found[2])
        return found[1] + (relpath(target, PurePosixPath(page.file.src_uri).parent) if target else found[2])

    return "".join(
        part if part.lstrip().startswith("```") else LINK.sub(on_site, part) for part in FENCE.split(markdown)
    )


def repository_path(uri: str, link: str) -> str | None:
    """The path in the repository that a link of a page names; None of a link to another site or into the page."""
    if re.match(r"[a-z]+:|#|/", link):
        return None
    return normpath(PurePosixPath(OF_ROOT.get(uri, f"docs/{uri}")).parent / link)


def site_path(uri: str, link: str) -> str | None:
    """Where the site has what a link names; None where the link is right as it is."""
    path = repository_path(uri, link)
    if path is None or (uri not in OF_ROOT and path.startswith("docs/")):
        return None
    pages = {name: page for page, name in OF_ROOT.items()} | {"README.md": "index.md"}
    return pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")


def outside(file: File) -> Iterator[str]:
    """Files of the repository outside docs/ that a page links to."""
    for part in FENCE.split(file.content_string):
        if not part.lstrip().startswith("```"):
            for _, link in LINK.findall(part):
                path = repository_path(file.src_uri, link)
                if path and (site_path(file.src_uri, link) or "").startswith("files/") and (ROOT / path).is_file():
                    yield path
