"""The report of a scenario: curves and bars of the simulated requests, and every number opened."""

import re
from dataclasses import dataclass

import pytest

from l4spec.report.document_reports import scenario_report
from l4spec.report.html import to_html
from l4spec.report.page import Details, Facts, Figure, Page
from l4spec.report.quantities import seconds
from l4spec.report.request_charts import SHOWN_REQUESTS
from l4spec.spec.scenario.references import load_scenario
from planners.simulate.planning import planned_servers
from planners.simulate.run import Outcome, Simulation
from planners.simulate.scenario_plan import ScenarioPlan, plan_scenario


@dataclass(frozen=True, slots=True)
class Reported:
    """A scenario's plan, what became of its load, and the page of both."""

    plan: ScenarioPlan
    outcome: Outcome
    page: Page

    def figure(self, title: str) -> Figure:
        """The first drawing under a title."""
        blocks = [block for section in self.page if section.title == title for block in section.blocks]
        return next(block for block in blocks if isinstance(block, Figure))


def reported(name: str, *overrides: str) -> Reported:
    loaded = load_scenario(name, overrides)
    servers = planned_servers(loaded)
    plan, outcome = plan_scenario(loaded, servers), Simulation(loaded, servers).run()
    return Reported(plan, outcome, scenario_report(plan, outcome, loaded.scenario.sources))


@pytest.fixture(scope="module")
def guarded() -> Reported:
    return reported("scenarios/guarded", "workload.requests=60")


def test_the_latency_curves_pass_the_percentiles_of_the_table(guarded: Reported) -> None:
    result, figure = guarded.outcome.result, guarded.figure("Latency")
    rows = {row[0]: dict(zip(figure.table.headers[1:], row[1:], strict=True)) for row in figure.table.rows}
    assert set(rows) == {"TTFT", "TPOT", "E2E"}
    for name, values in (("TTFT", result.ttft), ("TPOT", result.tpot), ("E2E", result.e2e)):
        assert values is not None
        for percent, value in ((50, values.p50), (90, values.p90), (95, values.p95), (99, values.p99)):
            assert rows[name][f"{percent} %"] == f"~{seconds(value)}"
        assert rows[name]["100 %"] == f"~{seconds(values.max)}"
    chart = figure.values["chart"]
    curves = [line for line in chart.lines if line.style in ("c0", "c1", "c2") and line.points.count(" ") > 1]
    assert len(curves) == 3
    for curve in curves:
        heights = [int(point.split(",")[1]) for point in curve.points.split()]
        assert heights == sorted(heights, reverse=True)  # a share of requests only grows with time
    assert [text.text for text in chart.texts if text.text in ("TTFT 1.00 s", "TPOT 50.00 ms")]


def test_the_stretch_has_the_request_that_waited_longest_and_its_times(guarded: Reported) -> None:
    figure = guarded.figure("A stretch of the timeline")
    assert len(figure.table.rows) == SHOWN_REQUESTS
    served = [request for request in guarded.outcome.requests if request.first_token_at >= 0]
    slowest = max(served, key=lambda request: request.ttft)
    row = next(row for row in figure.table.rows if row[0] == f"request {slowest.number}")
    waits = (slowest.scheduled_at - slowest.arrival, slowest.first_token_at - slowest.scheduled_at)
    assert row[4:6] == tuple(f"~{seconds(wait / 1e9)}" for wait in waits)
    drawn = [line for line in figure.values["chart"].lines if line.style == "slab broad c0"]
    assert len(drawn) == SHOWN_REQUESTS + 1  # and one in the legend


def test_the_stages_of_one_request_end_when_the_plan_says(guarded: Reported) -> None:
    rows = guarded.figure("One request alone, stage by stage").table.rows
    ends = {row[0]: row[3] for row in rows}
    assert [row[0] for row in rows] == [stage.name for stage in guarded.plan.stages]
    assert ends["answer"] == f"~{seconds(guarded.plan.e2e_seconds)}"  # the check after it is of the stream
    begins = {row[0]: row[1] for row in rows}
    assert begins["guard-answer"] == ends["answer"]
    blocking = reported("scenarios/guarded", "workload.requests=5", "chain[3].check=blocking")
    last = blocking.figure("One request alone, stage by stage").table.rows[-1]
    assert last[3] == f"~{seconds(blocking.plan.e2e_seconds)}"


def test_every_number_opens_its_formula_its_source_and_its_error(guarded: Reported) -> None:
    opened = [block for section in guarded.page for block in section.blocks if isinstance(block, Details)]
    inner = [each for block in opened for each in block.blocks if isinstance(each, Details)]
    for block in (*opened, *inner):
        facts = [dict(each.rows) for each in block.blocks if isinstance(each, Facts)]
        assert any(isinstance(each, Details) for each in block.blocks) or set(facts[0]) == {
            "formula",
            "source",
            "error",
        }, block.label
        assert all(text for fact in facts for text in fact.values())
    labels = {block.label for block in (*opened, *inner)}
    assert {"time to first token", "requests", "GPUs", "cache", "sequences", "TTFT", "E2E"} <= labels


def test_the_sum_to_the_first_token_adds_up(guarded: Reported) -> None:
    opened = {b.label: b for section in guarded.page for b in section.blocks if isinstance(b, Details)}
    for label, value in (("TTFT", guarded.plan.ttft_seconds), ("E2E", guarded.plan.e2e_seconds)):
        (facts,) = [dict(block.rows) for block in opened[label].blocks if isinstance(block, Facts)]
        terms = re.findall(r"([\d.]+) (ms|s) ", facts["formula"])
        total = sum(float(number) * (1e-3 if unit == "ms" else 1.0) for number, unit in terms)
        rounded = sum(0.005 * (1e-3 if unit == "ms" else 1.0) for _, unit in terms)  # half of each last digit
        assert total == pytest.approx(value, abs=rounded)


def test_a_load_that_ends_early_or_has_one_token_is_reported(guarded: Reported) -> None:
    single = reported("scenarios/chat", "workload.requests=3", "workload.output_tokens=1", "estimated=[]")
    assert {row[0] for row in single.figure("Latency").table.rows} == {"TTFT", "E2E"}
    html = to_html(single.page)
    assert len(html.encode()) < 3_000_000
    assert "<h2>A stretch of the timeline</h2>" in html
