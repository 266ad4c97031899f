"""Every published row as a prediction of this planner: an estimate, a bound that nothing can beat, or a reason."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from l4spec.layers.declaration import Work
from planners.catalog import engine, hardware, quantization
from planners.counts.flops import model_flops
from planners.counts.kv_cache import cache_dtype_bytes
from planners.counts.weights import scheme_of
from planners.device.memory import Setting, place
from planners.evidence.deployments import ServingCase, graph_of, machine_of, model_of, serving_case
from planners.evidence.fit_replay import predict_fit
from planners.evidence.memory_replay import predict_memory
from planners.evidence.rows import YES_OR_NO, Row
from planners.evidence.training_memory import METRICS as OF_TRAINING
from planners.evidence.training_memory import predict_training_memory
from planners.evidence.training_replay import predict_training
from planners.request import DEFAULT_PREFILL_CHUNK
from planners.search.layouts import max_batch
from planners.timing.closed_loop import Load, Served, most_throughput, serve
from planners.timing.efficiency import ServingEfficiency, serving_efficiency
from planners.timing.grouped_matmul import grouped_matmul_laws
from planners.timing.layer_demand import Step
from planners.timing.open_loop import open_loop
from planners.timing.step import StepModel

THROUGHPUT = ("output_throughput_total", "output_throughput_per_gpu")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row beside the planner's number, in the row's unit.

    `bound` is the limit of the published figure: least time, or most throughput. `reason` tells why a row was not
    replayed. `error` is relative: predicted / published - 1.
    """

    row: Row
    predicted: float | None = None
    bound: float | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Relative error; None without a prediction. Of what fits or does not: 0 if that is predicted, else 1."""
        if self.predicted is None:
            return None
        if self.row.unit == YES_OR_NO:
            return abs(self.predicted - self.row.published)
        return self.predicted / self.row.published - 1 if self.row.published else None


def replay(rows: Iterable[Row], *, expert_kernels: bool = False) -> tuple[Prediction, ...]:
    """A prediction for every row, in their order; `expert_kernels` prices routed experts by measured kernels."""
    return tuple(predict(row, expert_kernels=expert_kernels) for row in rows)


def predict(row: Row, *, expert_kernels: bool = False) -> Prediction:
    """The planner's prediction of a row."""
    if row.family in ("SRV", "THR"):
        return _predict_serving(row, expert_kernels)
    if row.family == "TRN":
        predicted = predict_training(row)
        return Prediction(row, reason=predicted) if isinstance(predicted, str) else Prediction(row, *predicted)
    if row.family in ("MEM", "KV", "FIT"):
        size = _predict_size(row)
        return Prediction(row, reason=size) if isinstance(size, str) else Prediction(row, size)
    if row.family == "FLOP":
        return _predict_flops(row)
    return Prediction(row, reason="kernels are not planned one by one")


def _predict_size(row: Row) -> float | str:
    if row.family == "FIT":
        return predict_fit(row)
    return predict_training_memory(row) if row.metric in OF_TRAINING else predict_memory(row)


def _predict_flops(row: Row) -> Prediction:
    model, length = model_of(row), row.number("isl")
    if model is None or length is None:
        return Prediction(row, reason="model or length is not in the catalogue")
    flops = 3 * model_flops(graph_of(model), Work(1, length, phase="train"))
    return Prediction(row, predicted=float(flops))


def _predict_serving(row: Row, expert_kernels: bool) -> Prediction:
    case = serving_case(row)
    if isinstance(case, str):
        return Prediction(row, reason=case)
    model = step_model(case, expert_kernels=expert_kernels)
    if model.unknown or model.efficiency is None:
        return Prediction(row, reason=model.unknown or f"no factors are fitted for {case.engine}")
    driven = case.concurrency is not None or case.rate is not None
    if row.metric in THROUGHPUT:
        return _predict_throughput(row, case, model, driven=driven)
    if not driven:
        return Prediction(row, reason="neither clients nor a request rate are published in the row")
    served = served_by(case, model)
    seconds = {
        "tpot_mean": served.tpot,
        "itl_mean": served.tpot,
        "ttft_mean": served.ttft,
        "e2e_mean": served.ttft + (case.output - 1) * served.tpot,
    }
    if row.metric not in seconds:
        return Prediction(row, reason=f"{row.metric} is not predicted")
    return Prediction(row, 1e3 * seconds[row.metric], _bound_ms(row, case, model))


def _bound_ms(row: Row, case: ServingCase, model: StepModel) -> float | None:
    """A token takes at least a decode step of its sequence alone; a first token at least its prompt's prefill."""
    if row.metric == "ttft_mean":
        return 1e3 * model.time(Step(prompt_tokens=case.prompt, prompt_length=case.prompt)).bound_seconds
    alone = 1e3 * model.time(Step(decode=1, context=case.prompt + case.output / 2 + 0.5)).bound_seconds
    return alone * (case.output - 1) if row.metric == "e2e_mean" else alone


def served_by(case: ServingCase, model: StepModel) -> Served:
    """The case's closed or open loop."""
    capacity = float(capacity_of(case))
    if case.rate is not None:
        return open_loop(model, Load(case.prompt, case.output, 1.0, capacity), case.rate)
    assert case.concurrency is not None
    return serve(model, Load(case.prompt, case.output, case.concurrency, capacity, case.waves))


def _predict_throughput(row: Row, case: ServingCase, model: StepModel, *, driven: bool) -> Prediction:
    """Output tokens per second: of the row's clients or rate, or the most that an offline benchmark finds."""
    if capacity_of(case) < 1:
        return Prediction(row, reason="no sequence of this length fits, by the planner's memory terms")
    per_gpu = tokens_per_gpu(case, served_by(case, model) if driven else most_served(case, model))
    return Prediction(row, per_gpu if row.unit.endswith("/GPU") else per_gpu * (row.number("n_gpus") or 1))


def most_served(case: ServingCase, model: StepModel) -> Served:
    """The best that an offline benchmark of the case finds."""
    capacity = float(capacity_of(case))
    return most_throughput(model, Load(case.prompt, case.output, capacity, capacity, server=False))


def tokens_per_gpu(case: ServingCase, served: Served) -> float:
    """Output tokens per second and GPU: each rank of attention serves its own, each stage another micro-batch."""
    batches = case.layout.ep * case.layout.pp
    return served.requests_per_second * case.output * batches / case.layout.num_devices


def step_model(
    case: ServingCase, efficiency: ServingEfficiency | None = None, *, expert_kernels: bool = False
) -> StepModel:
    """The case's model on its machine, with the shipped factors of its engine or those given."""
    return StepModel(
        graph=graph_of(case.model),
        scheme=scheme_of(quantization(case.quantization)),
        layout=case.layout,
        machine=machine_of(case.hardware),
        kv_dtype_bytes=cache_dtype_bytes(case.kv_dtype),
        efficiency=efficiency or serving_efficiency(case.engine),
        laws=grouped_matmul_laws(case.engine) if expert_kernels else None,
    )


@lru_cache(maxsize=4096)
def capacity_of(case: ServingCase) -> int:
    """Sequences of the mean length that one rank's cache holds a micro-batch, by the planner's memory terms."""
    setting = Setting(
        graph=graph_of(case.model),
        scheme=scheme_of(quantization(case.quantization)),
        engine=engine(case.engine),
        hardware=hardware(case.hardware),
        kv_dtype_bytes=cache_dtype_bytes(case.kv_dtype),
        memory_fraction=None,
        prefill_chunk=DEFAULT_PREFILL_CHUNK,
    )
    kept = case.prompt + (case.output if case.engine == "tensorrt-llm" else case.output / 2)
    layout = case.layout
    return max_batch(place(setting, layout), round(kept)) // (layout.ep * layout.pp)
