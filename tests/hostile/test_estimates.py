"""An estimate is never below its own bound, on any machine, engine and calibration."""

from random import Random

from hypothesis import given

import l4spec
from l4spec.layers.declaration import Work
from planners.module.report import eager_step
from planners.module.step_time import EagerModel
from planners.plan import plan
from planners.timing.layer_demand import UNIFORM
from tests.hostile.draws import RANDOMS, draws, size
from tests.planners.module.made_up import made_up

SPECS = ("tiny/scout", "tiny/deepseek", "scout", "maverick", "compare/llama-3.1-8b", "compare/deepseek-v3")


def require_bounded(latency: object) -> None:
    """Every pair of estimate and bound in a latency section."""
    for name in ("prefill", "decode", "step"):
        step = getattr(latency, name, None)
        if step is not None and step.estimate_seconds is not None:
            assert step.estimate_seconds >= step.bound_seconds * (1 - 1e-12), (name, step)
    for name in ("ttft", "time_per_output_token"):
        estimate, bound = getattr(latency, f"{name}_seconds"), getattr(latency, f"{name}_bound_seconds")
        if estimate is not None and bound is not None:
            assert estimate >= bound * (1 - 1e-12), (name, estimate, bound)


@draws(200)
@given(RANDOMS)
def test_no_estimate_on_gpus_is_below_its_bound(random: Random) -> None:
    graph = l4spec.compile(l4spec.load(random.choice(SPECS)))
    gpus = f"{2 ** random.randint(0, 6)}x{random.choice(['H100', 'B200', 'MI300X', 'A100-80GB', 'L40S', 'H200'])}"
    engine = random.choice(["vllm", "sglang", "tensorrt-llm", "ideal"])
    context = min(graph.model.text.stack.width.max_seq_len, size(random, 100_000) + 1)
    output = random.choice([None, 1, max(1, context // 2)])
    result = plan(graph, gpus=gpus, engine=engine, context=context, batch=size(random, 256), output_tokens=output)
    if result.latency is not None:
        require_bounded(result.latency)


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
