"""`l4spec simulate`: simulation of a deployment under load, request by request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import takes
from l4spec.cli.output import check_file, complain, deliver, write, write_file
from l4spec.cli.progress import progress_bar
from l4spec.errors import Problem, UserError
from planners.simulate.request import SimulateRequest

if TYPE_CHECKING:
    from l4spec.spec.scenario.references import LoadedScenario
    from planners.simulate.result_types import SimulationResult

ScenarioArgument = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO",
        help="A scenario (`l4spec ls scenarios`), or a spec whose load the options describe.",
        show_default=False,
    ),
]
CsvOption = Annotated[Path | None, typer.Option("--requests-csv", metavar="FILE", help="Write one line per request.")]
TimelineOption = Annotated[
    Path | None, typer.Option("--timeline", metavar="FILE", help="Write a timeline that ui.perfetto.dev opens.")
]
SvgOption = Annotated[
    Path | None,
    typer.Option("--svg", metavar="FILE", parser=o.file_to_write, help="Draw running, waiting and cache over time."),
]
ProgressOption = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show a progress bar on stderr.  [default: on a terminal]"),
]


@app.command("simulate")
@takes(SimulateRequest)
def simulate_command(
    scenario: ScenarioArgument,
    *,
    request: SimulateRequest,
    overrides: o.SetOption = None,
    bar: ProgressOption = None,
    requests_csv: CsvOption = None,
    timeline: TimelineOption = None,
    svg: SvgOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Simulate a load on deployed models: latencies, service levels, cache and cost.

    Every request is scheduled step by step by the engine's own rules, and every step is timed. Ctrl-C and --time-limit
    end a run and report what is done.
    """
    from planners.simulate.requested_scenario import scenario_of

    _check_files(request, {"--requests-csv": requests_csv, "--timeline": timeline, "--svg": svg}, force=force)
    if request.fit is not None:
        fitted, text = _fit(scenario, request, overrides or (), bar)
        deliver(text, out, force=force)
        complain(fitted)
        return
    loaded = scenario_of(scenario, request, overrides or ())
    if request.capacity:
        _capacity(loaded, request.jobs, format, out, force)
        return
    if request.repeats > 1:
        from planners.simulate.repeats import repeated

        result = repeated(loaded, request.repeats, request.jobs)
    else:
        result = _simulated(loaded, request, bar, {"csv": requests_csv, "timeline": timeline}, force)
    result = result.model_copy(update={"echo": request.echo()})
    _show(result, svg, format, out, force)


def _check_files(request: SimulateRequest, files: Mapping[str, Path | None], *, force: bool) -> None:
    """Raise UserError, before anything runs, for options without effect and files that could not be written."""
    kind, unused = _unused(request)
    given = [flag for flag, path in files.items() if path is not None]
    if request.time_limit is not None:
        given.append("--time-limit")
    if request.repeats > 1:
        given.append("--repeats")
    if request.capacity:
        given.append("--capacity")
    if ignored := [flag for flag in given if flag in unused]:
        raise UserError([Problem(f"has no effect with {kind}", flag, hint="leave it out") for flag in ignored])
    for flag, path in files.items():
        if path is not None:
            check_file(path, flag, force=force)


def _unused(request: SimulateRequest) -> tuple[str, tuple[str, ...]]:
    """The option that asks for more than one run, and options that a single run alone has."""
    single = ("--requests-csv", "--timeline", "--time-limit")
    if request.fit is not None:
        return "--fit", (*single, "--svg", "--repeats", "--capacity")
    if request.capacity:
        return "--capacity", (*single, "--svg", "--repeats")
    return "--repeats", single if request.repeats > 1 else ()


def _show(result: "SimulationResult", svg: Path | None, style: o.Format, out: Path | None, force: bool) -> None:
    """Show the page, with charts if possible, and write the requested picture."""
    from l4spec.report.simulate_page import curves_svg, simulate_page, simulate_report

    page = simulate_report if style is o.Format.HTML else simulate_page
    if svg is not None and result.curves:
        write_file(svg, curves_svg(result), force=force)
        complain(f"wrote {svg}")
    write(result, lambda: page(result), style, out, force=force)


def _simulated(
    loaded: "LoadedScenario",
    request: SimulateRequest,
    bar: bool | None,
    files: Mapping[str, Path | None],
    force: bool,
) -> "SimulationResult":
    """Run one simulation and write the requested files."""
    from planners.simulate.exports import requests_csv, timeline
    from planners.simulate.run import Simulation

    simulation = Simulation(loaded)
    with progress_bar("simulating", bar) as progress:
        outcome = simulation.run(time_limit=request.time_limit, progress=progress)
    if files["csv"] is not None:
        write_file(files["csv"], requests_csv(outcome.requests), force=force)
    if files["timeline"] is not None:
        write_file(files["timeline"], timeline(outcome.requests, simulation.recorder), force=force)
    return outcome.result


def _capacity(loaded: "LoadedScenario", jobs: int, style: o.Format, out: Path | None, force: bool) -> None:
    from l4spec.report.simulate_page import capacity_page
    from planners.simulate.capacity import capacity

    answer = capacity(loaded, jobs)
    write(answer, lambda: capacity_page(answer, drawn=style is o.Format.HTML), style, out, force=force)


def _fit(scenario: str, request: SimulateRequest, overrides: Sequence[str], bar: bool | None) -> tuple[str, str]:
    """Summary of the fit in one or two sentences, and its file of factors."""
    from l4spec.report.fit_page import factors_file, fit_summary
    from planners.simulate.fit import fit
    from planners.simulate.requested_scenario import scenario_of
    from planners.simulate.run import Simulation
    from planners.simulate.workload.traces import read_trace

    loaded = scenario_of(scenario, request, overrides)
    assert request.fit is not None, "asked for it"
    entries = list(read_trace(Path(request.fit), "auto"))
    with progress_bar("fitting", bar) as progress:
        fitted = fit(
            Simulation(loaded),
            entries,
            source=Path(request.fit).name,
            num_fitted=request.fit_requests,
            progress=progress,
        )
    return fit_summary(fitted), factors_file(fitted)
