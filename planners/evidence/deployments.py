"""Translation of a published row's settings to a deployment of this planner, or the reason why there is none.

Settings that a row leaves open are those of its source's own scripts, as noted here.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from l4spec.catalog.entry import Sourced
from l4spec.errors import UserError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import illegal_reason
from l4spec.spec.document import load_document
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import resolve
from planners.catalog import hardware, quantization
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.evidence.rows import Row
from planners.timing.machine import Machine

_MODELS = (
    (r"Llama-4-Maverick", "maverick"),
    (r"Llama-4-Scout", "scout"),
    (r"^Llama-4 \(48 layers, 8 kv heads\)$", "scout"),
    (r"(?i)llama-?3(\.[13])?[-_]70b", "llama-3.1-70b"),
    (r"(?i)llama-?3(\.1)?[-_]8b", "llama-3.1-8b"),
    (r"(?i)llama-?3\.1[-_]405B", "llama-3.1-405b"),
    (r"(?i)llama-?2-70b", "llama-2-70b"),
    (r"(?i)llama-?2-7b", "llama-2-7b"),
    (r"(?i)deepseek-?v2-lite", "deepseek-v2-lite"),
    (r"(?i)deepseek-?v2", "deepseek-v2"),
    (r"(?i)deepseek-?(r1|v3)", "deepseek-v3"),
    (r"(?i)mixtral-8x7b", "mixtral-8x7b"),
    (r"(?i)qwen3[-_]235b", "qwen3-235b-a22b"),
    (r"(?i)qwen3[-_]30b", "qwen3-30b-a3b"),
    (r"(?i)qwen3[-_]0\.6b", "qwen3-0.6b"),
    (r"(?i)gpt-oss-20b", "gpt-oss-20b"),
    (r"(?i)phi-4$", "phi-4"),
    (r"(?i)qwen3[-_]32b", "qwen3-32b"),
    (r"(?i)qwen3[-_]8b", "qwen3-8b"),
    (r"(?i)llama-?2-13b", "llama-2-13b"),
    (r"(?i)gemma-?2-27b", "gemma-2-27b"),
    (r"(?i)qwen2\.5-7b", "qwen2.5-7b"),
    (r"Mistral-Nemo", "mistral-nemo-2407"),
    (r"Yi-34B", "yi-34b"),
    (r"GPT-3 175B", "gpt-3-175b"),
    (r"(MT-NLG|Turing-NLG|^)\s?530B", "mt-nlg-530b"),
    (r"Megatron 1T", "megatron-1t"),
)
_HARDWARE = (
    (r"H100-96GB HBM2e", "h100-sxm"),
    (r"H100.NVL", "h100-nvl"),
    (r"H100.PCIe", "h100-pcie"),
    (r"H100", "h100-sxm"),
    (r"H200", "h200"),
    (r"GB200", "gb200"),
    (r"B200", "b200"),
    (r"A100-40", "a100-40gb"),
    (r"A100", "a100-80gb"),
    (r"MI300X", "mi300x"),
)
_ENGINES = (
    ("(?i)vllm", "vllm"),
    ("trtllm", "tensorrt-llm"),
    ("(?i)sglang", "sglang"),
    ("TensorRT-LLM", "tensorrt-llm"),
)
HBM2E_BANDWIDTH = 2.4e12
"""Bytes per second of the 500 W H100 with 96 GB of HBM2e that torchtitan's tables were measured on (their note)."""
HBM2E_CLOCK = 0.84
"""Its clock in matmuls over that of a 700 W H100, which nobody published: the cube root of (500 - 200) / (700 - 200).

A chip's power grows with the cube of its clock; 200 W are taken for memory and leakage.
"""

RANGE_RATIO_MEAN = 0.9
WAVES = 10.0
"""SemiAnalysis InferenceMAX (benchmarks/*.sh): lengths uniform in 0.8..1 of the nominal ones, 10 requests a client."""


@dataclass(frozen=True, slots=True)
class ServingCase:
    """A serving row: lengths are means, `concurrency` or `rate` (requests per second) drives one replica.

    The layout is that of one of `replicas` equal servers; a pipeline runs as many micro-batches as it has stages.
    """

    model: str
    hardware: str
    engine: str
    quantization: str
    kv_dtype: str
    layout: Layout
    prompt: float
    output: float
    concurrency: float | None
    rate: float | None
    waves: float | None
    replicas: int = 1


def matched(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    """The entry of the first pattern that is found in `text`."""
    return next((name for pattern, name in table if re.search(pattern, text)), None)


def model_of(row: Row) -> str | None:
    """The shipped spec that the row is about; None if there is none."""
    return matched(_MODELS, row.model)


def hardware_of(row: Row) -> str | None:
    """The catalogue name of the row's hardware."""
    return matched(_HARDWARE, row.hardware)


def engine_of(row: Row) -> str | None:
    """The engine that the row names in its notes or by its source."""
    return (
        matched(_ENGINES, row.notes.partition(";")[0]) or matched(_ENGINES, row.source) or matched(_ENGINES, row.notes)
    )


@lru_cache(maxsize=64)
def graph_of(name: str, overrides: tuple[str, ...] = ()) -> LayerGraph:
    """The layer graph of a shipped spec."""
    return build_graph(resolve(parse_spec(load_document(name, overrides))))


@lru_cache(maxsize=64)
def machine_of(name: str, hbm2e: bool = False) -> Machine:
    """A catalogue device in a full host; `hbm2e` is the H100 variant with slower memory and less power."""
    machine = hardware(name)
    if hbm2e:
        source = "pytorch/torchtitan benchmarks, H100 96 GB HBM2e"
        slower = Sourced[float](value=HBM2E_BANDWIDTH, source=source)
        peaks: dict[str, Sourced[float]] = {
            dtype: Sourced[float](value=HBM2E_CLOCK * machine.peak(dtype).value, source=source)
            for dtype in machine.native_dtypes
        }
        changes = {
            "memory": machine.memory.model_copy(update={"bandwidth": slower}),
            "peaks": machine.peaks.model_copy(update=peaks),
        }
        machine = machine.model_copy(update=changes)
    return Machine(machine, machine.gpus_per_host.value if machine.gpus_per_host else 1)


def serving_case(row: Row) -> ServingCase | str:
    """The deployment of a serving row, or why it cannot be replayed."""
    model, hardware, engine = model_of(row), hardware_of(row), engine_of(row)
    prompt, output = row.number("isl"), row.number("osl")
    if prompt is None or output is None:
        return "lengths are not published in the row"
    if model is None or hardware is None or engine is None:
        return "model, hardware or engine is not in the catalogue"
    if not row.precision_weights.strip():
        return "the number format of weights is not published in the row"
    benchmarked = "aiconfigurator" in row.source and "_instruct_" not in row.source
    mean = RANGE_RATIO_MEAN if benchmarked else 1.0
    layout, replicas = _serving_layout(row), _replicas(row)
    if reason := _not_planned(model, layout, _quantization(row)):
        return reason
    clients = row.noted(r"silicon_concurrency=(\d+)", row.number("batch_or_concurrency") or 0)
    rate = re.match(r"([0-9.]+) req/s", row.batch_or_concurrency)
    return ServingCase(
        model=model,
        hardware=hardware,
        engine=engine,
        quantization=_quantization(row),
        kv_dtype=_kv_dtype(row, model),
        layout=layout,
        prompt=prompt * mean,
        output=output * mean,
        concurrency=clients / (layout.ep * layout.pp * replicas) if clients else None,
        rate=float(rate[1]) / (layout.ep * layout.pp * replicas) if rate else None,
        waves=WAVES if benchmarked else None,
        replicas=replicas,
    )


def _not_planned(model: str, layout: Layout, scheme: str) -> str | None:
    """Reason why the planner refuses the row's format or layout; published rows may have any."""
    try:
        table = scheme_of(quantization(scheme))
        reason = illegal_reason(graph_of(model), layout)
        if reason is None:
            stages(graph_of(model), table, layout.tp, layout.ep, layout.pp)
    except UserError as error:
        return str(error.problems[0])
    return reason


def _serving_layout(row: Row) -> Layout:
    """The layout of one replica.

    The sample's table multiplies tp by ep where both span the same 8 GPUs: `tp=64, ep=8` is tensor parallelism over 8
    (the record's name says tp8_ep8), and `tp=1, ep=8` is attention data parallelism with experts over 8.
    """
    tp, ep = row.number("tp") or 1, row.number("ep") or 1
    if tp == 64 and ep == 8:
        return Layout(tp=8)
    return Layout(tp=tp, ep=ep if tp == 1 else 1, pp=row.number("pp") or 1)


def _replicas(row: Row) -> int:
    """Servers beside each other, where dp is that: with experts over ep it counts the ranks of attention instead."""
    gpus, tp, pp, dp = (row.number(name) or 1 for name in ("n_gpus", "tp", "pp", "dp"))
    return dp if (row.number("ep") or 1) == 1 and tp * pp * dp == gpus else 1


def _quantization(row: Row) -> str:
    written = row.precision_weights.lower()
    return "fp8" if written.startswith("fp8") else written.split()[0]


def _kv_dtype(row: Row, model: str) -> str:
    """The cache's format. By default, fp8 weights go with an fp8 cache (InferenceMAX's launch scripts).

    Llama 4 rows of TensorRT-LLM say fp8, yet the throughput of those marked for calibration needs twice the bytes per
    token: the engine kept bf16.
    """
    if model in ("maverick", "scout") and engine_of(row) == "tensorrt-llm":
        return "bf16"
    if row.precision_kv in ("bf16", "fp8"):
        return row.precision_kv
    return "fp8" if _quantization(row) == "fp8" else "bf16"
