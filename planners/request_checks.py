"""Checks of a request against the model and between options: every problem at once."""

from collections.abc import Iterator

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.options import flag_of, option_of
from l4spec.quantization.published import AS_PUBLISHED, UNQUANTIZED, scheme_for
from planners.draft_options import draft_problems
from planners.request import BEYOND, MAX, PlanRequest, has_experts, max_seq_len
from planners.video import video_problems


def check(request: PlanRequest, graph: LayerGraph) -> None:
    """Raise UserError with all problems of planning `graph` by the request."""
    of_mode = _training_only(request) if request.mode == "serve" else _serving_only(request)
    of_model = (*_tokens(request, graph), *_vision(request, graph))
    problems = [
        *of_mode,
        *of_model,
        *_load(request),
        *_prefill_only(request),
        *_fp8(request, graph),
        *_adapters(request, graph),
        *_host(request, graph),
        *draft_problems(
            request.draft_acceptance, graph, beside_host=request.host_memory is not None, cp=request.cp or 1
        ),
    ]
    if problems:
        raise UserError(problems)


def _training_only(request: PlanRequest) -> Iterator[Problem]:
    for name in request.model_fields_set:
        if option_of(type(request), name).mode == "train":
            yield Problem("needs --mode train", path=name)


def _serving_only(request: PlanRequest) -> Iterator[Problem]:
    for name, field in type(request).model_fields.items():
        unchanged = (field.default, UNQUANTIZED) if name == "quantization" else (field.default,)
        packed_base = name == "quantization" and request.lora_rank is not None
        serving = option_of(type(request), name).mode == "serve" and not packed_base
        if serving and getattr(request, name) not in unchanged:
            yield serving_only(name)
    if request.virtual_stages > 1 and request.pp == 1:
        yield Problem("needs a pipeline", path="virtual_stages", hint="leave --pp out, or give more than 1")


def serving_only(name: str) -> Problem:
    """The problem of an option of serving in a plan or a search of training."""
    reasons = {
        "quantization": (
            "training keeps bf16 weights",
            "--lora-rank 16 trains adapters on packed ones; --precision fp8 computes in fp8",
        ),
        "engine": ("training keeps no cache, so no engine plays a part", "leave it out"),
        "output_tokens": ("training has no output tokens", "leave it out"),
    }
    message, hint = reasons.get(name, ("plays no part in training", "leave it out"))
    return Problem(message, path=name, hint=hint)


def _fp8(request: PlanRequest, graph: LayerGraph) -> Iterator[Problem]:
    if request.precision in ("fp8", "mxfp8"):
        from l4spec.quantization.matmuls import matmul_problems

        yield from matmul_problems(graph, request.fp8_matmuls, "fp8_matmuls")
    elif request.fp8_matmuls != "fp8" and request.mode == "train":
        yield Problem("needs --precision fp8 or mxfp8", path="fp8_matmuls")


def _adapters(request: PlanRequest, graph: LayerGraph) -> Iterator[Problem]:
    """Problems of adapters: targets that no tensor has, ranks above a tensor's, fp8, packing that is computed in."""
    if request.lora_rank is None:
        if request.lora_targets != type(request).model_fields["lora_targets"].default:
            yield Problem("needs --lora-rank", path="lora_targets", hint="as --lora-rank 16")
        return
    from l4spec.graph.adapters import lora_of, target_problems

    lora = lora_of(request.lora_rank, request.lora_targets)
    assert lora is not None
    yield from target_problems(graph, lora.targets, "lora_targets")
    if request.precision != "bf16":
        yield Problem("adapters are trained in bf16", path="precision", hint="leave it out")
    if request.quantization not in (AS_PUBLISHED, UNQUANTIZED):
        computed = scheme_for(graph.model.spec, request.quantization).compute_dtype
        if computed not in ("bf16", "fp16"):
            message = f"multiplies in {computed}, and a frozen base is unpacked to bf16"
            yield Problem(message, path="quantization", hint="a scheme of weights alone, as --quantization nf4")


def _tokens(request: PlanRequest, graph: LayerGraph) -> Iterator[Problem]:
    if request.context is not None:
        for name in ("prompt_tokens", "max_context"):
            if getattr(request, name) is not None:
                other = flag_of(type(request), name)
                message = f"already sets the prompt's length and the engine's limit, so it excludes {other}"
                yield Problem(message, path="context", hint=f"give --context or {other}")
    if request.context == MAX:
        yield Problem("max is for one plan; give a number of tokens here", path="context")
    given = next((name for name in ("context", "prompt_tokens") if getattr(request, name) is not None), "context")
    limit, tokens = max_seq_len(graph), request.tokens(graph)
    for name, value in ((given, tokens), ("max_context", request.max_context or 1)):
        if value > limit:
            yield Problem(f"expected 1 to {limit:,}, found {value:,}", path=name, hint=BEYOND)
    if request.max_context is not None and tokens > request.max_context:
        message = f"the engine takes {request.max_context:,} tokens, a sequence here has {tokens:,}"
        yield Problem(message, path="max_context")
    if request.output_tokens is not None and request.output_tokens >= max(tokens, 2):
        message = f"expected 1 to {max(tokens - 1, 1):,}, found {request.output_tokens:,}"
        yield Problem(message, path="output_tokens", hint="output tokens are part of the context")


def _load(request: PlanRequest) -> Iterator[Problem]:
    for name in ("concurrency", "rate"):
        if getattr(request, name) is not None and request.output_tokens is None and request.mode == "serve":
            yield Problem("needs --output-tokens: requests end after them", path=name)
    if request.concurrency is not None and request.rate is not None:
        hint = "a closed loop of clients or an open loop at a rate"
        yield Problem("is not for requests that arrive at a rate: leave one out", path="concurrency", hint=hint)
    if request.concurrency is not None and "batch" in request.model_fields_set:
        yield Problem("says what --batch says: leave one out", path="concurrency")


def _vision(request: PlanRequest, graph: LayerGraph) -> Iterator[Problem]:
    yield from video_problems(request.clip, graph, request.tokens(graph) - (request.output_tokens or 0))
    if graph.model.vision is None:
        for name, what in (("num_tiles", "tiles"), ("images", "images")):
            if getattr(request, name):
                yield Problem(f"the model has no vision, so it takes no {what}", path=name)


def _prefill_only(request: PlanRequest) -> Iterator[Problem]:
    if (request.cp or 1) > 1 and request.output_tokens is not None:
        message = "context parallelism is for prefills, and decoding continues with a layout without it"
        yield Problem(message, path="cp", hint="plan the decoding by itself, without cp")


def _host(request: PlanRequest, graph: LayerGraph) -> Iterator[Problem]:
    if request.mode == "train":
        return
    for name in ("host_bandwidth", "on_host"):
        if getattr(request, name) is not None and request.host_memory is None:
            yield Problem("needs --host-memory", path=name, hint="as --host-memory 128GB")
    if request.host_memory is not None and request.gpus is None:
        yield Problem("needs --gpus", path="host_memory", hint="as --gpus 1xRTX4090")
    if request.on_host == "experts" and not has_experts(graph):
        yield Problem("the model has no routed experts", path="on_host", hint="--on-host layers")
