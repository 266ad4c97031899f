"""The page in a real browser: every control moves, nothing complains, keys suffice, and a phone shows it whole."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from l4spec.explore.app import make_app
from l4spec.explore.explorer import Explorer
from l4spec.explore.serve import ADDRESS, bound
from tests.report.test_browser import CHROMIUM, browser, contrast

__all__ = ["browser"]

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, in the extra `dev`")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path: apt-get install chromium")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served page whose first model has a hostile name and file."""
    path = tmp_path_factory.mktemp("specs") / f"{HOSTILE}.yaml"
    path.write_text(f'l4spec: 1\nextends: scout\nname: own\ndescription: "{HOSTILE}"\n', "utf-8")
    listener = bound(0)
    server = uvicorn.Server(uvicorn.Config(make_app(Explorer(str(path))), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://{ADDRESS}:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@dataclass(frozen=True, slots=True)
class Opened:
    """A page that is open, what it asked for, and what it complained of."""

    page: Any
    requests: list[str]
    complaints: list[str]

    def settle(self) -> None:
        """Wait until the last change is answered."""
        playwright.expect(self.page.locator("body")).to_have_attribute("aria-busy", "false", timeout=30_000)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def move(self, label: str, value: str) -> None:
        self.page.get_by_label(label, exact=True).fill(value)
        self.settle()


def opened(browser: Any, address: str, scheme: str = "light", width: int = 1200) -> Opened:
    page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
    result = Opened(page, [], [])
    page.on("request", lambda request: result.requests.append(request.url))
    page.on("console", lambda message: result.complaints.append(message.text))
    page.on("pageerror", lambda error: result.complaints.append(str(error)))
    page.on("dialog", lambda dialog: result.complaints.append("a dialog"))
    page.goto(address)
    page.locator("#rows tr").first.wait_for()
    result.settle()
    return result


def controls(page: Any) -> list[Any]:
    return [each for each in page.locator("#form input, #form select, #form button").all() if each.is_visible()]


def test_every_control_moves_the_plan_and_nothing_complains(browser: Any, address: str) -> None:
    it = opened(browser, address)
    it.page.locator("#model").select_option("scout")
    it.settle()
    each = it.page.locator("#form input[type=range]").all()
    assert len(each) >= 9
    for slider in each:
        before = it.text("#command")
        slider.press("ArrowRight")
        it.settle()
        assert it.text("#general") == ""
        assert it.text("#command") != before
    for name, value in (
        ("quantization", "fp8"),
        ("kv_dtype", "fp8"),
        ("hardware", "h200"),
        ("engine", "vllm-hybrid"),
    ):
        before = it.text("#command")
        it.page.locator(f"#o-{name}").select_option(value)
        it.settle()
        assert it.text("#command") != before, name
    it.move("$ per GPU-hour", "2")
    assert it.text("#command").endswith("--usd-per-gpu-hour 2.0")
    it.page.get_by_role("button", name="Back to the model as it is").click()
    it.settle()
    assert "--set" not in it.text("#command")
    it.page.get_by_role("button", name="Write the launch").click()
    playwright.expect(it.page.locator("#launched")).to_contain_text("vllm serve", timeout=30_000)
    with it.page.expect_download() as download:
        it.page.get_by_role("button", name="Save the report as HTML").click()
    assert Path(download.value.path()).read_text("utf-8").startswith("<!DOCTYPE html>")
    it.page.locator("#o-quantization").select_option("bf16")
    it.move("GPUs", "1")
    it.page.get_by_role("button", name="What would make it fit?").click()
    playwright.expect(it.page.locator("#fitting")).to_contain_text("on the fullest GPU", timeout=30_000)
    own = [request for request in it.requests if request.startswith((address, f"blob:{address}", "data:"))]
    assert it.requests == own
    assert it.complaints == []
    it.page.context.close()


def test_a_bad_value_is_explained_at_its_field_and_mended_there(browser: Any, address: str) -> None:
    it = opened(browser, address)
    field = it.page.get_by_label("experts per token (top-k)", exact=True)
    it.move("experts per token (top-k)", "99")
    problem = it.page.locator(f"#{field.get_attribute('aria-describedby')}")
    assert "must not exceed num_experts" in problem.inner_text()
    assert field.get_attribute("aria-invalid") == "true"
    it.move("context, tokens (prompt and output)", "1x")
    assert "number of tokens" in it.text("#e-context")
    assert (it.text("#yaml"), it.text("#command")) == ("", "")
    it.move("experts per token (top-k)", "2")
    it.move("context, tokens (prompt and output)", "100k")
    assert (problem.inner_text(), it.text("#e-context"), it.text("#general")) == ("", "", "")
    assert "num_experts_per_token" in it.text("#yaml")
    assert it.complaints == []
    it.page.context.close()


def test_keys_alone_reach_and_move_everything(browser: Any, address: str) -> None:
    it = opened(browser, address)
    reached = set()
    for _ in range(80):
        it.page.keyboard.press("Tab")
        if it.page.evaluate("document.activeElement.id === 'f-0'"):
            it.page.keyboard.press("Control+A")
            it.page.keyboard.type("32")
        reached.add(it.page.evaluate("document.activeElement.outerHTML"))
    it.settle()
    visible = "e => e.disabled || e.hidden || e.offsetParent === null ? null : e.outerHTML"
    expected = {it.page.evaluate(visible, each.element_handle()) for each in controls(it.page)} - {None}
    assert len(expected) >= 25
    ids = {_id(html) for html in reached}
    assert {_id(html) for html in expected} <= ids
    assert "num_experts=32" in it.text("#command")
    it.page.context.close()


def _id(html: str) -> str:
    """What tells a control from others: its tag with id, or the field that a slider is for."""
    tag = html.partition(">")[0]
    return next((word for word in tag.split() if word.startswith(("id=", "data-for="))), tag)


def test_every_control_has_a_name(browser: Any, address: str) -> None:
    it = opened(browser, address)
    unnamed = it.page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter("
        "e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).length"
    )
    assert unnamed == 0
    it.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_fits_every_screen_and_can_be_read(browser: Any, address: str, scheme: str, width: int) -> None:
    it = opened(browser, address, scheme, width)
    it.move("experts", "32")
    assert it.page.evaluate("document.documentElement.scrollWidth") <= width
    for element in ("#verdict", "label", "tbody th", "td.moved", "#notes li", "footer"):
        colors = it.page.evaluate(_COLORS, element)
        assert contrast(*colors) >= 4.5, element  # WCAG 2.2, 1.4.3, level AA
    it.move("experts", "none")
    assert contrast(*it.page.evaluate(_COLORS, "#controls .problem:not(:empty)")) >= 4.5
    it.page.context.close()


def test_a_hostile_name_stays_text(browser: Any, address: str) -> None:
    it = opened(browser, address)
    assert HOSTILE in it.text("#command")
    assert HOSTILE in it.text("#model option:first-child")
    assert it.page.locator("img").count() == 0
    assert it.complaints == []
    it.page.context.close()


_COLORS = """selector => {
  const element = document.querySelector(selector);
  const read = color => color.match(/[0-9.]+/g).slice(0, 3).map(Number);
  let ground = element;
  while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  return [read(getComputedStyle(element).color), read(getComputedStyle(ground).backgroundColor)];
}"""
