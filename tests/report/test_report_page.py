"""The report: verdict first, every part in its place, nothing asked for, nothing that a user writes is markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import l4spec
from l4spec.report.html import to_html
from l4spec.report.page import Bar, Bars, Code, Details, Facts, Lines, Page, Section, Table, to_text
from l4spec.report.report_page import report_page
from planners import plan
from tests.cli.conftest import Run, run
from tests.cpu_time import takes_at_most
from tests.report.conftest import Compile

__all__ = ["run"]

HOSTILE = "</title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'\x00\u202e"
VOID = {"meta", "link", "img", "br"}


class Tags(HTMLParser):
    """The tags of a document, and whether each is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report_of(compiled: Compile, name: str, **options: object) -> str:
    graph = compiled(name)
    return to_html(report_page(graph, plan(graph, **options)))


@pytest.mark.parametrize("name", ["scout", "behemoth", "compare/deepseek-v3", "mobilellm-r1-950m"])
def test_a_report_holds_every_part_within_three_megabytes_and_two_seconds(compiled: Compile, name: str) -> None:
    pages: list[str] = []
    assert takes_at_most(2, lambda: pages.append(report_of(compiled, name, gpus="8xH200")))
    html = pages[0]
    assert len(html.encode()) < 3_000_000
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    for title in ("What it costs", "Architecture", "How the cache grows", "Legal layouts", "Claims", "Every sum"):
        assert title in titles
    assert html.index("<h1>") < html.index("<h2>")
    tags = Tags(html)
    assert not tags.open
    assert tags.names.count("h1") == 1


def test_every_cost_opens_its_formula_its_source_and_its_error(compiled: Compile) -> None:
    graph = compiled("scout")
    costs = report_page(graph, plan(graph, gpus="8xH100"))[1]
    opened = {block.label: block for block in costs.blocks if isinstance(block, Details)}
    assert set(opened) == {"model", "weights", "kv cache", "compute", "longest context", "largest batch"}
    text = to_text((Section("", (opened["model"],)),))
    assert "16 × 5,120 × 8,192" in text.replace("16 × 8,192 × 5,120", "16 × 5,120 × 8,192")
    assert "source" in text
    assert "error" in text


def test_what_rests_on_estimates_is_not_called_exact(compiled: Compile) -> None:
    html = report_of(compiled, "behemoth", gpus="64xH100")
    assert "unknown in the fields that the spec estimates" in html
    assert "error: none, counted exactly" not in html


def test_the_verdict_is_the_title_and_stands_once(compiled: Compile) -> None:
    html = report_of(compiled, "behemoth", gpus="8xH100")
    verdict = "Llama-4-Behemoth-288B-16E does not fit on 8xH100"
    body = html[html.index("<body>") :]
    assert f"<h1>{verdict}" in body
    assert body.count(verdict) == 1
    assert "<p>the weights alone exceed the device</p>" in body
    assert "<h2>What would make it fit</h2>" in body


def test_a_training_plan_and_a_plan_without_gpus_are_reported_too(compiled: Compile) -> None:
    assert "<h2>Roofline</h2>" in report_of(compiled, "tiny/scout", gpus="8xH100", mode="train", batch=8)
    html = report_of(compiled, "scout")
    assert "give --gpus to see whether it fits" in html
    assert "<h2>Roofline</h2>" not in html


def test_nothing_in_a_report_is_fetched_or_run(compiled: Compile) -> None:
    html = report_of(compiled, "scout", gpus="8xH100")
    tags = Tags(html)
    assert not {"script", "iframe", "object", "img", "base", "form"} & set(tags.names)
    addresses = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value == "data:," or (value or "").startswith("#") for value in addresses)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)


def test_no_text_of_any_block_becomes_markup() -> None:
    h = HOSTILE
    inner = Table((h, h), ((h, h),))
    bars = Bars((Bar(h, h, 1), Bar(h, h, 3, hollow=True)), 4)
    page: Page = (
        Section("", (Lines((h, h)),)),
        Section(h, (Facts(((h, h),)), inner, bars, Code((h,)), Details(h, h, (inner,)))),
    )
    html = to_html(page)
    tags = Tags(html)
    assert not {"script", "img"} & set(tags.names)
    assert not tags.open
    assert not re.search("[\x00\u202e]", html)


def test_a_hostile_spec_is_reported_as_text(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "hostile.yaml"
    source = "</svg><script>alert(1)</script>"
    path.write_text(
        f'l4spec: 1\nextends: tiny/scout\nname: x\ndescription: "{source}"\nsources: ["{source}"]\n', "utf-8"
    )
    out = tmp_path / "x.html"
    done = run("report", str(path), "--gpus", "1xH100", "--out", str(out))
    assert (done.exit_code, done.stderr) == (0, f"wrote {out}\n")
    html = out.read_text("utf-8")
    assert "script" not in Tags(html).names
    assert "&lt;script&gt;" in html


def test_the_same_model_gives_the_same_report(compiled: Compile) -> None:
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    again = to_html(report_page(graph, plan(graph, gpus="1xH100")))
    assert again == report_of(compiled, "tiny/scout", gpus="1xH100")


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "tiny/scout", "--gpus", "1xH100"),
        ("plan", "--gpus", "8xH100"),
        ("compare", "tiny/scout", "tiny/maverick"),
        ("verify", "scout"),
        ("report", "tiny/scout"),
        ("report", "tiny/scout", "tiny/maverick"),
        ("report", "scenarios/guarded", "--set", "workload.requests=20"),
        ("report", "recipes/scout"),
        ("plan", "recipes/scout"),
        ("plan", "scenarios/guarded"),
        ("show", "scout"),
        ("search", "scout", "--gpus", "4xH100", "--prompt-tokens", "1k", "--output-tokens", "100", "--rate", "1/s"),
    ],
)
def test_every_command_that_reports_writes_html(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--format", "html")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.lstrip().startswith("<!DOCTYPE html>")
    assert not Tags(done.stdout).open


DOCUMENTS = {
    "a comparison": (("scout", "maverick", "behemoth", "--gpus", "8xH200"), ("Side by side", "How the caches grow")),
    "a scenario": (("scenarios/guarded",), ("Latency", "scout over", "One request alone", "What the times rest on")),
    "a recipe": (("recipes/posttrain",), ("Phases", "Architecture of the model")),
    "a costed recipe": (("recipes/behemoth", "--gpus", "32768xH100"), ("Where the GPU-hours go", "Phases")),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_kind_of_document_has_a_report_that_fetches_nothing(run: Run, name: str) -> None:
    arguments, titles = DOCUMENTS[name]
    done = run("report", *arguments)
    assert done.exit_code == 0, done.stderr
    html = done.stdout
    assert len(html.encode()) < 3_000_000
    tags = Tags(html)
    assert not tags.open
    assert "script" not in tags.names
    assert not [
        value for key, value in tags.attributes if key in ("src", "href") and not str(value).startswith(("#", "data:"))
    ]
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    for title in titles:
        assert sum(heading.startswith(title) for heading in headings) == 1, (title, headings)


def test_a_hostile_scenario_and_recipe_are_reported_as_text(tmp_path: Path, run: Run) -> None:
    source = "</svg><script>alert(1)</script>"
    scenario = tmp_path / "hostile.yaml"
    scenario.write_text(
        "l4spec: 1\nkind: scenario\nname: x\n"
        f'description: "{source}"\nsources: ["{source}"]\nmodels: {{m: {{spec: tiny/scout, gpus: 1xH100}}}}\n'
        "workload: {arrivals: {kind: closed, clients: 1}, prompt_tokens: 10, output_tokens: 5, requests: 2}\n",
        "utf-8",
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'l4spec: 1\nkind: recipe\nextends: recipes/scout\nname: x\nsources: ["{source}"]\n', "utf-8")
    for path in (scenario, recipe):
        done = run("report", str(path))
        assert done.exit_code == 0, done.stderr
        assert "script" not in Tags(done.stdout).names


LOAD = ("--prompt-tokens", "100", "--output-tokens", "10")
ON_SPECS = {
    "plan": ("plan", "--gpus", "1xH100"),
    "compare": ("compare", "tiny/scout", "--gpus", "1xH100"),
    "report of two": ("report", "tiny/scout", "--gpus", "1xH100"),
    "verify": ("verify",),
    "show": ("show",),
    "search": ("search", "--gpus", "1xH100", *LOAD, "--rate", "1/s"),
    "sweep": ("sweep", "--set", "text.parts.moe.num_experts=8,16"),
    "simulate": ("simulate", "--gpus", "1xH100", *LOAD, "--rate", "1/s", "--requests", "3"),
}


@pytest.mark.parametrize("name", ON_SPECS)
def test_a_hostile_spec_is_text_in_the_html_of_every_command(tmp_path: Path, run: Run, name: str) -> None:
    text = "</svg></title><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    path = folder / "hostile.yaml"
    path.write_text(
        f'l4spec: 1\nextends: tiny/scout\nname: x\ndescription: "{text}"\nsources: ["{text}"]\n'
        f'about: {{license: "{text}", source: "{text}"}}\n'
        f'claims: [{{quantity: total_params, value: 1, source: "{text}"}}]\n',
        "utf-8",
    )
    command, *options = ON_SPECS[name]
    done = run(command, str(path), *options, "--format", "html")
    assert done.exit_code in (0, 1, 3), done.stderr
    assert done.stdout.lstrip().startswith("<!DOCTYPE html>")
    tags = Tags(done.stdout)
    assert not {"script", "img"} & set(tags.names)
    assert not tags.open
    assert not [key for key, _ in tags.attributes if key.startswith("on")]


SEARCH = ("search", "scout", "--gpus", "4xH100", "--prompt-tokens", "1k", "--output-tokens", "100", "--tpot", "9ms")


def test_the_front_of_a_search_is_drawn_with_a_row_for_each_dot(run: Run) -> None:
    html, document = (run(*SEARCH, "--format", form).stdout for form in ("html", "json"))
    front = json.loads(document)["front"]
    meeting = sum(point["meets_limits"] for point in front)
    assert 0 < meeting < len(front)
    drawing = html[html.index("<svg") : html.index("</svg>")]
    assert drawing.count('<circle class="c0"') == meeting + 1  # and one in the legend
    assert drawing.count('<circle class="c1 open"') == len(front) - meeting + 1
    figure = html[html.index("<figcaption>") :]
    numbers = re.findall(r"<tr><td>(.*?)</td>", figure[: figure.index("</figure>")])
    assert numbers == [str(number) for number in range(1, len(front) + 1)]
    assert "<pre" not in html


@pytest.mark.parametrize(
    "asked",
    [("--prompt-tokens", "2k", "--output-tokens", "200"), ("--mode", "train", "--tokens", "1T", "--deadline", "700d")],
)
def test_a_search_holds_the_whole_report_of_its_best(run: Run, asked: tuple[str, ...]) -> None:
    """What the row of the best links to is what its own plan is reported as."""
    arguments = ("search", "llama-3.1-8b", "--gpus", "8xH100", *asked)
    best = json.loads(run(*arguments, "--format", "json").stdout)["ranked"][0]["request"]
    page = run(*arguments, "--format", "html").stdout
    planned = plan("llama-3.1-8b", **best)
    assert page.count("<details") > 20
    assert f"{planned.memory_per_device.total_bytes:,} B" in page
    assert "Every sum" in page


def test_the_marks_of_a_search_are_explained_where_a_row_has_them(run: Run) -> None:
    for top in ("1", "10"):
        text = run(*SEARCH, "--top", top).stdout
        rows = re.findall(r"^ *(\d+=?) +\S*\d+x", text, re.MULTILINE)
        assert rows[0].rstrip("=") == "1"
        assert rows[0] == "1"
        assert any(row.endswith("=") for row in rows) == ("= costs the same as the best" in text)


def test_only_specs_are_compared_in_a_report(run: Run) -> None:
    done = run("report", "recipes/scout", "scout")
    assert done.exit_code == 2
    assert "one by one" in done.stderr
