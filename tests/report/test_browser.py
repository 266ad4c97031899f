"""Reports in a real browser that is offline: no request, no complaint, no wider than its window, usable by keys."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.report.drawing import to_svg
from l4spec.report.html import to_html
from l4spec.report.picture import picture_of
from l4spec.report.report_page import report_page
from planners import plan
from tests.cli.conftest import Run, run

__all__ = ["run"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, in the extra `dev`")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    own = {name: str(tmp_path_factory.mktemp(name)) for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env={**os.environ, **own})
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = l4spec.compile(l4spec.load("scout"))
    path = tmp_path_factory.mktemp("report") / "scout.html"
    path.write_text(to_html(report_page(graph, plan(graph, gpus="8xH100"))), "utf-8")
    return path


KINDS = {
    "comparison": ("report", "scout", "maverick", "--gpus", "8xH200"),
    "search": ("search", "scout", "--gpus", "4xH100", "--prompt-tokens", "1k", "--output-tokens", "100"),
    "scenario": ("report", "scenarios/guarded"),
    "recipe": ("report", "recipes/behemoth", "--gpus", "32768xH100"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_report_asks_for_nothing_and_fits_its_window(
    browser: Any, run: Run, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"{kind}.html"
    done = run(*KINDS[kind], "--format", "html", "--out", str(path))
    assert done.exit_code == 0, done.stderr
    for scheme, width in (("light", 1200), ("dark", 360)):
        size = {"width": width, "height": 800}
        page = browser.new_context(offline=True, color_scheme=scheme, viewport=size).new_page()
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.on("console", lambda message, seen=complaints: seen.append(message.text))
        page.goto(path.as_uri())
        assert (requests, complaints) == ([path.as_uri()], [])
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        words = page.evaluate("[...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute('aria-label'))")
        assert words
        assert all(words)
        page.context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360), ("dark", 360)])
def test_a_report_asks_for_nothing_and_fits_every_screen(browser: Any, report: Path, scheme: str, width: int) -> None:
    page = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    assert requests == [report.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 28)"}[scheme]
    page.context.close()


A4_WIDTH = 718
"""CSS pixels between margins of 1 cm of an A4 page: 190 mm at 96 pixels an inch."""


@pytest.mark.parametrize("kind", ["plan", *KINDS])
def test_nothing_is_cut_off_on_paper(browser: Any, run: Run, report: Path, tmp_path: Path, kind: str) -> None:
    path = report if kind == "plan" else tmp_path / f"{kind}.html"
    if kind != "plan":
        assert run(*KINDS[kind], "--format", "html", "--out", str(path)).exit_code == 0
    page = browser.new_context(offline=True, viewport={"width": A4_WIDTH, "height": 1000}).new_page()
    page.goto(path.as_uri())
    page.emulate_media(media="print", color_scheme="light")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_WIDTH
    assert page.evaluate("[...document.querySelectorAll('nav')].every(n => getComputedStyle(n).display == 'none')")
    page.context.close()


def test_text_stands_out_from_its_ground_by_the_accessible_ratio(browser: Any, report: Path) -> None:
    for scheme in ("light", "dark"):
        page = browser.new_context(offline=True, color_scheme=scheme).new_page()
        page.goto(report.as_uri())
        for element in ("body", "dt", "th", "figcaption", "footer", "nav a", ".label"):
            colors = page.evaluate(_COLORS, element)
            assert contrast(*colors) >= 4.5, (scheme, element)  # WCAG 2.2, 1.4.3, level AA
        page.context.close()


def test_a_number_is_opened_by_keys_alone(browser: Any, report: Path) -> None:
    page = browser.new_context(offline=True).new_page()
    page.goto(report.as_uri())
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    assert page.evaluate("document.activeElement.parentElement.innerText.includes('source')")
    page.context.close()


def test_every_drawing_says_in_words_what_it_shows(browser: Any, report: Path) -> None:
    page = browser.new_context(offline=True).new_page()
    page.goto(report.as_uri())
    words = page.evaluate("[...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute('aria-label'))")
    assert len(words) == 5
    assert all(len(each) > 30 for each in words)
    page.context.close()


def test_a_picture_turns_dark_with_the_screen(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "scout.svg"
    path.write_text(to_svg(picture_of(l4spec.compile(l4spec.load("scout")))), "utf-8")
    fills = []
    for scheme in ("light", "dark"):
        page = browser.new_context(offline=True, color_scheme=scheme).new_page()
        page.goto(path.as_uri())
        fills.append(page.evaluate("getComputedStyle(document.querySelector('.ground')).fill"))
        page.context.close()
    assert fills == ["rgb(255, 255, 255)", "rgb(20, 22, 28)"]


_COLORS = """selector => {
  const element = document.querySelector(selector);
  const read = color => color.match(/[0-9.]+/g).slice(0, 3).map(Number);
  return [read(getComputedStyle(element).color), read(getComputedStyle(document.body).backgroundColor)];
}"""


def contrast(one: list[float], other: list[float]) -> float:
    """The ratio of relative luminances of two sRGB colors by WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(color: list[float]) -> float:
    red, green, blue = (v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
