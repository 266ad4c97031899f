"""Helpers of commands that plan specs: the options that were given, and compiled graphs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from planners.plan_types import Plan
    from planners.request import PlanRequest


def given_options(ctx: typer.Context) -> tuple[str, ...]:
    """Names of the parameters that the user wrote, defaults left out."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return tuple(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")


def option_name(parameter: str) -> str:
    """A parameter as the command line writes it: `--kv-dtype`."""
    return "--" + {"overrides": "set"}.get(parameter, parameter).replace("_", "-")


def compiled(path_or_name: str, overrides: Sequence[str] | None) -> "LayerGraph":
    """The layer graph of a spec by path or shipped name, or of a config.json; prints notes of an import on stderr.

    Raises UserError.
    """
    from l4spec.cli.output import complain
    from l4spec.huggingface import opening
    from l4spec.spec.document_kinds import parse_as
    from l4spec.spec.model import ModelSpec

    document, notes = opening.open_document(path_or_name, overrides or ())
    for note in notes:
        complain(f"note: {note}")
    return opening.compiled(parse_as(document, ModelSpec))


def planned_pairs(
    specs: Sequence[str], request: "PlanRequest", overrides: Sequence[str] | None
) -> "list[tuple[LayerGraph, Plan]]":
    """Several specs' graphs with their plans. Raises UserError, naming the spec, for one that cannot be planned."""
    from l4spec.cli.generated import options_named
    from planners.plan import plan
    from planners.request import PlanRequest

    pairs = []
    for spec in specs:
        graph = compiled(spec, overrides)
        try:
            with options_named(PlanRequest):
                pairs.append((graph, plan(graph, request)))
        except UserError as error:
            raise UserError([Problem(f"{spec}: {problem}") for problem in error.problems]) from None
    return pairs
