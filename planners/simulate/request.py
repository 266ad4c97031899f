"""Options of a simulation, for the command line and Python: applied to a scenario, or making one."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from l4spec.options import Option, Options, flag_of, read_count, read_number, read_tokens

LARGEST = 1 << 20
MOST_REPEATS = 10_000
_Degree = Annotated[int | None, Field(ge=1, le=LARGEST)]
_Tokens = Annotated[int | None, Field(ge=1, le=1 << 40)]

MODEL_FIELDS = (
    *("gpus", "quantization", "kv_dtype", "engine", "tp", "ep", "pp", "dp", "replicas", "router", "routing"),
    *("memory_fraction", "usd_per_gpu_hour"),
)
"""Options that are fields of the deployed model."""


def read_rate(text: str) -> str:
    """A rate as a scenario writes it; a bare number counts by the second."""
    return f"{text}/s" if text.replace(".", "", 1).isdecimal() else text


class SimulateRequest(Options):
    """Options of a simulation, which override the scenario's settings. With a spec instead, they make the scenario.

    Durations and rates are written as in a scenario: `500 ms`, `4/s`.
    """

    gpus: Annotated[
        str | None, Option("GPUs of a replica, as 8xH100, 2x8xH100 for hosts, or N x a YAML file.", metavar="GPUS")
    ] = None
    quantization: Annotated[
        str | None,
        Option(
            "Weights: `l4spec ls quantization`.",
            metavar="SCHEME",
            flags=("--quantization", "-q"),
            default="as published",
        ),
    ] = None
    kv_dtype: Annotated[str | None, Option("KV cache: bf16, fp16, fp32, fp8 or int8.", metavar="DTYPE")] = None
    engine: Annotated[
        str | None,
        Option("Engine: its scheduler, cache policy and overheads.", metavar="ENGINE", default="vllm"),
    ] = None
    tp: Annotated[_Degree, Option("Fix the tensor-parallel degree.", parse=read_count)] = None
    ep: Annotated[_Degree, Option("Fix the expert-parallel degree.", parse=read_count)] = None
    pp: Annotated[_Degree, Option("Fix the number of pipeline stages.", parse=read_count)] = None
    dp: Annotated[_Degree, Option("Fix the data-parallel degree.", parse=read_count)] = None
    replicas: Annotated[_Degree, Option("Replicas that one router serves.", parse=read_count, default="1")] = None
    router: Annotated[
        Literal["round_robin", "least_loaded", "prefix_aware"] | None,
        Option(
            "How the router assigns requests to replicas: round_robin, least_loaded or prefix_aware.", metavar="ROUTER"
        ),
    ] = None
    routing: Annotated[
        str | None,
        Option(
            "Expert load: uniform, power_law:1.2, log_normal:1.0, maverick, or a JSON file of `l4spec measure`.",
            metavar="LOAD",
        ),
    ] = None
    memory_fraction: Annotated[
        float | None,
        Option("Share of device memory to use.", metavar="SHARE", parse=read_number, default="the engine's own"),
        Field(gt=0, le=1),
    ] = None
    usd_per_gpu_hour: Annotated[
        float | None,
        Option("Price of a GPU, to compute the cost.", metavar="USD", parse=read_number, expects="a price above 0"),
        Field(gt=0, le=1e6),
    ] = None
    rate: Annotated[str | None, Option("Poisson arrivals, as 4/s or 200/min.", metavar="RATE", parse=read_rate)] = None
    concurrency: Annotated[
        _Degree,
        Option(
            "A closed loop of N clients instead of arrivals at a rate.",
            flags=("--concurrency", "--clients"),
            parse=read_count,
        ),
    ] = None
    think: Annotated[
        str | None,
        Option(
            "With --concurrency: mean time from an answer to the client's next request.", metavar="TIME", default="0 s"
        ),
    ] = None
    trace: Annotated[
        str | None, Option("Requests of a trace instead: Azure, Mooncake, vLLM, BLIS, agentic.", metavar="FILE")
    ] = None
    prompt_tokens: Annotated[_Tokens, Option("Tokens of each prompt.", metavar="TOKENS", parse=read_tokens)] = None
    output_tokens: Annotated[_Tokens, Option("Tokens of each answer.", metavar="TOKENS", parse=read_tokens)] = None
    prefix_tokens: Annotated[
        _Tokens,
        Option(
            "Length of a prefix that all prompts share, added to --prompt-tokens.", metavar="TOKENS", parse=read_tokens
        ),
    ] = None
    requests: Annotated[
        int | None,
        Option("Requests of the run.", parse=read_count, default="1,000, or all of a trace"),
        Field(ge=1, le=10_000_000),
    ] = None
    ttft: Annotated[str | None, Option("Service level: longest time to first token.", metavar="TIME")] = None
    tpot: Annotated[str | None, Option("Service level: longest mean time per output token.", metavar="TIME")] = None
    e2e: Annotated[str | None, Option("Service level: longest time to the last token.", metavar="TIME")] = None
    seed: Annotated[
        int | None, Option("Seed of all random draws.", parse=read_count, default="0"), Field(ge=0, le=2**32 - 1)
    ] = None
    time_limit: Annotated[
        float | None,
        Option(
            "Stop after so many seconds of real time, and report what is done.", metavar="SECONDS", parse=read_number
        ),
        Field(gt=0, le=1e6),
    ] = None

    repeats: Annotated[
        int,
        Option("Number of seeds to run; more than one gives 95 % intervals.", parse=read_count),
        Field(ge=1, le=MOST_REPEATS),
    ] = 1
    capacity: Annotated[bool, Option("Find the highest rate within the service levels.")] = False
    jobs: Annotated[int, Option("Simulations to run in parallel.", parse=read_count), Field(ge=1, le=1024)] = 1
    fit: Annotated[
        str | None,
        Option("Fit the engine's factors to a run of your own, and write them to a file.", metavar="FILE"),
    ] = None
    fit_requests: Annotated[
        int,
        Option("With --fit: requests to fit on; the others evaluate the fit.", parse=read_count),
        Field(ge=2, le=100_000),
    ] = 100
    factors: Annotated[str | None, Option("Time steps by the factors of a file that --fit wrote.", metavar="FILE")] = (
        None
    )

    def assignments(self, key: str) -> Mapping[tuple[str, ...], tuple[Any, str]]:
        """Assignments of the options by field of the scenario: (value as in YAML, option); `key` is the model's."""
        assigned: dict[tuple[str, ...], tuple[Any, str]] = {}

        def assign(path: tuple[str, ...], name: str, value: Any = None) -> None:
            given = getattr(self, name) if value is None else value
            if getattr(self, name) is not None:
                assigned[path] = (given, flag_of(type(self), name))

        for name in MODEL_FIELDS:
            assign(("models", key, name), name)
        arrivals = ("workload", "arrivals")
        assign(arrivals, "rate", {"kind": "poisson", "rate": self.rate})
        assign(arrivals, "concurrency", {"kind": "closed", "clients": self.concurrency, "think": self.think or "0 s"})
        assign(arrivals, "trace", {"kind": "trace", "path": self.trace})
        for name in ("prompt_tokens", "output_tokens", "requests"):
            assign(("workload", name), name)
        assign(("workload", "prefix"), "prefix_tokens", {"tokens": self.prefix_tokens})
        for name in ("ttft", "tpot", "e2e"):
            assign(("slo", name), name)
        assign(("seed",), "seed")
        assign(("models", key, "times"), "factors", {"kind": "spec", "factors": self.factors})
        if self.fit is not None and self.trace is None:
            assigned[arrivals] = ({"kind": "trace", "path": self.fit}, "--fit")
        return assigned
