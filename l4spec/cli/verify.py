"""`l4spec verify`: published claims compared with the plan."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, app
from l4spec.cli.generated import takes
from l4spec.cli.other_documents import kind_named, recipe_at, recipe_options
from l4spec.cli.output import write
from l4spec.cli.request import compiled
from l4spec.errors import Problem, UserError
from planners.request import HOST_OPTIONS, PlanRequest

if TYPE_CHECKING:
    from l4spec.spec.recipe.load import LoadedRecipe

REFUSED = {
    "gpus": "each claim names its own hardware",
    "mode": "each claim says itself whether it is about training",
    "objective": "a claim of the longest context asks for it, every other one for the most free memory",
    **dict.fromkeys(
        ("concurrency", "rate", "num_tiles", "images", "video", "fps", "frames", "frame_size"), "no claim is about it"
    ),
    **dict.fromkeys(
        ("usd_per_gpu_hour", "train_tokens", "routing", "factors", "draft_acceptance", *HOST_OPTIONS),
        "no claim is about it",
    ),
}
"""Options of a plan that no claim leaves open, and why. Every other one completes a claim."""


def _placed(error: UserError, spec: str, overrides: Sequence[str]) -> Iterator[Problem]:
    """The problems of claims with the places of these claims in the spec."""
    from l4spec.huggingface.opening import open_document
    from l4spec.spec.parse import place_of

    document = open_document(spec, overrides)[0]
    for problem in error.problems:
        match = re.fullmatch(r"claims\[([0-9]+)\]", problem.path)
        yield problem._replace(place=place_of(document, ("claims", int(match[1])))) if match else problem


def _verify_recipe(
    recipe: "LoadedRecipe", request: PlanRequest, style: o.Format, out: Path | None, force: bool
) -> None:
    from l4spec.report.recipe_page import recipe_claims_page
    from l4spec.verification.recipe_claims import verify_recipe

    report = verify_recipe(recipe, recipe_options(request))
    write(report, lambda: recipe_claims_page(report), style, out, force=force)
    if not report.holds:
        raise typer.Exit(CLAIM_FAILED)


@app.command("verify")
@takes(PlanRequest, refuse=REFUSED)
def verify_command(
    spec: o.SpecArgument,
    request: PlanRequest,
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Compare the claims of a spec with the plan: claimed, computed, difference, verdict, source.

    Options apply where a claim does not define its deployment. Exit code 1 if a claim does not hold.
    """
    from l4spec.report.claims_page import verify_page
    from l4spec.verification.claims import verify

    if kind_named(spec) == "recipe":
        _verify_recipe(recipe_at(spec, overrides), request, format, out, force)
        return
    graph = compiled(spec, overrides)
    try:
        report = verify(graph, request)
    except UserError as error:
        raise UserError(_placed(error, spec, overrides or ())) from None
    write(report, lambda: verify_page(report), format, out, force=force)
    if not report.holds:
        raise typer.Exit(CLAIM_FAILED)
