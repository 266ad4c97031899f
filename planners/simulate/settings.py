"""A scheduler's settings: those of a scenario over the defaults of the engine's version."""

from collections.abc import Iterator

from l4spec.errors import Problem, UserError
from l4spec.spec.scenario import SchedulerSpec
from planners.catalog.schedulers import SchedulerDefaults
from planners.simulate.engines.policy import Policy, Settings
from planners.simulate.engines.sglang import SglangPolicy
from planners.simulate.engines.tensorrt_llm import TensorRtLlmPolicy
from planners.simulate.engines.vllm import VllmPolicy

POLICIES: dict[str, type[Policy]] = {
    "vllm": VllmPolicy,
    "sglang": SglangPolicy,
    "tensorrt-llm": TensorRtLlmPolicy,
}


def settings_of(defaults: SchedulerDefaults, chosen: SchedulerSpec, device_bytes: int | None) -> Settings:
    """The defaults of an engine with a scenario's settings; some defaults depend on `device_bytes`.

    Raises UserError for settings that the engine's scheduler does not have.
    """
    if problems := list(_unknown(defaults, chosen)):
        raise UserError(problems)
    small = defaults.small_devices
    lesser = small if small is not None and device_bytes is not None and device_bytes < small.below.value else None
    sized = defaults if lesser is None else lesser
    return Settings(
        order=chosen.order or defaults.order.value,
        max_num_seqs=chosen.max_num_seqs or sized.max_num_seqs.value,
        max_num_batched_tokens=chosen.max_num_batched_tokens or sized.max_num_batched_tokens.value,
        chunked_prefill=_or(chosen.chunked_prefill, defaults.chunked_prefill.value),
        prefix_caching=_or(chosen.prefix_caching, defaults.prefix_caching.value),
        block_size_tokens=chosen.block_size_tokens or defaults.block_size_tokens.value,
        watermark=_number(chosen.watermark, 0.0 if defaults.watermark is None else defaults.watermark.value),
        max_model_len=chosen.max_model_len,
        overbooking=chosen.overbooking or (defaults.overbooking.value if defaults.overbooking else None),
        new_token_ratio=defaults.new_token_ratio.value if defaults.new_token_ratio else 0.0,
        min_new_token_ratio=defaults.min_new_token_ratio.value if defaults.min_new_token_ratio else 0.0,
        new_token_ratio_steps=defaults.new_token_ratio_steps.value if defaults.new_token_ratio_steps else 1,
        retract_steps=defaults.retract_steps.value if defaults.retract_steps else 0,
        most_new_tokens_counted=defaults.most_new_tokens_counted.value if defaults.most_new_tokens_counted else 0,
        longest_sorted_queue=defaults.longest_sorted_queue.value if defaults.longest_sorted_queue else 0,
    )


def _unknown(defaults: SchedulerDefaults, chosen: SchedulerSpec) -> Iterator[Problem]:
    policy = POLICIES[defaults.policy]
    for name in policy.without:
        if getattr(chosen, name) is not None:
            message = f"the scheduler of {defaults.name} has no such setting"
            yield Problem(message, path=f"scheduler.{name}", hint="leave it out")
    if chosen.order is not None and chosen.order not in policy.orders:
        known = " or ".join(policy.orders)
        message = f"the scheduler of {defaults.name} knows {known}, not {chosen.order}"
        yield Problem(message, path="scheduler.order", hint="leave it out, or name another engine")


def merged(of_scenario: SchedulerSpec, of_model: SchedulerSpec | None) -> SchedulerSpec:
    """The scenario's settings with those of one model over them."""
    if of_model is None:
        return of_scenario
    return of_scenario.model_copy(update=of_model.model_dump(exclude_none=True))


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _number(value: float | None, default: float) -> float:
    return default if value is None else value
