"""Costs of speculative decoding: the draft's own steps, weights and cache."""

from collections.abc import Callable
from dataclasses import dataclass

from l4spec.graph.build import mtp_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.scenario.deployment import ModelDeployment
from planners.counts.kv_cache import growth_per_token, model_rows
from planners.counts.weights import weigh
from planners.device.memory import Placement, Setting, module_on
from planners.device.stages import PipelineStage
from planners.search.layouts import why_not
from planners.simulate.times.interface import StepBatch
from planners.timing.layer_demand import Step
from planners.timing.step import StepModel, step_model


def mtp_seconds(model: StepModel, layers: int, drafted: int) -> Callable[[StepBatch], float]:
    """Seconds in which a further layer of a model that declares no module proposes `drafted` tokens, one by one.

    Each takes a block's share of a decode step, and the head. The layer's own projection of embedding and hidden state
    is left out.
    """

    def seconds(batch: StepBatch) -> float:
        step = Step(decode=batch.decode, context=batch.context / batch.decode)
        head = model.head_seconds(step)
        return drafted * (head + (model.seconds(step, server=False) - head) / layers)

    return seconds


def draft_model(target: StepModel, graph: LayerGraph, setting: Setting) -> StepModel:
    """The step model of a draft on the target's GPUs: at its tensor-parallel degree, or on one device."""
    return step_model(
        graph,
        setting.scheme,
        _draft_layout(graph, setting, target.layout.tp),
        machine=target.machine,
        kv_dtype_bytes=target.kv_dtype_bytes,
        efficiency=target.efficiency,
    )


def _draft_layout(graph: LayerGraph, setting: Setting, tp: int) -> Layout:
    """The target's tensor-parallel degree, or one device where it does not divide the draft."""
    return Layout(tp=tp if why_not(setting._replace(graph=graph), Layout(tp=tp), 1) is None else 1)


def draft_seconds(draft: StepModel, drafted: int) -> Callable[[StepBatch], float]:
    """Seconds in which a smaller model, or a declared module, proposes `drafted` tokens, one after the other."""

    def seconds(batch: StepBatch) -> float:
        return drafted * draft.seconds(Step(decode=batch.decode, context=batch.context / batch.decode), server=False)

    return seconds


def module_bytes(graph: LayerGraph, setting: Setting, layout: Layout) -> tuple[int, int]:
    """Bytes of the declared module's weights, cut as the model's, and of its cache per token on one device."""
    module = module_on(graph, setting.scheme, layout, setting.kv_dtype_bytes)
    assert module is not None, "asked for with a module only"
    weights, rows = module
    return weights, growth_per_token(rows)


def draft_bytes(graph: LayerGraph, setting: Setting, layout: Layout) -> tuple[int, int]:
    """Bytes of a draft's weights and of its cache per token on one device."""
    weights, own = weigh(graph, setting.scheme).bytes, _draft_layout(graph, setting, layout.tp)
    rows = model_rows(graph, own, setting.kv_dtype_bytes)
    return weights // own.tp, growth_per_token(rows)


@dataclass(frozen=True, slots=True)
class Besides:
    """Bytes on one device that a model's own plan does not count: of `others`, of its draft, and per token of a cache.

    A module of multi-token prediction (`is_module`) is on the last pipeline stage alone. The model's cache may take
    `share` of the remaining memory.
    """

    others: int
    draft: int = 0
    draft_per_token: int = 0
    share: float = 1.0
    is_module: bool = False

    def of_draft(self, stage: PipelineStage) -> tuple[int, int]:
        """Bytes of the draft on a device of a stage, and per token of its cache."""
        return (self.draft, self.draft_per_token) if stage.last or not self.is_module else (0, 0)


def besides(
    graph: LayerGraph,
    model: ModelDeployment,
    placement: Placement,
    draft: LayerGraph | None,
    others: int = 0,
    share: float = 1.0,
) -> Besides:
    """Memory on a model's devices that its own plan does not count: its draft, and `others` bytes of other models."""
    if draft is not None:
        return Besides(others, *draft_bytes(draft, placement.setting, placement.layout), share)
    if model.speculation is None:
        return Besides(others, share=share)
    if mtp_graph(graph) is not None:
        return Besides(others, *module_bytes(graph, placement.setting, placement.layout), share, is_module=True)
    stage, rows = placement.stages[0]  # a further layer like those of the first stage
    layers = max(len(stage.layers), 1)
    per_token = sum(row.count * row.bytes_per_token for row in rows)
    return Besides(others, stage.weights.total_bytes // layers, per_token // layers, share, is_module=True)
