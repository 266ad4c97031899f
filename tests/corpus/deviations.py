"""What may differ between the start commit's documents and today's: names, keys, prose, and repaired defects."""

from dataclasses import dataclass

RENAMED_KEYS: dict[str, str] = {"l4spec_model_table": "l4spec_herd"}
"""Keys of JSON documents: today's name → the name at the start commit."""
ADDED_KEYS: frozenset[str] = frozenset(
    {
        *("plan.request", "deployment.max_context", "deployment.as_published", "deployment.chosen_by"),
        *("layouts.ttft_seconds", "layouts.time_per_output_token_seconds", "layouts.tokens_per_second_per_gpu"),
        *("layouts.step_time_seconds", "memory_per_device.unknown", "deployment.batch_origin", "deployment.video"),
        *("deployment.fp8_matmuls", "deployment.left_open", "layouts.training", "layouts.as_fast"),
        *("memory_per_device.gathered_bytes", "plan.host_memory", "deployment.sequence_parallel", "deployment.trainer"),
        *("deployment.virtual_stages", "latency.after_passes_seconds"),
        *("deployment.lora_rank", "deployment.lora_targets", "deployment.lora_params"),
        *("plan.drafts", "plan.module_params", "latency.cautions"),
        "models.about",
    }
)
"""Keys that have been added since, each with the object that it stands in."""
RENAMED_OPTIONS: dict[str, str] = {}
"""Options: the name at the start commit → today's name."""
RENAMED_VALUES: dict[str, str] = {"simplest": "balanced"}
"""Words in documents that programs read: today's → the one at the start commit."""
PROSE = frozenset(
    (
        *("arithmetic", "capacity_source", "change", "condition", "label", "name", "note", "notes", "policy_explained"),
        *("reason", "reasons", "refusal", "refusals", "section", "source", "sources", "time_note", "what"),
    )
)
"""Keys whose values are sentences or names for people: free to change. Numbers beside them are compared."""
SECTIONS = frozenset({"latency", "communication", "train_traffic", "suggestions"})
"""Parts of a plan with a digest of their own; `rest` is everything that has none, `exit` the exit code."""
_KEYS: dict[str, tuple[str, ...]] = {
    "estimates": (
        *("estimate_seconds", "errors", "extrapolated", "ttft_seconds", "time_per_output_token_seconds", "mfu"),
        *("tokens_per_second_per_gpu", "tokens_per_second_per_user", "train_tokens_per_second", "step_time_seconds"),
        *("model_flops_per_second_per_gpu",),
    ),
    "links": ("links_seconds",),
    "capacity": ("capacity_bytes", "headroom_bytes", "max_batch", "max_context", "fits"),
    "memory": (
        *("activation_bytes", "gradient_bytes", "kv_cache_bytes", "optimizer_bytes", "reserved_bytes", "terms"),
        *("total_bytes", "memory_per_device.weights_bytes"),
    ),
    "layout": ("plan.layout",),
}
SECTIONS_BY_KEY: dict[str, str] = {key: section for section, keys in _KEYS.items() for key in keys}
"""Single keys with a digest apart from their neighbours': the section that they go to."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Sections that differ in cases that start with one of `commands` and hold one of `words`, and why."""

    sections: frozenset[str]
    commands: tuple[str, ...]
    reason: str
    words: tuple[str, ...] = ("",)
    without: str = "\n"
    """What a case must not hold."""


def _sections(names: str) -> frozenset[str]:
    return frozenset(names.split())


_FIT = _sections("capacity exit layout suggestions")
_PLANS = ("plan ", "compare ")

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        _FIT | _sections("memory estimates latency links train_traffic communication rest"),
        ("plan ", "compare ", "sweep "),
        "Training plans choose ZeRO stage, activation checkpointing and micro-batch with the layout",
        ("--mode train",),
    ),
    Deviation(_sections("estimates"), _PLANS, "Factors are fitted by robust least squares"),
    Deviation(_sections("communication"), _PLANS, "ranks gather logits in bf16, as engines do, not in fp32"),
    Deviation(_sections("links latency"), _PLANS, "A step's time includes the gather of logits"),
    Deviation(_FIT | {"memory"}, ("plan ",), "of vLLM by its profiling run", ("--engine vllm",)),
    Deviation(_FIT, _PLANS, "Device memory is what drivers report", ("xA100", "xB200", "xMI300X", "xm3-ultra")),
    Deviation(_sections("rest"), ("plan --gpus",), "The table of all Llama 4 models follows"),
    Deviation(
        _sections("suggestions"),
        ("plan ",),
        "is planned, timed and emitted by the fullest rank",
        ("deepseek-v3", "maverick"),
    ),
    Deviation(_sections("suggestions"), _PLANS, "suggested where one GPU is too small", ("1xH100",)),
    Deviation(_sections("rest"), ("plan ",), "FLOPs of a plan's prefill were those", ("--output-tokens",)),
    Deviation(_sections("suggestions"), ("plan ",), "leaves room for the output tokens", ("--output-tokens",)),
    Deviation(
        _FIT | {"memory", "rest"}, _PLANS, "It is the default of `plan`, decides what fits", ("deepseek-v3",), "--quant"
    ),
    Deviation(
        _sections("rest"),
        ("plan ",),
        "launch in a format that is not the published one names no published checkpoint",
        ("fp8 --emit",),
    ),
    Deviation(_sections("rest"), ("plan ",), "names a checkpoint that is published in the planned scheme", ("--emit",)),
    Deviation(_sections("rest"), ("verify ",), "What is timed is what is planned and what ranks count"),
)
"""Defects of the start commit that were repaired; CHANGELOG.md lists each with its old and new number."""


def deviation_of(case: str, section: str) -> Deviation | None:
    """The deviation that lets a section of a case differ from the start commit."""
    fitting = (d for d in DEVIATIONS if section in d.sections and case.startswith(d.commands))
    return next((d for d in fitting if any(word in case for word in d.words) and d.without not in case), None)
