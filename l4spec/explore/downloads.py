"""Downloads of the page: the variant as YAML, the command that plans it, its launch, its report."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from l4spec.deploy import LaunchRequest, emit
from l4spec.deploy.own_engine import by_own_engine
from l4spec.errors import Problem, UserError, nearest
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface.yaml_out import to_yaml
from l4spec.library import shipped_specs
from l4spec.report.html import to_html
from l4spec.report.plan_page import verdict
from l4spec.report.report_page import report_page
from l4spec.spec.merge import NOT_INHERITED
from planners.plan import plan
from planners.request import PlanRequest

TARGETS = ("vllm", "sglang", "tensorrt-llm", "k8s", "sbatch")
"""Launch targets of a serving plan."""


def command(name: str, overrides: Sequence[str], request: PlanRequest) -> str:
    """`l4spec plan` as it is typed in a shell."""
    words = ["l4spec", "plan", quote(name), *(word for each in overrides for word in ("--set", quote(each)))]
    return " ".join((*words, request.command_line())).rstrip()


def as_yaml(name: str, overrides: Sequence[str], data: dict[str, Any]) -> str:
    """The variant as a spec. A variant of a shipped model extends it by the differences; any other is written whole.

    `data` is the document with the overrides applied.
    """
    is_shipped = name in shipped_specs()
    path = PurePosixPath(name)
    title = f"{path.name if is_shipped else path.stem}-variant"
    if not is_shipped:
        kept = {key: value for key, value in data.items() if key not in NOT_INHERITED and key != "l4spec"}
        return to_yaml({"l4spec": 1, "name": title, **kept})
    spec: dict[str, Any] = {"l4spec": 1, "extends": name, "name": title}
    for each in overrides:
        _copy(data, spec, each.partition("=")[0].strip().partition("[")[0].split("."))
    return to_yaml(spec)


def _copy(source: Any, into: dict[str, Any], steps: list[str]) -> None:
    """Copy the value at a path; a list on the way is copied whole, because `extends` replaces lists."""
    step, *rest = steps
    if rest and isinstance(source[step], dict):
        _copy(source[step], into.setdefault(step, {}), rest)
    else:
        into[step] = source[step]


def launch(target: str, graph: LayerGraph, request: PlanRequest, *, changed: bool) -> str:
    """The text of `l4spec plan --emit`. Raises UserError for what does not fit and what the engine cannot express."""
    if target not in TARGETS:
        raise UserError([Problem(f"unknown target {target[:60]!r}", hint=nearest(target, TARGETS))])
    if request.gpus is None:
        raise UserError([Problem("a launch needs GPUs", path="gpus", hint="as 8xH100")])
    answer = plan(graph, by_own_engine(target, request))
    if not answer.fits:
        raise UserError(f"{verdict(answer)}: nothing is launched")
    return emit(target, LaunchRequest(answer, graph, None, request.images, changed))


def report(graph: LayerGraph, request: PlanRequest) -> str:
    """The HTML file of `l4spec report`."""
    return to_html(report_page(graph, plan(graph, request)))
