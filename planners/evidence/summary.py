"""Errors of predictions against published figures, by family, source and split."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from planners.evidence.fit_replay import METRICS as OF_FITS
from planners.evidence.replay import THROUGHPUT, Prediction
from planners.evidence.spread import errors_of
from planners.evidence.training_memory import METRICS as OF_TRAINING

_METRICS = {
    "tpot_mean": "time per output token",
    "itl_mean": "time per output token",
    "ttft_mean": "time to first token",
    "e2e_mean": "end to end",
    "output_throughput_total": "maximum throughput",
    "output_throughput_per_gpu": "maximum throughput",
    "step_time": "training step",
    "step_time_ms": "training step",
    "tokens_per_s_per_gpu": "training step",
    "tokens_per_s_total": "training step",
    "tokens_per_s_total_or_per_gpu": "training step",
    "model_tflops_per_gpu": "training TFLOP/s",
    "mfu": "training TFLOP/s",
    "weights_per_gpu": "weights",
    "activation_peak_per_gpu": "activations of an engine",
    "non_torch_per_gpu": "memory outside torch",
    "kv_pool_per_gpu": "cache pool",
    "kv_cache_size_tokens": "cache pool",
    "max_concurrency_at_8192": "sequences at a time",
    "num_gpu_blocks": "cache pool",
    "kv_needed_per_gpu": "cache of a sequence",
    "non_kv_total_per_gpu": "all but the cache pool",
    "total_kv_blocks": "cache pool",
    **dict.fromkeys(OF_TRAINING, "training memory"),
    **dict.fromkeys(OF_FITS, "fit"),
    "model_flops_per_sample_fwd_bwd": "model FLOPs",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one quantity, model, document and split: how many were replayed and how wrong the predictions were.

    `bias` is the median signed error; without replayed rows the errors are None.
    """

    quantity: str
    model: str
    document: str
    split: str
    num_rows: int
    num_replayed: int
    median: float | None
    p90: float | None
    bias: float | None


def quantity_of(prediction: Prediction) -> str:
    """Name of the quantity that a row measures; its metric if it has none."""
    row = prediction.row
    if row.metric in THROUGHPUT and row.family == "SRV":
        return "throughput"
    return _METRICS.get(row.metric, row.metric)


def summarise(predictions: Iterable[Prediction], *, by_model: bool = True) -> tuple[Group, ...]:
    """Groups in order of quantity, split, document and model."""
    grouped: dict[tuple[str, str, str, str], list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        row = prediction.row
        model = row.model if by_model else "all"
        grouped[quantity_of(prediction), row.split, row.document if by_model else "all", model].append(prediction)
    return tuple(_group(key, group) for key, group in sorted(grouped.items()))


def _group(key: tuple[str, str, str, str], members: list[Prediction]) -> Group:
    quantity, split, document, model = key
    errors = sorted(prediction.error for prediction in members if prediction.error is not None)
    if not errors:
        return Group(quantity, model, document, split, len(members), 0, None, None, None)
    spread = errors_of(quantity, [(error, None) for error in errors])
    bias = errors_of(quantity, [(1 + error, None) for error in errors]).median - 1
    return Group(quantity, model, document, split, len(members), len(errors), spread.median, spread.p90, bias)
