"""Llama 1 to 4: recomputed figures beside those of an article.

python -m l4spec.report.generations > docs/generations.md
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.page import Lines, Page, Section, Table, to_markdown
from l4spec.report.quantities import difference
from planners.counts.params import count_params
from planners.deployment import Deployment
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest
from planners.search.least_gpus import least_gpus

ARTICLE = "https://fridayswithfaraday.com/posts/frontier-arch-llama-4-shift-to-moe"
CONTEXT = 2048
"""Tokens of the one sequence that is served: the longest of Llama 1, so that all generations serve the same."""
ENGINE = "vllm"


@dataclass(frozen=True, slots=True)
class Printed:
    """One row as the article prints it: parameters in billions, GPUs to serve, tokens/s at batch 1."""

    generation: str
    spec: str
    total: float
    active: float
    num_gpus: int
    gpu: str
    quantization: str
    tokens_per_second: float


PRINTED = (
    Printed("Llama 1 65B (2023)", "compare/llama-65b", 65, 65, 2, "A100-80GB", "bf16", 22),
    Printed("Llama 2 70B (2023)", "compare/llama-2-70b", 70, 70, 2, "A100-80GB", "bf16", 20),
    Printed("Llama 3 70B (2024)", "compare/llama-3-70b", 70, 70, 1, "H100-80GB", "bf16", 32),
    Printed("Llama 3.1 405B (2024)", "compare/llama-3.1-405b", 405, 405, 8, "H100-80GB", "bf16", 12),
    Printed("Llama 4 Scout (2025)", "scout", 109, 17, 1, "H100-80GB", "int4-mixed", 68),
    Printed("Llama 4 Maverick (2025)", "maverick", 400, 17, 4, "H100-80GB", "int4-mixed", 52),
)


@dataclass(frozen=True, slots=True)
class Generation:
    """A printed row beside the planner's numbers for it.

    `fits` is about the printed GPUs. Tokens/s are those of `timed_gpus`: the printed number where it fits, or else the
    least power of two that the model fits on; `bound` is the roofline, `estimate` was within `p90` of the measured rate
    in 90 % of the published rows.
    """

    printed: Printed
    total: int
    active: int
    fits: bool
    least_gpus: int
    timed_gpus: int
    bound: float
    estimate: float
    p90: float


def generations() -> Iterator[Generation]:
    """Every printed row, recomputed for one sequence of `CONTEXT` tokens."""
    for printed in PRINTED:
        yield _recomputed(printed, l4spec.compile(l4spec.load(printed.spec)))


def _recomputed(printed: Printed, graph: LayerGraph) -> Generation:
    asked = PlanRequest(quantization=printed.quantization, context=CONTEXT, engine=ENGINE)
    params = count_params(graph)
    least = least_gpus(Deployment.resolve(graph, asked.changed(gpus=f"8x{printed.gpu}")))
    assert least is not None, "at most some dozen GPUs hold a model of 405B"
    planned = _planned(graph, asked, printed.num_gpus, printed.gpu)
    fits, num_gpus = planned.fits is True, printed.num_gpus
    while not planned.fits:
        num_gpus = max(1 << (least.num_gpus - 1).bit_length(), num_gpus * 2)
        planned = _planned(graph, asked, num_gpus, printed.gpu)
    bound, estimate, p90 = _rates(planned)
    return Generation(printed, params.total, params.active, fits, least.num_gpus, num_gpus, bound, estimate, p90)


def _planned(graph: LayerGraph, asked: PlanRequest, num_gpus: int, gpu: str) -> Plan:
    hosts = f"{num_gpus // 8}x8x{gpu}" if num_gpus > 8 else f"{num_gpus}x{gpu}"
    return plan(graph, asked, gpus=hosts)


def _rates(planned: Plan) -> tuple[float, float, float]:
    latency = planned.latency
    assert latency is not None, "a plan on GPUs is timed"
    assert latency.decode is not None, "serving decodes"
    assert latency.decode.estimate_seconds is not None, "the engine has fitted factors"
    p90 = next(error.p90 for error in latency.errors if error.metric == "tpot")
    return 1 / latency.decode.bound_seconds, 1 / latency.decode.estimate_seconds, p90


_INTRODUCTION = (
    "For anyone who reads an article's table of Llama generations and wants to know which of its numbers are right: "
    "each printed number beside the one that the planner computes from the released dimensions.",
    "Written by `python -m l4spec.report.generations`; a test keeps it up to date.",
)


def generations_page() -> Page:
    """The table, its assumptions, and the source of the printed numbers."""
    rows = tuple(generations())
    sizes = Table(
        ("generation", "total printed", "total computed", "off by", "active printed", "active computed", "off by"),
        tuple(_sizes(row) for row in rows),
    )
    serving = Table(
        (
            *("generation", "weights in", "GPUs printed", "fits", "least GPUs", "tokens/s printed", "on GPUs"),
            *("at most", "estimate", "printed per GPU", "estimate per GPU"),
        ),
        tuple(_serving(row) for row in rows),
        "llll",
    )
    return (
        Section("", (Lines(_INTRODUCTION),)),
        Section("Parameters", (sizes,)),
        Section("Serving one sequence", (serving, Lines(tuple(_notes(rows))))),
    )


def _sizes(row: Generation) -> tuple[str, ...]:
    pairs = ((row.printed.total, row.total), (row.printed.active, row.active))
    cells = ((f"{printed:g}B", f"{own / 1e9:.2f}B", difference(printed * 1e9 / own - 1)) for printed, own in pairs)
    return (row.printed.generation, *(cell for pair in cells for cell in pair))


def _serving(row: Generation) -> tuple[str, ...]:
    printed = row.printed
    return (
        *(printed.generation, printed.quantization, f"{printed.num_gpus} × {printed.gpu}"),
        *("yes" if row.fits else "no", str(row.least_gpus), f"{printed.tokens_per_second:g}", str(row.timed_gpus)),
        *(f"{row.bound:.0f}", f"{row.estimate:.0f} ({_range(row)})"),
        f"{printed.tokens_per_second / printed.num_gpus:.1f}",
        f"{row.estimate / row.timed_gpus:.1f}",
    )


def _range(row: Generation) -> str:
    """Range of the rate for an error of the time at the 90th percentile of published rows; never above the bound."""
    slow, fast = row.estimate * (1 - row.p90), min(row.bound, row.estimate * (1 + row.p90))
    return f"{slow:.0f} to {fast:.0f}"


def _notes(rows: tuple[Generation, ...]) -> Iterator[str]:
    yield (
        f"One sequence of {CONTEXT:,} tokens, the longest that Llama 1 supports, with the cache policy and overheads "
        f"of {ENGINE} and the fastest layout. The article names no format for models before Llama 4; they are planned "
        "in 16 bits, as released."
    )
    yield (
        "Tokens/s are for the printed number of GPUs if the model fits on them, otherwise for the smallest power of "
        "two that fits. At most: every byte read at the published bandwidth. In brackets: the range given by the 90th "
        "percentile of the errors on published rows, never above the bound."
    )
    broken = ", ".join(row.printed.generation for row in rows if not row.fits)
    if broken:
        yield f"Do not fit on the printed GPUs in 16 bits: {broken}."
    yield f"Printed numbers: {ARTICLE}, which names no source and no engine for them."


def generations_text() -> str:
    """The page as `docs/generations.md` has it."""
    return f"# Llama's generations, recomputed\n\n{to_markdown(generations_page())}"


if __name__ == "__main__":
    sys.stdout.write(generations_text())
