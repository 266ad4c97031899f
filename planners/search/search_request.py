"""Options of a search: a service level or a deadline, and the hardware, formats and engines to choose from."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from l4spec.errors import Problem, UserError
from l4spec.options import Option, read_count, read_number
from l4spec.quantization.published import AS_PUBLISHED
from l4spec.units import parse_duration
from planners.latency_types import NOT_TIMED_UNDER_CP
from planners.request import PlanRequest
from planners.request_checks import serving_only

DEFAULT_SCHEMES = (AS_PUBLISHED, "fp8", "w4a16")
DEFAULT_KV_DTYPES = ("bf16", "fp8")
DEFAULT_ENGINES = ("vllm-hybrid", "sglang-hybrid", "tensorrt-llm")
CHOSEN_HERE = {
    "context": "a search counts --prompt-tokens and --output-tokens apart",
    "batch": "a search takes its load as --concurrency or --rate, or chooses it",
    "dp": "a search chooses the number of replicas",
    "cp": NOT_TIMED_UNDER_CP,
    "objective": "a search ranks by price",
    "host_memory": "a search ranks by estimated time, which has not been measured with weights in host memory",
    "draft_acceptance": "a search ranks engines by estimated time, and no measured row drafts",
}
"""Options of a plan that a search of serving decides by itself, with the option to give instead."""
_CHOICES = frozenset({"gpus", "quantization", "kv_dtype", "engine"})
CHOSEN_IN_TRAINING = {"objective": "a search ranks by price"}
"""The same of a search of training."""
MOST_SERVING, MOST_SERVING_GIVEN, MOST_TRAINING = 64, 1024, 32_768
"""GPUs of hardware that is named without a number: by default and at most in serving, and in training."""
LONGEST_SECONDS = 10.0**9


def read_duration(text: str) -> float:
    """Seconds from `500ms`, `1.5 s` or `30 d`. Raises ValueError, for a bare number too."""
    try:
        return float(parse_duration(text))
    except ValueError:
        raise ValueError(f"expected a time above 0 with its unit, like 500ms, 1s or 30d, found {text[:40]!r}") from None


_Duration = Annotated[float | None, Field(gt=0, le=LONGEST_SECONDS)]
_EXPECTS_TIME = "a time above 0 with its unit, like 500ms, 1s or 30d"


def _duration(help_text: str) -> Option:
    return Option(help_text, metavar="TIME", parse=read_duration, expects=_EXPECTS_TIME)


class SearchRequest(PlanRequest):
    """Options of a search: requests and limits, and the hardware, schemes, dtypes and engines to choose from.

    `gpus`, `quantization`, `kv_dtype` and `engine` are lists with commas. `8xH100` allows at most eight of them, `H100`
    as many as needed up to `most_gpus`. Every other option is that of a plan and applies to each of its candidates.
    Without `concurrency` and `rate`, the load is chosen too: the cheapest that the limits allow.
    """

    gpus: Annotated[
        str | None,
        Option(
            "Hardware to choose from, as 8xH100,4xH200 (at most so many) or H100 (as many as needed).",
            metavar="LIST",
            default="all of the catalogue",
        ),
    ] = None
    quantization: Annotated[
        str,
        Option(
            "Weights to choose from.",
            metavar="LIST",
            flags=("--quantization", "-q"),
            mode="serve",
            default="as published,fp8,w4a16",
        ),
    ] = ""
    kv_dtype: Annotated[str, Option("KV caches to choose from.", metavar="LIST", mode="serve", default="bf16,fp8")] = ""
    engine: Annotated[
        str,
        Option("Engines to choose from.", metavar="LIST", mode="serve", default=",".join(DEFAULT_ENGINES)),
    ] = ""
    ttft: Annotated[_Duration, _duration("Longest time to the first token, as 1s.")] = None
    tpot: Annotated[_Duration, _duration("Longest time per output token, as 33ms.")] = None
    budget: Annotated[
        float | None,
        Option(
            "Most that all GPUs may cost per hour.",
            metavar="USD",
            parse=read_number,
            expects="USD per hour, a number above 0",
        ),
        Field(gt=0, le=1e12),
    ] = None
    deadline: Annotated[
        _Duration,
        Option(
            "With --mode train: when the run must be finished, as 30d.",
            metavar="TIME",
            parse=read_duration,
            mode="train",
            expects=_EXPECTS_TIME,
        ),
    ] = None
    most_gpus: Annotated[
        int | None,
        Option(
            "Most GPUs of hardware that is named without a number.",
            parse=read_count,
            default=f"{MOST_SERVING}, in training {MOST_TRAINING:,}",
        ),
        Field(ge=1, le=MOST_TRAINING),
    ] = None

    def candidate(self, **options: object) -> PlanRequest:
        """The plan request of one candidate: the search's options, and `options` of the candidate."""
        shared = {
            name: value
            for name, value in self.echo().items()
            if name in PlanRequest.model_fields and name not in _CHOICES
        }
        return PlanRequest(**{**shared, **options})

    @property
    def most(self) -> int:
        """GPUs of hardware that is named without a number."""
        return self.most_gpus or (MOST_SERVING if self.mode == "serve" else MOST_TRAINING)

    def check_level(self) -> None:
        """Raise UserError for missing required options, and for options that a search chooses itself."""
        training = self.mode == "train"
        problems = [*(self._missing_in_training() if training else self._missing()), *self._chosen(), *self._twice()]
        if problems:
            raise UserError(problems)

    def _missing(self) -> Iterator[Problem]:
        for name, example in (("prompt_tokens", "8k"), ("output_tokens", "1k")):
            if getattr(self, name) is None:
                flag = "--" + name.replace("_", "-")
                yield Problem("a search needs the length of requests", path=name, hint=f"as {flag} {example}")
        if self.deadline is not None:
            yield Problem("needs --mode train", path="deadline")
        if self.most > MOST_SERVING_GIVEN:
            yield Problem(f"expected at most {MOST_SERVING_GIVEN:,} GPUs for serving", path="most_gpus")

    def _missing_in_training(self) -> Iterator[Problem]:
        if self.train_tokens is None:
            yield Problem(
                "a search of training needs the tokens of the run", path="train_tokens", hint="as --tokens 15T"
            )
        if self.deadline is None:
            yield Problem("a search of training needs a deadline", path="deadline", hint="as --deadline 30d")
        for name in ("ttft", "tpot", *sorted(_CHOICES - {"gpus"})):
            if getattr(self, name):
                yield serving_only(name)

    def _chosen(self) -> Iterator[Problem]:
        for name, reason in (CHOSEN_HERE if self.mode == "serve" else CHOSEN_IN_TRAINING).items():
            if name in self.model_fields_set:
                yield Problem(reason, path=name, hint="leave it out")

    def _twice(self) -> Iterator[Problem]:
        if self.concurrency is not None and self.rate is not None:
            hint = "a closed loop of clients or an open loop at a rate"
            yield Problem("is not for requests that arrive at a rate: leave one out", path="concurrency", hint=hint)


def choices(text: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a list with commas, each once and in order; `default` where it is empty. Raises UserError."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if text and not names:
        raise UserError(f"the list {text[:40]!r} names nothing: no candidate is left", hint="name at least one")
    return names or default
