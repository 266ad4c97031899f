"""`l4spec report` of several models, of a scenario and of a recipe: one page each, to read and to send."""

from collections.abc import Iterator, Sequence

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.compare import Comparison, compare_page
from l4spec.report.growth import compared_growth
from l4spec.report.page import Bar, Bars, Block, Details, Lines, Page, Section
from l4spec.report.phase_sums import recipe_sums
from l4spec.report.plan_page import verdict
from l4spec.report.quantities import ESTIMATE_MARK, Figures, amount
from l4spec.report.recipe_page import recipe_claims_page, recipe_page
from l4spec.report.report_page import architecture, report_page
from l4spec.report.request_charts import latency_figure, stages_figure, stretch_figure
from l4spec.report.scenario_page import ONE_ALONE, scenario_page
from l4spec.report.scenario_sums import ScenarioOrigins, scenario_sums
from l4spec.report.simulate_page import LATENCY, headline, simulate_report
from l4spec.spec.recipe.load import LoadedRecipe
from l4spec.verification.recipe_claims import judge
from planners.plan_types import Plan
from planners.recipes.cost import PlannedRecipe
from planners.recipes.recipe_plan import PhasePlan, RecipePlan
from planners.simulate.run import Outcome
from planners.simulate.scenario_plan import ScenarioPlan

REST_ON = "What the times rest on"


def comparison_report(pairs: Sequence[tuple[LayerGraph, Plan]], comparison: Comparison) -> Page:
    """The models side by side, how their caches grow, and the whole report of each, one click away."""
    names = ", ".join(plan.model for _, plan in pairs)
    verdicts = (f"{names} side by side", *(verdict(plan) for _, plan in pairs))
    inner = [_whole_report(graph, plan) for graph, plan in pairs]
    return (
        Section("", (Lines(verdicts),)),
        *_titled(compare_page(comparison), "Side by side"),
        *compared_growth(pairs),
        Section("Each model", tuple(inner)),
    )


def _whole_report(graph: LayerGraph, plan: Plan) -> Details:
    return Details(plan.model, verdict(plan).removeprefix(f"{plan.model} "), _blocks(report_page(graph, plan)))


def with_the_best(page: Page, graph: LayerGraph, plan: Plan) -> Page:
    """The page of a search, and the whole report of its best deployment, with every number's sum, one click away."""
    return (*page, Section("The best of them", (_whole_report(graph, plan),)))


def scenario_report(plan: ScenarioPlan, outcome: Outcome, sources: tuple[str, ...] = ()) -> Page:
    """Report of a scenario: the simulated load, its servers, one request alone, and the arithmetic of every number.

    `sources` are those that the scenario names.
    """
    result = outcome.result
    simulated, planned = simulate_report(result), scenario_page(plan)
    rest_on = dict.fromkeys([*lines_under(REST_ON, planned), *lines_under(REST_ON, simulated)])
    figures = Figures(bool(result.estimated))
    curves = tuple(latency_figure(outcome.requests, result.levels, figures))
    stretch = tuple(stretch_figure(outcome.requests, figures))
    return (
        Section("", (Lines((headline(result), *lines_under("", planned))),)),
        *(one._replace(blocks=(*one.blocks, *curves)) if one.title == LATENCY else one for one in _titles(simulated)),
        *((Section("A stretch of the timeline", stretch),) if stretch else ()),
        *(
            one._replace(blocks=(stages_figure(plan.stages, Figures(bool(plan.estimated))), *one.blocks))
            if one.title == ONE_ALONE
            else one
            for one in _titles(planned)
        ),
        *scenario_sums(ScenarioOrigins(plan, result, sources)),
        Section(REST_ON, (Lines(tuple(rest_on)),)),
    )


def _titles(page: Page) -> Page:
    """The sections of a page that are shown unchanged."""
    return tuple(section for section in page if section.title not in ("", REST_ON))


def lines_under(title: str, page: Page) -> tuple[str, ...]:
    """The sentences of a page under a title."""
    blocks = (block for section in page if section.title == title for block in section.blocks)
    return tuple(line for block in blocks if isinstance(block, Lines) for line in block.lines)


def recipe_report(planned: PlannedRecipe, loaded: LoadedRecipe, graph: LayerGraph) -> Page:
    """Report of a recipe: cost, distribution of its hours, all arithmetic, claims, and the model's architecture."""
    pages = recipe_page(planned.cost)
    return (
        pages[0],
        *_shares(planned.cost),
        *pages[1:],
        *recipe_sums(planned, loaded.recipe, graph),
        *_claims(planned, loaded),
        Section("Architecture of the model", (architecture(graph, None),)),
    )


def _claims(planned: PlannedRecipe, loaded: LoadedRecipe) -> Iterator[Section]:
    """Section of the recipe's claims with verdicts; nothing if the recipe has no claims."""
    if not loaded.recipe.claims:
        return
    try:
        page = recipe_claims_page(judge(loaded, planned.cost))
    except UserError as error:
        lines = tuple(f"a claim cannot be computed: {problem}" for problem in error.problems)
        page = (Section("", (Lines(lines),)),)
    yield Section("Claims", tuple(block for section in page for block in section.blocks))


def _shares(answer: RecipePlan) -> Iterator[Section]:
    """Bars of the phases' GPU-hours; none where no phase is timed."""
    timed = [phase for phase in answer.phases if phase.gpu_hours]
    if timed:
        mark = ESTIMATE_MARK if answer.estimated else ""
        bars = tuple(Bar(phase.name, f"{mark}{amount(phase.gpu_hours or 0.0)}", _minutes(phase)) for phase in timed)
        yield Section("Where the GPU-hours go", (Bars(bars, sum(map(_minutes, timed))),))


def _minutes(phase: PhasePlan) -> int:
    return max(1, round(60 * (phase.gpu_hours or 0.0)))


def _blocks(page: Page) -> tuple[Block, ...]:
    """A page's blocks, each section's under its title."""
    titled: list[Block] = []
    for section in page:
        titled += [Lines((section.title,)), *section.blocks] if section.title else section.blocks
    return tuple(titled)


def _titled(page: Page, title: str) -> Page:
    """The page with a title for its first section."""
    return (Section(title, page[0].blocks), *page[1:])
