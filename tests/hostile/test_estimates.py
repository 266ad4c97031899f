"""An estimate is never below its own bound, on any machine, engine and calibration."""

from collections.abc import Iterator
from random import Random

from hypothesis import given

import l4spec
from l4spec.layers.declaration import Work
from planners.latency_types import Latency
from planners.module.report import eager_step
from planners.module.step_time import EagerModel
from planners.plan import plan
from planners.timing.layer_demand import UNIFORM
from tests.hostile.draws import RANDOMS, draws, size
from tests.planners.module.made_up import made_up

SPECS = ("tiny/scout", "tiny/deepseek", "scout", "maverick", "compare/llama-3.1-8b", "compare/deepseek-v3")


def pairs(latency: Latency) -> Iterator[tuple[str, float | None, float | None]]:
    """(name, estimate, bound) of everything in a latency section that has both."""
    for name in ("prefill", "decode", "train"):
        step = getattr(latency, name)
        if step is not None:
            yield name, step.estimate_seconds, step.bound_seconds
    for name in ("ttft", "time_per_output_token", "step_time"):
        yield name, getattr(latency, f"{name}_seconds"), getattr(latency, f"{name}_bound_seconds")


def below_bound(latency: Latency) -> list[tuple[str, float, float]]:
    """The estimates that are below their bound by more than rounding."""
    known = [(name, e, bound) for name, e, bound in pairs(latency) if e is not None and bound is not None]
    return [each for each in known if each[1] < each[2] * (1 - 1e-12)]


@draws(200)
@given(RANDOMS)
def test_no_estimate_on_gpus_is_below_its_bound(random: Random) -> None:
    graph = l4spec.compile(l4spec.load(random.choice(SPECS)))
    gpus = f"{2 ** random.randint(0, 6)}x{random.choice(['H100', 'B200', 'MI300X', 'A100-80GB', 'L40S', 'H200'])}"
    engine = random.choice(["vllm", "sglang", "tensorrt-llm", "ideal"])
    context = min(graph.model.text.stack.width.max_seq_len, size(random, 100_000) + 1)
    output = random.choice([None, 1, max(1, context // 2)])
    result = plan(graph, gpus=gpus, engine=engine, context=context, batch=size(random, 256), output_tokens=output)
    assert result.latency is not None
    assert below_bound(result.latency) == []


@draws(100)
@given(RANDOMS)
def test_no_estimate_of_a_coarse_calibration_is_below_its_bound(random: Random) -> None:
    machine = made_up("fp32")
    slow = machine.memory.model_copy(
        update={"bandwidth": machine.memory.bandwidth.model_copy(update={"value": 10.0 ** random.uniform(4, 13)})}
    )
    machine = machine.model_copy(update={"memory": slow})
    assert machine.eager is not None
    model = EagerModel(l4spec.compile(l4spec.load(random.choice(SPECS[:2]))), machine.eager, "fp32", UNIFORM)
    step = eager_step(model, machine, Work(size(random, 8), size(random, 512), num_logits=1))
    assert step.estimate_seconds is not None
    assert step.estimate_seconds >= step.bound_seconds
