"""Stage 7: published claims about a model, compared with the plan."""

from collections.abc import Callable

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.options import Mode, option_of
from l4spec.spec.claims import Claim, Quantity
from l4spec.spec.estimates import estimates_of
from planners.frozen import Frozen
from planners.plan import plan
from planners.plan_types import Estimates, Objective, Plan
from planners.request import PlanRequest

Value = bool | int | float


class Check(Frozen):
    """One claim and the planned value. `difference` is (computed - claimed) / claimed; null for yes-or-no claims.

    `rests_on_estimates` tells of the computed value.
    """

    quantity: Quantity
    condition: str
    claimed: Value
    computed: Value
    difference: float | None
    tolerance: float
    holds: bool
    rests_on_estimates: bool
    source: str
    note: str | None = None


class Report(Frozen):
    """All claims of a model."""

    l4spec_verify: int = 1
    model: str
    estimated: tuple[str, ...]
    estimates: Estimates
    checks: tuple[Check, ...]
    holds: bool


def verify(graph: LayerGraph, request: PlanRequest | None = None) -> Report:
    """Compute the value of every claim of the model's spec, under the conditions that it names.

    Settings that a claim leaves open are those of `request`, by default those of `plan`.

    A number holds when it is within the claim's relative tolerance of the computed one; a `max_context` on named
    GPUs is a bound that somebody reached, and holds when at least as much fits. Raises UserError for a claim that
    cannot be computed, naming it.
    """
    estimates, asked = estimates_of(graph.model.spec), request or PlanRequest()
    checks = tuple(_check(graph, index, claim, asked) for index, claim in enumerate(graph.model.spec.claims))
    return Report(
        model=graph.name,
        estimated=graph.model.estimated,
        estimates=Estimates(params=estimates.params, work=estimates.work),
        checks=checks,
        holds=all(check.holds for check in checks),
    )


def _check(graph: LayerGraph, index: int, claim: Claim, request: PlanRequest) -> Check:
    try:
        computed = compute(graph, claim, request)
    except UserError as error:
        raise UserError([Problem(str(problem), path=f"claims[{index}]") for problem in error.problems]) from None
    return Check(
        quantity=claim.quantity,
        condition=condition(claim),
        claimed=claim.value,
        computed=computed,
        difference=relative_difference(claim.value, computed),
        tolerance=claim.tolerance,
        holds=holds(claim, computed),
        rests_on_estimates=_rests_on_estimates(graph, claim.quantity),
        source=claim.source,
        note=claim.note,
    )


def _rests_on_estimates(graph: LayerGraph, quantity: str) -> bool:
    """True if an estimated field could change the quantity; layers, experts and tokens have fields of their own."""
    estimates = estimates_of(graph.model.spec)
    own = {"num_layers": "layers", "num_experts": "num_experts", "tokens_per_tile": "vision"}.get(quantity)
    if own is not None:
        return any(own in path.replace("[", ".").split(".") for path in estimates.params)
    return bool(estimates.params if quantity in _OF_SIZES else estimates.work)


def compute(graph: LayerGraph, claim: Claim, request: PlanRequest | None = None) -> Value:
    """The plan's value for a claim. Raises UserError where there is none."""
    of_graph = _OF_GRAPH.get(claim.quantity)
    if of_graph is not None:
        return of_graph(graph)
    if claim.quantity == "max_context" and claim.on is None:
        return graph.model.text.stack.width.max_seq_len
    return _OF_PLAN[claim.quantity](plan(graph, request_of(claim, request or PlanRequest())))


_SERVING = ("quantization", "kv_dtype", "context", "batch", "tp", "engine")
_TRAINING = ("precision", "context", "batch", "tp")


def request_of(claim: Claim, request: PlanRequest) -> PlanRequest:
    """The request that a claim is judged by: its own settings, and `request` for the rest."""
    training = claim.quantity == "train_flops_per_second_per_gpu"
    own = {name: getattr(claim, name) for name in (_TRAINING if training else _SERVING)}
    output = {name: value for name, value in own.items() if value is not None}
    if "context" in output:  # a claim counts both sides at once
        output |= {"prompt_tokens": None, "max_context": None}
    left = {
        name: v for name, v in request.echo().items() if option_of(PlanRequest, name).mode in (None, _mode(training))
    }
    return PlanRequest(**{**left, "gpus": claim.on, "mode": _mode(training), "objective": _objective(claim), **output})


def _objective(claim: Claim) -> Objective:
    """Objective of the layout for a claim; a published training run is assumed to have used a fast layout."""
    by_quantity: dict[str, Objective] = {"max_context": "max-context", "train_flops_per_second_per_gpu": "fastest"}
    return by_quantity.get(claim.quantity, "simplest")


def _mode(training: bool) -> Mode:
    return "train" if training else "serve"


def _num_experts(graph: LayerGraph) -> int:
    """Routed experts of the widest mixture; 0 in a dense model."""
    return graph.num_experts


def _tokens_per_tile(graph: LayerGraph) -> int:
    return graph.model.vision.num_tokens_per_tile if graph.model.vision else 0


def _train_rate(planned: Plan) -> float:
    rate = planned.latency.model_flops_per_second_per_gpu if planned.latency else None
    if rate is None:
        reason = planned.latency.reason if planned.latency else "no GPUs are named"
        raise UserError(f"no training rate can be computed: {reason}")
    return rate


_OF_GRAPH: dict[str, Callable[[LayerGraph], int]] = {
    "num_layers": lambda graph: graph.num_layers,
    "num_experts": _num_experts,
    "tokens_per_tile": _tokens_per_tile,
}
_OF_SIZES = {"total_params", "active_params", "active_params_without_embedding", "vision_params", "weight_bytes"}
_OF_PLAN: dict[str, Callable[[Plan], Value]] = {
    "total_params": lambda plan: plan.params.total,
    "active_params": lambda plan: plan.params.active,
    "active_params_without_embedding": lambda plan: plan.params.active_without_embedding,
    "vision_params": lambda plan: plan.params.by_part.get("vision", 0),  # tower and adapter; the projector is apart
    "weight_bytes": lambda plan: plan.weights.bytes,
    "kv_cache_bytes": lambda plan: plan.kv_cache.bytes,
    "kv_cache_bytes_per_token": lambda plan: plan.kv_cache.bytes_per_token_unbounded,
    "kv_cache_bytes_per_layer": lambda plan: max((layer.bytes for layer in plan.kv_cache.layers), default=0),
    "flops_per_token": lambda plan: plan.flops.forward_per_token,
    "fits": lambda plan: bool(plan.fits),
    "max_context": lambda plan: plan.max_context or 0,
    "train_flops_per_second_per_gpu": _train_rate,
}


def holds(claim: Claim, computed: Value) -> bool:
    """True if the computed value confirms the claim."""
    if claim.quantity == "fits":
        return computed == claim.value
    if claim.quantity == "max_context" and claim.on is not None:
        return computed >= claim.value * (1 - claim.tolerance)
    return abs(computed - claim.value) <= claim.tolerance * claim.value


def relative_difference(claimed: Value, computed: Value) -> float | None:
    """(computed - claimed) / claimed; None for yes-or-no values and for a claimed zero."""
    if isinstance(claimed, bool) or not claimed:
        return None
    return (computed - claimed) / claimed


def condition(claim: Claim) -> str:
    """Under which deployment the claim is meant: `on 1xH100, int4, 8,192 tokens`."""
    parts = [
        f"on {claim.on}" if claim.on else "",
        claim.quantization or "",
        f"{claim.context:,} tokens" if claim.context is not None else "",
        f"batch {claim.batch:,}" if claim.batch is not None else "",
        f"KV in {claim.kv_dtype}" if claim.kv_dtype else "",
        f"tp {claim.tp}" if claim.tp else "",
        f"training in {claim.precision}" if claim.precision else "",
        f"engine {claim.engine}" if claim.engine else "",
    ]
    return ", ".join(part for part in parts if part)
