"""A hook of mkdocs: a page may link to any file of the repository, and what it links to becomes part of the site.

So docs/ reads the same on a disk and in the site. A Markdown file becomes a page, any other file is copied. Files of
docs/ keep their place; others stand under their path in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to, the files that those link to, and so on."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    waiting += sorted((ROOT / "records").glob("*/README.md"))
    seen = set()
    while waiting:
        path = waiting.pop()
        if path not in seen and files.get_file_from_path(site_uri(path)) is None:
            files.append(File.generated(config, site_uri(path), abs_src_path=str(path)))
        if path not in seen and path.suffix == ".md":
            waiting += linked(path)
        seen.add(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 (by name)
    """Make the links of a page lead to the places that their files have in the site."""
    path = Path(page.file.abs_src_path or "")

    def moved(match: re.Match[str]) -> str:
        target = target_of(path, match[0])
        return posixpath.relpath(site_uri(target), posixpath.dirname(page.file.src_uri)) if target else match[0]

    return LINK.sub(moved, markdown)


def linked(path: Path) -> list[Path]:
    """Return the files of the repository that a page links to."""
    return [target for link in LINK.findall(path.read_text()) if (target := target_of(path, link))]


def target_of(path: Path, link: str) -> Path | None:
    """Return the file that a link of a page leads to, or None if there is none. A folder means its README."""
    target = (path.parent / link).resolve()
    if target.is_dir():
        target /= "README.md"
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def site_uri(path: Path) -> str:
    """Return the place of a file of the repository in the site."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
