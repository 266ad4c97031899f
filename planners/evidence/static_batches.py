"""Measured static batches on A100 and H100 beside their law: models that no factor was fitted on.

`static_batches.csv` holds the batches of those models; `benchmarks/static_batches.py` writes it and fits the factors.
Weights are 16 bits wide; every GPU is a rank of tensor parallelism, in llama.cpp a stage of layers.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from l4spec.sharding.layout import Layout
from planners.catalog import engine, hardware, quantization
from planners.counts.weights import scheme_of
from planners.device.memory import Setting, place
from planners.evidence.deployments import graph_of, machine_of
from planners.evidence.spread import percentile
from planners.search.layouts import max_batch
from planners.timing.layer_demand import Step
from planners.timing.static_batch import StaticBatch, static_batch_efficiency
from planners.timing.step import StepModel, step_model

BATCHES = Path(__file__).with_name("static_batches.csv")
FITTED = ("Llama-2-7b-hf", "Meta-Llama-3-8B", "Llama-2-70b-hf")
"""Models whose batches factors may be fitted on; all others judge."""
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Llama-2-7b-hf": ("llama-2-7b", ()),
    "Meta-Llama-3-8B": ("llama-3-8b", ()),
    "Mistral-7B-v0.1": ("llama-3-8b", ("text.vocab_size=32000",)),
    "Qwen2-7B": ("qwen2.5-7b", ()),
    "Mixtral-8x7B-v0.1": ("mixtral-8x7b", ()),
    "Llama-2-70b-hf": ("llama-2-70b", ()),
    "Meta-Llama-3-70B": ("llama-3-70b", ()),
    "Qwen2-72B": ("llama-3-70b", ("text.vocab_size=152064", "text.parts.ffn.intermediate_size=29568")),
}
"""A shipped spec of each model, or of one that differs in the fields named alone (biases of 72B's query, key and value
projections are left out)."""
_ENGINE_OF_CACHE = {"vllm": "vllm", "tensorrt-llm": "tensorrt-llm"}
"""Engine whose memory terms determine the number of sequences that fit; vLLM's for an engine without any."""
_PREFILL_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """One measured batch: prompts and outputs of `tokens` each, `seconds` until the last token."""

    engine: str
    hardware: str
    gpus: int
    model: str
    tokens: int
    batch: int
    seconds: float


def read_batches(path: Path = BATCHES) -> tuple[Batch, ...]:
    """The batches of a CSV file with the columns of `Batch`."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(_batch(row) for row in csv.DictReader(file))


def _batch(row: Mapping[str, str]) -> Batch:
    numbers = {name: int(row[name]) for name in ("gpus", "tokens", "batch")}
    names = {name: row[name] for name in ("engine", "hardware", "model")}
    return Batch(**names, **numbers, seconds=float(row["seconds"]))  # type: ignore[arg-type]


def layout_of(batch: Batch) -> Layout:
    """Layout of the model on the batch's GPUs."""
    return Layout(pp=batch.gpus) if batch.engine == "llama.cpp" else Layout(tp=batch.gpus)


def model_of(batch: Batch) -> StepModel:
    """Step model of the batch's model on its GPUs, without factors."""
    return step_model(
        graph_of(*MODELS[batch.model]),
        scheme_of(quantization("bf16")),
        layout_of(batch),
        machine=machine_of(batch.hardware),
        kv_dtype_bytes=2,
        efficiency=None,
    )


@lru_cache(maxsize=1024)
def _capacity(model: str, machine: str, layout: Layout, tokens: int, cache_of: str) -> int:
    setting = Setting(
        graph=graph_of(*MODELS[model]),
        scheme=scheme_of(quantization("bf16")),
        engine=engine(cache_of),
        hardware=hardware(machine),
        kv_dtype_bytes=2,
        memory_fraction=None,
        prefill_chunk=_PREFILL_CHUNK,
    )
    return max_batch(place(setting, layout), tokens)


def load_of(batch: Batch) -> StaticBatch:
    """The batch with the sequences that its cache holds."""
    cache_of = _ENGINE_OF_CACHE.get(batch.engine, "vllm")
    capacity = _capacity(batch.model, batch.hardware, layout_of(batch), 2 * batch.tokens, cache_of)
    return StaticBatch(batch.batch, batch.tokens, batch.tokens, capacity)


def is_possible(batch: Batch) -> bool:
    """True if the time is at least that of reading, for each token, the data of a step of one sequence."""
    model = model_of(batch)
    used = model.used(Step(decode=1, context=batch.tokens))
    return batch.seconds > batch.tokens * used.weight_read


def predicted_seconds(batch: Batch) -> float:
    """Seconds of a batch by the law."""
    laws = static_batch_efficiency(batch.engine)
    factors = None if laws is None else laws.find(batch.hardware)
    assert factors is not None, "batches are of engines and GPUs that have factors"
    return factors.seconds(model_of(batch), load_of(batch))


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """Batches of one engine and GPU, of models that were not fitted: how wrong the law is; `bias` is signed."""

    engine: str
    hardware: str
    models: tuple[str, ...]
    num_rows: int
    median: float
    p90: float
    bias: float


def summarise_batches(batches: Iterable[Batch]) -> tuple[BatchGroup, ...]:
    """Groups by engine and GPU, and one of all batches at the end."""
    judged = [(batch, predicted_seconds(batch) / batch.seconds - 1) for batch in batches]
    keys = sorted({(batch.engine, batch.hardware) for batch, _ in judged})
    groups = [_group(*key, [row for row in judged if (row[0].engine, row[0].hardware) == key]) for key in keys]
    return (*groups, _group("all", "all", judged))


def _group(engine_name: str, machine: str, judged: Sequence[tuple[Batch, float]]) -> BatchGroup:
    signed = sorted(error for _, error in judged)
    sizes = sorted(map(abs, signed))
    models = tuple(sorted({batch.model for batch, _ in judged}))
    return BatchGroup(
        engine_name, machine, models, len(judged), percentile(sizes, 50), percentile(sizes, 90), percentile(signed, 50)
    )
