"""Times of users from those of steps: time to first token, time per output token and throughput, in a closed loop.

`concurrency` clients each send a request, wait for its last token and send the next. Prompts are prefilled in chunks
mixed into decode steps (vLLM, SGLang, TensorRT-LLM), so every prompt slows all requests' tokens by its additional time:

    TPOT = decode(n) / tokens of a step + (n - 1) / output * prefill
    TTFT = request + (waited steps + 1) * decode(n) + prefill + waiting for other prompts

with n the sequences that decode at once: the concurrency, or fewer where the cache holds no more; the others queue, and
Little's law gives their wait. A client's next request comes with the end of a step, from which its last token came, so
it waits for the whole step that has just begun; engines that plan a step ahead may let it wait for one more. Its prompt
is then read in a step that decodes for the others.
"""

from dataclasses import dataclass, replace

from planners.request import DEFAULT_PREFILL_CHUNK
from planners.timing.chunks import further_seconds, further_steps
from planners.timing.drafts import decode_seconds, tokens_per_step
from planners.timing.layer_demand import Step
from planners.timing.step import StepModel

WAITED_STEPS = 1.5
"""Steps that others decode before a prompt is read: between one and, planned ahead, two. Fits rows of vLLM best."""


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop on one replica: mean prompt and output length in tokens, clients, and sequences that fit at once.

    `waves` is how many requests each client sends: all start together, so the first prompts wait for each other. None
    is a loop that has run for ever. `server` is False for an offline benchmark without a front end. `chunk` is how many
    tokens of a prompt a step takes where that is fewer than by default.
    """

    prompt: float
    output: float
    concurrency: float
    capacity: float = float("inf")
    waves: float | None = None
    server: bool = True
    chunk: int = DEFAULT_PREFILL_CHUNK


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds and tokens per second of one replica.

    `waited` are decode steps of the others before the first chunk of a prompt, and between its chunks.
    """

    ttft: float
    tpot: float
    requests_per_second: float
    running: float
    decode: Step
    prefill_seconds: float
    waited: float = 0.0

    def tokens_per_second(self, output: float) -> float:
        """Output tokens per second of all clients together."""
        return self.requests_per_second * output


_MOST_PREFILL = 0.8
"""Share of time in prefill beyond which the waiting formula would leave its range."""


@dataclass(frozen=True, slots=True)
class MixedSteps:
    """Steps that decode `running` sequences and read prompts beside them.

    `seconds` is one step without a prompt, `prefill` what each prompt adds, `between_chunks` the steps of the others
    from the first chunk of a prompt to its last.
    """

    running: float
    decode: Step
    seconds: float
    prefill: float
    between_chunks: float


def mixed_steps(model: StepModel, load: Load, running: float, together: float = 1.0) -> MixedSteps:
    """The steps of a replica that decodes `running` sequences of a load and reads `together` prompts in a step."""
    decode = Step(decode=running, context=load.prompt + load.output / 2 + 0.5)
    seconds = decode_seconds(model, decode, server=load.server)
    prefill = added_by_prompt(model, load.prompt, running, together)
    waited = 0.0
    if count := further_steps(round(load.prompt), load.chunk):
        waited = count * _others(model, running - 1, decode.context, server=load.server)
        prefill += added_by_chunks(model, round(load.prompt), load.chunk, running - 1)
    return MixedSteps(running, decode, seconds, prefill, waited)


def serve(model: StepModel, load: Load) -> Served:
    """Estimated service of a closed loop. The model must have fitted factors and know its machine.

    Raises no error: ask `model.unknown` and `model.efficiency` first.
    """
    steps = mixed_steps(model, load, max(1.0, min(load.concurrency, load.capacity)))
    running, prefill = steps.running, steps.prefill
    # nobody else decodes where one client is alone
    waited = WAITED_STEPS * min(1.0, running - 1) * steps.seconds + steps.between_chunks
    others = (running - 1) / load.output * prefill
    tpot = steps.seconds / tokens_per_step(model) + others
    busy = min(_MOST_PREFILL, others / tpot)
    rate = running / (load.output * tpot)
    ttft = model.request_seconds + waited + steps.seconds + prefill + busy * prefill / 2
    if load.waves is not None:
        ttft += (running - 1) / 2 * prefill / load.waves
    if load.concurrency > running:
        ttft = max(ttft, load.concurrency / rate - load.output * tpot)
    return Served(ttft, tpot, rate, running, steps.decode, prefill, waited)


def added_by_prompt(model: StepModel, prompt: float, decoding: float, together: float = 1.0) -> float:
    """Seconds that one of `together` prompts adds to steps in which `decoding` sequences read the weights anyway."""
    with_prompts = Step(decode=decoding, context=1.0, prompt_tokens=together * prompt, prompt_length=prompt)
    without = Step(decode=decoding, context=1.0)
    return max(0.0, model.seconds(with_prompts, server=False) - model.seconds(without, server=False)) / together


def added_by_chunks(model: StepModel, prompt: int, chunk: int, others: float) -> float:
    """Seconds that small chunks of a prompt add to the steps that decode `others` sequences anyway."""
    of_steps = further_seconds(prompt, chunk, lambda step: model.seconds(step, server=False), others)
    without = further_steps(prompt, chunk) * _others(model, others, 1.0, server=False)
    return max(0.0, of_steps - without)


def _others(model: StepModel, decoding: float, context: float, *, server: bool) -> float:
    """Seconds of a step that decodes the others; none where there are none."""
    return decode_seconds(model, Step(decode=decoding, context=context), server=server) if decoding > 0 else 0.0


def most_throughput(model: StepModel, load: Load) -> Served:
    """The best closed loop with any number of clients that the cache has room for, as in an offline benchmark."""
    best = serve(model, load)
    tried = load.capacity
    while tried > 8:
        tried /= 2
        served = serve(model, replace(load, concurrency=tried, capacity=tried, waves=None))
        if served.requests_per_second > best.requests_per_second:
            best = served
    return best
