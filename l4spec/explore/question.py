"""Requests of the page: a model, changed fields and options, as text; problems are reported at their field."""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field

from l4spec.catalog.registry import looks_like_path
from l4spec.errors import Problem, UserError
from l4spec.explore.controls import Control
from l4spec.options import read_count
from planners.catalog import engine, quantization
from planners.catalog.cluster import parse_cluster
from planners.catalog.prices import lowest_offer
from planners.counts.kv_cache import cache_dtype_bytes
from planners.list_price import at_list_price
from planners.request import PlanRequest

OPTIONS = ("gpus", "quantization", "kv_dtype", "engine", "context", "output_tokens", "batch", "usd_per_gpu_hour")
"""Options of a plan that the page has a field for."""
_LONGEST = 200
_MOST_FIELDS = 64
_LOOKED_UP = {"gpus": parse_cluster, "quantization": quantization, "engine": engine, "kv_dtype": cache_dtype_bytes}


class Question(BaseModel):
    """Body of one request of the page. `fields` are by path, `options` by the names of a plan's options."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    model: str = Field(max_length=4096)
    fields: dict[str, str] = Field(default_factory=dict, max_length=_MOST_FIELDS)
    options: dict[str, str] = Field(default_factory=dict, max_length=_MOST_FIELDS)
    target: str = ""


def changed_fields(question: Question, controls: Mapping[str, Control]) -> tuple[str, ...]:
    """The changed fields as `path=value`. Raises UserError with all values that are no whole number."""
    changed: list[str] = []
    problems: list[Problem] = []
    for path, text in question.fields.items():
        control = controls.get(path)
        if control is None:
            problems.append(Problem(f"the model has no field {path[:_LONGEST]!r} to move"))
            continue
        try:
            value = read_count(_short(text))
        except ValueError as error:
            problems.append(Problem(str(error), path=path))
            continue
        if value != control.value:
            changed += [f"{each}={value}" for each in (path, *control.also)]
    if problems:
        raise UserError(problems)
    return tuple(changed)


def request_of(question: Question) -> PlanRequest:
    """The options that were filled in, and the lowest listed price of the hardware where none is given.

    Raises UserError with every problem at the name of its option. Files are refused, because anyone who reaches the
    page could read their contents.
    """
    given = {name: _short(text) for name, text in question.options.items() if text.strip()}
    problems = [Problem(f"the page has no option {name[:_LONGEST]!r}") for name in given if name not in OPTIONS]
    problems += _not_known(given)
    try:
        request = PlanRequest.from_text({name: text for name, text in given.items() if name in OPTIONS})
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    if problems:
        raise UserError(problems)
    return at_list_price(request)[0]


def _not_known(given: Mapping[str, str]) -> Iterator[Problem]:
    for name, look_up in _LOOKED_UP.items():
        text = given.get(name)
        if text is None or (name == "quantization" and text == "as-published"):
            continue
        if looks_like_path(text):
            yield Problem("the page takes names, no files", path=name, hint="`l4spec plan` takes files")
            continue
        try:
            look_up(text)
        except UserError as error:
            yield from (problem._replace(path=name) for problem in error.problems)


def price_note(request: PlanRequest) -> str:
    """Source of the price, if it is the listed one; empty otherwise."""
    if request.usd_per_gpu_hour is None or request.gpus is None:
        return ""
    offer = lowest_offer(parse_cluster(request.gpus).hardware.name)
    if offer is None or offer.usd_per_gpu_hour != request.usd_per_gpu_hour:
        return ""
    return f"${offer.usd_per_gpu_hour:g} per GPU-hour is the lowest listed price: {offer.provider}, {offer.date}"


def at_controls(problems: tuple[Problem, ...], controls: Mapping[str, Control]) -> list[dict[str, str]]:
    """Problems as the page shows them: at a field, or with `path` empty, at none."""
    shown = []
    for problem in problems:
        path = _field_of(problem, controls)
        entry = {
            "path": path,
            "text": str(problem._replace(path="" if path == problem.path else problem.path, place=None)),
        }
        if entry not in shown:  # the same at two fields that move together
            shown.append(entry)
    return shown


def _field_of(problem: Problem, controls: Mapping[str, Control]) -> str:
    """The field that a problem is about: its own, that which it follows, or one of its part that the message names."""
    if problem.path in {"model", *controls, *OPTIONS}:
        return problem.path
    leads = [control.path for control in controls.values() if problem.path in control.also]
    inside = [path for path in controls if problem.path and path.startswith(f"{problem.path}.")]
    named = [path for path in inside if path.rpartition(".")[2] in problem.message]
    return next(iter((*leads, *sorted(named, key=len, reverse=True))), "")


def _short(text: str) -> str:
    """The text to parse; longer texts than any number or name are cut, and then refused."""
    return text.strip()[:_LONGEST]
