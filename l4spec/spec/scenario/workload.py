"""The workload of a scenario: arrivals, lengths, shared prefixes, sessions, images, and when a run ends."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from l4spec.layers.base import AsTuple, Size, Spec
from l4spec.spec.header import located
from l4spec.spec.quantities import Duration, Rate, Share, Tokens

MOST_REQUESTS = 10_000_000


class ConstantLength(Spec):
    """Every request has the same number of tokens."""

    kind: Literal["constant"]
    tokens: Tokens
    """Tokens of a request."""


class UniformLength(Spec):
    """Whole numbers between two bounds, both included, equally likely."""

    kind: Literal["uniform"]
    low: Tokens
    """Fewest tokens."""
    high: Tokens
    """Most tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise located(("high",), f"must be at least low ({self.low}), found {self.high}")
        return self


class LognormalLength(Spec):
    """A log-normal distribution by its mean and coefficient of variation, rounded and cut to [1, most]."""

    kind: Literal["lognormal"]
    mean: Tokens
    """Mean number of tokens, before the cut at `most`."""
    cv: Annotated[float, Field(gt=0, le=20)]
    """Standard deviation divided by the mean."""
    most: Tokens | None = None
    """Longest length."""


class ExponentialLength(Spec):
    """An exponential distribution, rounded up to whole tokens."""

    kind: Literal["exponential"]
    mean: Tokens
    """Mean number of tokens."""
    most: Tokens | None = None
    """Longest length."""


class FileLength(Spec):
    """Lengths drawn from a file with one number per line."""

    kind: Literal["file"]
    path: Annotated[str, Field(min_length=1)]
    """The file, relative to the scenario's folder."""


LengthSpec: TypeAlias = Annotated[
    ConstantLength | UniformLength | LognormalLength | ExponentialLength | FileLength, Field(discriminator="kind")
]


def _length_form(value: Any) -> str:
    return "token_count" if isinstance(value, int | str) else "distribution"


Length: TypeAlias = Annotated[
    Annotated[Tokens, Tag("token_count")] | Annotated[LengthSpec, Tag("distribution")], Discriminator(_length_form)
]
"""A number of tokens for every request, or a distribution of such numbers."""


class Poisson(Spec):
    """Independent arrivals: exponential gaps."""

    kind: Literal["poisson"]
    rate: Rate
    """Mean requests per second."""


class Gamma(Spec):
    """Gaps of a gamma distribution: burstier than Poisson for `cv` above 1, more regular below."""

    kind: Literal["gamma"]
    rate: Rate
    """Mean requests per second."""
    cv: Annotated[float, Field(gt=0, le=100)]
    """Coefficient of variation of the gaps; 1 is Poisson."""


class Constant(Spec):
    """Equal gaps."""

    kind: Literal["constant"]
    rate: Rate
    """Requests per second."""


class Bursts(Spec):
    """Poisson arrivals whose rate changes from period to period, over and over."""

    kind: Literal["bursts"]
    rates: Annotated[tuple[Rate, ...], AsTuple, Field(min_length=1, max_length=10_000)]
    """Requests per second in each period."""
    period: Duration = 3600.0
    """Length of a period."""


class ClosedLoop(Spec):
    """Clients that each wait for an answer, think, and send the next request."""

    kind: Literal["closed"]
    clients: Size
    """Number of clients."""
    think: Duration = 0.0
    """Mean time between an answer and the client's next request."""
    think_distribution: Literal["constant", "exponential"] = "exponential"
    """Distribution of think times."""


class Trace(Spec):
    """Requests from a file, with their arrivals, lengths and prefixes."""

    kind: Literal["trace"]
    path: Annotated[str, Field(min_length=1)]
    """The file, relative to the scenario's folder; `.gz` is unpacked."""
    format: Literal["auto", "azure", "mooncake", "vllm", "blis", "agentic", "requests"] = "auto"
    """Format of the file; `auto` infers it from the first line."""
    speed: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Arrivals and think times come this many times as fast."""
    sessions_at_once: Size | None = None
    """Concurrent sessions of a trace that has sessions; null: all."""


Arrivals: TypeAlias = Annotated[Poisson | Gamma | Constant | Bursts | ClosedLoop | Trace, Field(discriminator="kind")]


class SharedPrefix(Spec):
    """Prompts begin with one of a few common texts: system prompts, documents, tools."""

    tokens: Length
    """Length of the common part, which comes on top of `prompt_tokens`."""
    groups: Size = 1
    """Number of different texts."""
    zipf: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Popularity: the k-th text is chosen in proportion to 1 / k^zipf; 0 is uniform."""


class Sessions(Spec):
    """Conversations: the prompt of each turn is the conversation so far and `prompt_tokens` of new text."""

    turns: Length
    """Turns of a session."""
    think: Duration = 0.0
    """Mean time between an answer and the next turn of its session, exponentially distributed."""


class Images(Spec):
    """Images in prompts, each cut into tiles that go through the vision tower before the prefill."""

    per_request: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Mean number of images; a fraction is the share of requests with one more."""
    tiles: Size | None = None
    """Tiles of an image; by default as many as the model cuts it into."""


class Workload(Spec):
    """Requests: their arrivals and lengths."""

    arrivals: Arrivals
    """Arrival process of requests."""
    prompt_tokens: Length | None = None
    """New tokens of a prompt; a trace brings its own."""
    output_tokens: Length | None = None
    """Tokens of an answer; a trace brings its own."""
    prefix: SharedPrefix | None = None
    """Common beginnings of prompts."""
    sessions: Sessions | None = None
    """Several turns to a session; arrivals are then those of sessions."""
    images: Images | None = None
    """Images in prompts."""
    requests: Annotated[int, Field(ge=1, le=MOST_REQUESTS)] | None = None
    """Requests of a run; 1,000 without it, or all of a trace."""
    seconds: Duration | None = None
    """Time after which no requests arrive; null: the load ends after `requests`."""
    high_priority: Share = 0.0
    """Share of requests that a scheduler with priorities serves first."""

    @model_validator(mode="after")
    def _lengths_are_known(self) -> Self:
        traced = isinstance(self.arrivals, Trace)
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) is None and not traced:
                raise located((name,), "missing field", f"add `{name}`; only a trace brings its own")
            if getattr(self, name) is not None and traced:
                raise located((name,), "a trace brings its own lengths", "leave it out")
        for name in ("prefix", "sessions"):
            if traced and getattr(self, name) is not None:
                raise located((name,), "a trace brings its own prefixes and sessions", "leave it out")
        if traced and self.images is not None:
            raise located(("images",), "the requests of a trace show no images", "leave it out")
        if self.sessions is not None and isinstance(self.arrivals, ClosedLoop):
            raise located(("sessions",), "a client of a closed loop is a session already", "use other arrivals")
        return self
