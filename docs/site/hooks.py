"""Hooks of mkdocs: pages outside docs/ (README, CONTRIBUTING, ...), generated reference pages, executed notebooks.

Pages link to each other by their places in the repository, so that they can be read there too. The links are rewritten
to the places on the site; a file that is no page is copied.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import reference

ROOT = Path(__file__).parents[2]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "benchmarks/README.md")
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
NAMED_BY_PATH = re.compile(r"\[[\w./-]+\.md(?=\]\(([^)#\s]+))")


def site_path(path: str) -> str:
    """The place on the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def repository_path(path: str) -> str:
    """The file of the repository that is at a place on the site."""
    outside = {site_path(each): each for each in OUTSIDE}
    return outside.get(path, path if path.startswith("examples/") else f"docs/{path}")


def linked(markdown: str, path: str) -> list[str]:
    """The files of the repository to which the page at `path` of the repository links."""
    found = (posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link, _ in LINK.findall(markdown))
    return [each for each in found if not each.startswith("..") and (ROOT / each).is_file()]


def relinked(markdown: str, path: str) -> str:
    """The page at `path` of the repository with links to places on the site."""
    here = posixpath.dirname(site_path(path))

    def place(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        if target.startswith("..") or not (ROOT / target).is_file():
            return match[0]
        return f"]({posixpath.relpath(site_path(target), here or '.')}{match[2] or ''})"

    return LINK.sub(place, markdown)


def titled(markdown: str, path: str) -> str:
    """The page at `path` of the repository with titles of pages for the file names that are texts of links."""

    def title(match: re.Match[str]) -> str:
        target = ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        found = re.search(r"^# (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if target.is_file() else None
        return f"[{found[1]}" if found else match[0]

    return NAMED_BY_PATH.sub(title, markdown)


def with_plain_pipes(markdown: str) -> str:
    r"""The page with | for \| in code inside of tables: GitHub needs the backslash, Python-Markdown shows it."""
    lines = markdown.split("\n")
    plain = (CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line[:1] == "|" else line for line in lines)
    return "\n".join(plain)


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by file name."""
    import nbformat
    from nbconvert import MarkdownExporter

    node = nbformat.read(path, as_version=4)
    resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    body, resources = MarkdownExporter().from_notebook_node(node, resources)
    return body, resources["outputs"]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that are not in docs/."""

    def add(path: str, content: str | bytes) -> None:
        if path not in files.src_uris:
            files.append(File.generated(config, path, content=content))

    for path, page in reference.pages().items():
        add(path, page)
    for path in OUTSIDE:
        add(site_path(path), (ROOT / path).read_text(encoding="utf-8"))
    for each in sorted((ROOT / "examples").glob("*.ipynb")):
        page, pictures = notebook(each)
        add(f"examples/{each.stem}.md", f"{page.rstrip()}\n\n[The script of this page]({each.stem}.py)\n")
        for name, picture in pictures.items():
            add(f"examples/{name}", picture)
    for file in list(files.documentation_pages()):
        path = repository_path(file.src_uri)
        for target in linked(file.content_string, path):
            if not target.endswith((".md", ".ipynb")):
                add(site_path(target), (ROOT / target).read_bytes())
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of a page that is in the repository, and the code in its tables."""
    if page.file.src_uri == "CHANGELOG.md":
        page.meta["search"] = {"exclude": True}  # it names everything, and explains nothing
    if page.file.src_uri.startswith("reference/"):
        return markdown
    path = repository_path(page.file.src_uri)
    return relinked(titled(with_plain_pipes(markdown), path), path)
