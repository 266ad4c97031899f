"""The site: built strictly, whole without a network, and searched from disk in a browser that is offline."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import l4spec
import planners

pytest.importorskip("material", reason="needs mkdocs-material, in the extra `site`")
pytest.importorskip("mkdocstrings", reason="needs mkdocstrings, in the extra `site`")

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
"""Elements that a browser fetches something for, and the attribute that says what."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built once in a folder of its own, with every warning an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return out


class Fetches(HTMLParser):
    """Gathers what a browser would fetch for a page, and the names of its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if identity := values.get("id"):
            self.names.add(identity)
        if tag in FETCHED and (url := values.get(FETCHED[tag])):
            self.urls.append(url)
        if tag == "link" and values.get("rel") != "canonical" and (url := values.get("href")):
            self.urls.append(url)
        if "mermaid" in (values.get("class") or "").split():
            self.urls.append("https://mermaid")  # the theme's script would fetch the library that draws it


def parsed(page: Path) -> Fetches:
    fetches = Fetches()
    fetches.feed(page.read_text(encoding="utf-8"))
    return fetches


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 40
    for page in pages:
        urls = parsed(page).urls
        assert [url for url in urls if re.match(r"(?:\w+:)?//", url)] == [], page.name
        missing = [url for url in urls if not url.startswith("data:") and not reached(page, url, site).exists()]
        assert missing == [], page.name
    styles = [sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css")]
    assert styles
    assert [url for text in styles for url in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)", text)] == []


def reached(page: Path, url: str, site: Path) -> Path:
    """The file that a reference leads to. The page for missing pages is served from the root."""
    path = url.partition("?")[0].partition("#")[0]
    return site / path.lstrip("/") if path.startswith("/") else page.parent / path


def test_every_page_of_docs_and_every_task_is_a_page_of_the_site(site: Path) -> None:
    docs = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(str(path) for path in docs if path.name != "README.html" and not (site / path).is_file()) == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    names = {
        f"{package.__name__}.{name}"
        for package in (l4spec, planners)
        for name in dir(package)
        if not name.startswith("_")
    }
    assert len(names) >= 15
    assert names - parsed(site / "api.html").names == set()


def test_the_gallery_shows_what_the_commands_make_today(site: Path) -> None:
    drawn = (site / "gallery" / "scout.svg").read_text(encoding="utf-8")
    assert drawn == (ROOT / "docs" / "pictures" / "scout.svg").read_text(encoding="utf-8")
    page = (site / "gallery.html").read_text(encoding="utf-8")
    made = sorted(path.name for path in (site / "gallery").iterdir())
    assert len(made) >= 10
    assert [name for name in made if f'"gallery/{name}"' not in page] == []


def test_the_accuracy_page_has_a_dot_for_every_replayed_row_of_its_quantities(site: Path) -> None:
    from planners.evidence.replay import replay
    from planners.evidence.rows import published_rows
    from website.accuracy_plots import FEWEST_ROWS

    replayed = [each for each in replay(published_rows()) if each.predicted and each.row.published]
    rows = {(each.row.id, f"{each.error:+.1%}") for each in replayed}
    charts = [path.read_text(encoding="utf-8") for path in (site / "accuracy").glob("*.svg")]
    assert len(charts) >= 5
    for chart in charts:
        dots = re.findall(r"<title>(\S+) [^<]*: ([+-][\d.]+%)</title>", chart)
        assert len(dots) >= FEWEST_ROWS
        assert set(dots) <= rows
        counts = re.findall(r"\((\d+) rows\)", chart)
        assert sum(map(int, counts)) == len(dots)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, in the extra `dev`")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path: apt-get install chromium")
    own = {name: str(tmp_path_factory.mktemp(name)) for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env={**os.environ, **own})
        yield opened
        opened.close()


@pytest.mark.parametrize("name", ["index.html", "gallery.html", "accuracy-plots.html", "architecture.html"])
def test_a_page_opens_from_disk_with_its_pictures_and_its_search(browser: Any, site: Path, name: str) -> None:
    page = browser.new_context(offline=True, viewport={"width": 1200, "height": 800}).new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((site / name).as_uri())
    assert page.evaluate("[...document.images].length > 0 && [...document.images].every(i => i.naturalWidth > 0)")
    page.locator("input[name=query]").click()
    page.keyboard.type("chunked attention")
    page.locator(".md-search-result__item a").first.wait_for(timeout=20_000)
    assert page.locator(".md-search-result__item").count() >= 3
    assert [url for url in requests if not url.startswith(("file:", "about:", "blob:", "data:"))] == []
    assert complaints == []
    page.context.close()
