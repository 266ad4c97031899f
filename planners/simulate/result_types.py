"""The result of a simulation, as JSON has it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distribution(_Frozen):
    """Mean and percentiles, in seconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class ServerResult(_Frozen):
    """One model's servers over the whole simulation.

    `utilization` is the share of time in which a server ran a step; `prefix_hit_rate` the share of admitted prompts'
    tokens that were cached; `peak_cache_use` the largest share of blocks in use.
    """

    key: str
    model: str
    gpus: str
    num_gpus: int
    replicas: int
    layout: str
    engine: str
    engine_version: str
    blocks_per_rank: int
    num_ranks: int
    utilization: float
    prefix_hit_rate: float
    preemptions: int
    steps: int
    peak_running: int
    peak_waiting: int
    peak_cache_use: float
    basis: tuple[str, ...]


class TimeSeries(_Frozen):
    """State of all servers of a model, at equal intervals: seconds, requests, and the share of blocks in use."""

    key: str
    seconds: tuple[float, ...]
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    cache_use: tuple[float, ...]


class Interval(_Frozen):
    """A figure over repeated runs: its mean, and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half_width: float
    repeats: int


class LevelResult(_Frozen):
    """A requested service level, in seconds, and the share of all requests that meet it."""

    name: Literal["ttft", "tpot", "e2e"]
    limit: float
    met: float


class SimulationResult(_Frozen):
    """Result of a simulated load. Times are seconds; latencies count from a request's arrival.

    `goodput` is good requests per second, `attainment` the share of requests that are good; without service levels
    every finished request is. `ended` says whether the simulation ran to its end or was cut.
    """

    l4spec_simulation: Literal[1] = 1
    scenario: str
    seed: int
    ended: Literal["finished", "time limit", "interrupted"]
    estimated: tuple[str, ...]
    requests: int
    finished: int
    refused: int
    cut: int
    duration: float
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    requests_per_second: float
    input_tokens_per_second: float
    output_tokens_per_second: float
    output_tokens_per_second_per_gpu: float
    mean_in_system: float
    attainment: float
    goodput: float
    levels: tuple[LevelResult, ...] = ()
    """Empty without service levels; then every finished request counts as good."""
    refused_because: tuple[str, ...] = ()
    num_gpus: int
    usd: float | None
    usd_per_million_output_tokens: float | None
    servers: tuple[ServerResult, ...]
    curves: tuple[TimeSeries, ...]
    intervals: dict[str, Interval] = {}
    echo: dict[str, Any] = {}
