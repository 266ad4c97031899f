"""The plan of a scenario, without simulation: memory of each server, GPUs and price in all, and one request alone.

A request of mean length passes the chain while nothing else runs, by the same step times as in the simulation. It is
the first turn of its session and finds nothing cached, as the first request of a simulation does.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from l4spec.quantization.published import AS_PUBLISHED, published_name
from l4spec.spec.scenario import Stage
from l4spec.spec.scenario.references import LoadedScenario
from l4spec.spec.scenario.workload import Trace
from planners.catalog.cluster import parse_cluster
from planners.catalog.prices import lowest_offer
from planners.simulate.chain import answers, sees_images
from planners.simulate.planning import PREFILL, planned_servers
from planners.simulate.servers import Server
from planners.simulate.times.interface import Chunk, StepBatch
from planners.simulate.workload.draws import mean_length
from planners.simulate.workload.traced import sent
from planners.simulate.workload.traces import read_trace
from planners.timing.drafts import mean_accepted

MOST_TIMED_STEPS = 256
"""Decode steps that are timed of an answer; between two of them time is taken to grow evenly with the context."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerPlan(_Frozen):
    """One model's servers. Bytes are of the fullest device of one replica.

    `own_bytes` are the model's weights, activations and engine overhead, `beside_bytes` those of other models and
    stages on the same GPUs and of drafts, `cache_bytes` the rest for its cache. `sequences` of the mean request fit at
    a time in all replicas. `num_gpus` counts all replicas; a model on another's GPUs is counted there.
    """

    key: str
    model: str
    gpus: str
    replicas: int
    num_gpus: int
    shares_gpus_with: str | None
    layout: str
    quantization: str
    engine: str
    own_bytes: int
    beside_bytes: int
    cache_bytes: int | None
    capacity_bytes: int | None
    sequences: int | None
    usd_per_hour: float | None
    basis: tuple[str, ...]


class StagePlan(_Frozen):
    """One stage for the mean request alone: tokens that it reads and writes, seconds to its first and last token.

    `model` is None for a stage of given time. A `streaming` check adds load, and no time to the answer.
    """

    name: str
    model: str | None
    prompt_tokens: int
    output_tokens: int
    first_token_seconds: float
    seconds: float
    answers: bool
    check: str
    refusal_rate: float


class ScenarioPlan(_Frozen):
    """Servers, stages, and the whole. `usd_per_hour` is None if a price is not given."""

    l4spec_scenario_plan: int = 1
    scenario: str
    estimated: tuple[str, ...]
    servers: tuple[ServerPlan, ...]
    stages: tuple[StagePlan, ...]
    num_gpus: int
    usd_per_hour: float | None
    prompt_tokens: int
    output_tokens: int
    ttft_seconds: float
    e2e_seconds: float
    answered: float
    misses: tuple[str, ...]
    """Service levels that one request alone misses, so that no number of replicas meets them."""


class MeanRequest(_Frozen):
    """A request of mean length; `tiles` is the mean number of image tiles, whose tokens `prompt` counts."""

    prompt: int
    output: int
    tiles: float = 0.0


def plan_scenario(loaded: LoadedScenario, servers: dict[str, Server] | None = None) -> ScenarioPlan:
    """Plan a scenario: memory and cost of its servers, and the time of one request alone through its chain.

    `servers` are those of `planned_servers`, if they are planned already.

    Raises UserError with the place of everything that cannot be planned, timed, or read.
    """
    scenario = loaded.scenario
    servers = planned_servers(loaded) if servers is None else servers
    request = mean_request(loaded, servers[scenario.answering])
    stages = tuple(
        _stage(stage, servers, request) for stage in scenario.chain or (Stage(name="answer", model=scenario.answering),)
    )
    rows = tuple(_server(loaded, server, request) for server in servers.values())
    prices = [row.usd_per_hour for row in rows if row.shares_gpus_with is None]
    ttft, e2e = _through(stages)
    return ScenarioPlan(
        scenario=scenario.name,
        estimated=scenario.estimated,
        servers=rows,
        stages=stages,
        num_gpus=sum(row.num_gpus for row in rows),
        usd_per_hour=None if None in prices else sum(price or 0.0 for price in prices),
        prompt_tokens=request.prompt,
        output_tokens=request.output,
        ttft_seconds=ttft,
        e2e_seconds=e2e,
        answered=_answered(stages),
        misses=tuple(_misses(loaded, ttft, e2e, request.output)),
    )


def mean_request(loaded: LoadedScenario, server: Server) -> MeanRequest:
    """The workload's mean request: the first turn of a session, its shared prefix and images included."""
    workload = loaded.scenario.workload
    find = partial(loaded.file, ("workload",))
    if isinstance(workload.arrivals, Trace):
        path = loaded.file(("workload", "arrivals", "path"), workload.arrivals.path)
        entries = sent(read_trace(path, workload.arrivals.format), workload)
        sizes = [(entry.prompt, entry.output) for entry in entries]
        prompts, outputs = zip(*sizes, strict=True)
        return MeanRequest(prompt=_mean(prompts), output=_mean(outputs))
    assert workload.prompt_tokens is not None and workload.output_tokens is not None, "only traces bring their own"
    prompt = mean_length(workload.prompt_tokens, find)
    if workload.prefix is not None:
        prompt += mean_length(workload.prefix.tokens, find)
    tiles = 0.0
    if workload.images is not None:
        tiles = workload.images.per_request * (workload.images.tiles or server.tiles_per_image)
    return MeanRequest(
        prompt=max(1, round(prompt + tiles * server.tokens_per_tile)),
        output=max(1, round(mean_length(workload.output_tokens, find))),
        tiles=tiles,
    )


def _mean(values: Iterable[int]) -> int:
    numbers = list(values)
    return max(1, round(sum(numbers) / len(numbers)))


def _stage(stage: Stage, servers: dict[str, Server], user: MeanRequest) -> StagePlan:
    """A stage alone; the model that answers gets the user's request, others their own."""
    if stage.model is None:
        first = last = stage.seconds or 0.0
        asked = MeanRequest(prompt=0, output=0)
    else:
        asked = user if answers(stage) else _check_of(stage, user)
        first, last = alone(servers, stage.model, asked)
    return StagePlan(
        name=stage.name,
        model=stage.model,
        prompt_tokens=asked.prompt,
        output_tokens=asked.output,
        first_token_seconds=first,
        seconds=last,
        answers=answers(stage),
        check=stage.check,
        refusal_rate=stage.refusal_rate,
    )


def _check_of(stage: Stage, user: MeanRequest) -> MeanRequest:
    read = (user.prompt if stage.reads != "answer" else 0) + (user.output if stage.reads != "prompt" else 0)
    tiles = user.tiles if sees_images(stage) else 0.0
    return MeanRequest(prompt=(stage.template_tokens or 0) + read, output=stage.output_tokens or 1, tiles=tiles)


def alone(servers: dict[str, Server], key: str, request: MeanRequest) -> tuple[float, float]:
    """Seconds to the first and the last token of a request that has a model's servers to itself."""
    server = servers[key]
    first = server.times.request_seconds + _prefill(servers.get(key + PREFILL, server), request)
    moved = 0.0 if server.cache_link is None or request.output == 1 else server.cache_link.nanoseconds(request.prompt)
    return first, first + moved * 1e-9 + _decode(server, request)


def _prefill(server: Server, request: MeanRequest) -> float:
    """Seconds of a prompt's steps: in chunks as large as a step may be, image tiles with the last."""
    most = server.settings.max_num_batched_tokens if server.settings.chunked_prefill else request.prompt
    seconds = 0.0
    for done in range(0, request.prompt, most):
        new = min(most, request.prompt - done)
        last = done + new == request.prompt
        batch = StepBatch(0, 0, (Chunk(new, done, last),), request.tiles if last else 0)
        seconds += server.times.seconds(_on_one_rank(server, batch))
    return seconds


def _decode(server: Server, request: MeanRequest) -> float:
    """Seconds of the steps after the first token; with drafts, of as many as there are on average."""
    checked = 1 + len(server.acceptance)
    steps = (request.output - 1) / (1 + mean_accepted(server.acceptance))

    def step(index: float) -> float:
        context = request.prompt + 1 + round(index * (request.output - 1) / max(steps, 1))
        return server.times.seconds(_on_one_rank(server, StepBatch(1, context, checked=checked)))

    if steps <= MOST_TIMED_STEPS and steps == int(steps):
        return sum(step(index) for index in range(int(steps)))
    points = [index * steps / MOST_TIMED_STEPS for index in range(MOST_TIMED_STEPS + 1)]
    return sum((after - before) * (step(before) + step(after)) / 2 for before, after in pairwise(points))


def _on_one_rank(server: Server, batch: StepBatch) -> list[StepBatch]:
    return [batch, *(StepBatch(0, 0) for _ in range(server.num_ranks - 1))]


def _through(stages: tuple[StagePlan, ...]) -> tuple[float, float]:
    """Seconds to the first token that the user sees, and to the last; a check that blocks delays all of them."""
    now = 0.0
    first: float | None = None
    for stage in stages:
        if stage.answers:
            first, now = now + stage.first_token_seconds, now + stage.seconds
        elif first is None:
            now += stage.seconds
        elif stage.check == "blocking":
            now += stage.seconds
            first = now
    return now if first is None else first, now


def _answered(stages: tuple[StagePlan, ...]) -> float:
    """The share of requests whose answer is shown: a check of a stream refuses too late."""
    shown, answered = 1.0, False
    for stage in stages:
        answered = answered or stage.answers
        if not (answered and stage.check == "streaming"):
            shown *= 1 - stage.refusal_rate
    return shown


def _misses(loaded: LoadedScenario, ttft: float, e2e: float, output: int) -> Iterator[str]:
    slo = loaded.scenario.slo
    times = {"ttft": ttft, "e2e": e2e} | ({"tpot": (e2e - ttft) / (output - 1)} if output > 1 else {})
    for name, seconds in times.items():
        limit = getattr(slo, name)
        if limit is not None and seconds > limit:
            yield f"{name}: {seconds:.3g} s for a request alone, the limit is {limit:g} s"


def _server(loaded: LoadedScenario, server: Server, request: MeanRequest) -> ServerPlan:
    """A server as its plan shows it."""
    key = server.key.removesuffix(PREFILL)
    model = loaded.scenario.models[key]
    apart = model.disaggregated if server.key.endswith(PREFILL) else None
    replicas = model.replicas if apart is None else apart.prefill_replicas
    shares = model.shares_gpus_with
    num_gpus = 0 if shares is not None else server.num_gpus * replicas
    tokens = request.prompt if apart is not None else request.prompt + request.output
    blocks = server.law.kept_blocks(tokens)
    limited = server.memory.capacity is not None or model.kv_blocks is not None
    price, source = _price(server)
    return ServerPlan(
        key=server.key,
        model=server.model,
        gpus=server.gpus,
        replicas=replicas,
        num_gpus=num_gpus,
        shares_gpus_with=shares,
        layout=str(server.layout),
        quantization=published_name(loaded.models[key]) if model.quantization == AS_PUBLISHED else model.quantization,
        engine=server.engine,
        own_bytes=server.memory.own,
        beside_bytes=server.memory.beside,
        cache_bytes=server.memory.cache,
        capacity_bytes=server.memory.capacity,
        sequences=server.blocks_per_rank // blocks * server.num_caches * replicas if limited and blocks else None,
        usd_per_hour=None if price is None else price * num_gpus,
        basis=(*server.basis, source),
    )


def _price(server: Server) -> tuple[float | None, str]:
    """USD per GPU and hour: the scenario's, else the lowest public list price; and its source."""
    if server.usd_per_gpu_hour is not None:
        return server.usd_per_gpu_hour, f"{server.usd_per_gpu_hour:g} USD per GPU and hour, as the scenario says"
    name = parse_cluster(server.gpus).hardware.name
    offer = lowest_offer(name)
    if offer is None:
        return None, f"{name}: no list price known; `usd_per_gpu_hour` gives one"
    return offer.usd_per_gpu_hour, f"{name}: {offer}"
