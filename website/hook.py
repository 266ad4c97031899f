"""The hook of mkdocs.yml: pages that are not in docs/, links that lead out of it, and what is made at build time.

The home page is README.md, the index of docs/ is "All pages", the Python reference has every public name, and the
gallery is drawn by the command line. Other files that pages link to are copied as text, so that the site stands alone.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import l4spec
import planners
from website.accuracy_plots import accuracy_plots
from website.gallery import gallery

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "examples/README.md": "examples/README.md",
    "examples/notebook/README.md": "examples/notebook/README.md",
    "examples/new_kind/README.md": "examples/new_kind/README.md",
    "examples/custom_moe/README.md": "examples/custom_moe/README.md",
    "examples/sharded_training/README.md": "examples/sharded_training/README.md",
    "examples/probing/README.md": "examples/probing/README.md",
    "tests/README.md": "tests/README.md",
}
"""Pages that are not in docs/, or under another name there: path in the repository → path in the site."""
_INSIDE = {site: source for source, site in OUTSIDE.items()}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^(`{3,})(\w+) +(?:(?:title|file)=(\S+)|\S+)[^\n]*$", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Take docs/README.md by its other name, and add what is made here."""
    (index,) = [file for file in files if file.src_uri == "README.md"]
    files.remove(index)
    for source, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    shim = ROOT / "website" / "iframe-worker.js"
    files.append(File.generated(config, "assets/iframe-worker.js", content=shim.read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=reference()))
    for uri, text in (gallery() | accuracy_plots()).items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links as the site has them, and fences without the marks that are for our tests."""
    uri = page.file.src_uri
    source = _INSIDE.get(uri, f"docs/{uri}")

    def mended(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        inside = _site_path(target, config, files)
        return posixpath.relpath(inside, posixpath.dirname(uri) or ".") + (link[2] or "")

    return _LINK.sub(mended, _FENCE.sub(_without_marks, markdown))


def reference() -> str:
    """A page with every public name of both packages, for mkdocstrings to fill from docstrings."""
    lines = [
        "# Python",
        "",
        "For anyone who calls l4spec from Python: every public name of `l4spec` and `planners`, with its signature and",
        "docstring. Other names may change without notice; [compatibility](compatibility.md) says what stays the same.",
    ]
    for package in (l4spec, planners):
        names = [name for name in dir(package) if not name.startswith("_")]
        lines += [line for name in names for line in ("", f"::: {package.__name__}.{name}")]
    return "\n".join(lines) + "\n"


def _site_path(target: str, config: MkDocsConfig, files: Files) -> str:
    """Path in the site of a file of the repository; a file that is not a page is copied as text."""
    if target in OUTSIDE:
        return OUTSIDE[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    path, uri = ROOT / target, f"files/{target}.txt"
    if not path.exists():
        return target  # mkdocs names the page and stops
    if files.get_file_from_path(uri) is None:
        names = sorted(each.name for each in path.iterdir()) if path.is_dir() else None
        content = path.read_bytes() if names is None else "\n".join(names)
        files.append(File.generated(config, uri, content=content))
    return uri


def _without_marks(fence: re.Match[str]) -> str:
    ticks, language, title = fence.groups()
    return f'{ticks}{language} title="{title}"' if title else f"{ticks}{language}"
