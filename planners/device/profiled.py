"""Activations as an engine's profiling run finds them: the law of its catalogue entry on a graph and a layout."""

from typing import NamedTuple

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import layout_for, shard_size
from planners.catalog import Hardware
from planners.catalog.engines import ProfilingRun
from planners.device.activations import ACTIVATION_BYTES, ActivationRates
from planners.device.stages import PipelineStage

ROWS_WITHOUT_HARDWARE = 256
"""Default number of sampled rows, without an option or a scheduler's default."""


class ProfiledActivations(NamedTuple):
    """Bytes on a device of the last stage, which samples, and of the stages before it."""

    last: int
    first: int
    arithmetic: str

    def of(self, stage: PipelineStage) -> int:
        """Bytes on a device of this stage."""
        return self.last if stage.last else self.first


def default_rows(engine: str, hardware: Hardware | None) -> int:
    """Sequences that an engine takes at a time by default on this hardware (its scheduler's `max_num_seqs`)."""
    from planners.catalog.schedulers import scheduler_of

    try:
        defaults = scheduler_of(engine)
    except UserError:
        return ROWS_WITHOUT_HARDWARE
    small = defaults.small_devices
    if small is not None and hardware is not None and hardware.usable.num_bytes < small.below.value:
        return small.max_num_seqs.value
    return defaults.max_num_seqs.value


def profiled_activations(
    graph: LayerGraph, layout: Layout, run: ProfilingRun, rates: ActivationRates, *, chunk: int, rows: int
) -> ProfiledActivations:
    """The law: constant + max(forward pass of `chunk` tokens, sampler of min(rows, chunk) rows + experts' workspace).

    Every tensor-parallel rank samples over the whole vocabulary. Left out: the vision tower's own moment.
    """
    vocabulary, rows = graph.model.text.head.vocab_size, min(rows, chunk)
    workspace = chunk * workspace_per_token(graph, layout)
    forward, sampler = chunk * rates.per_token, run.sampler_bytes(rows, vocabulary, workspace)
    constant = run.constant.value
    text = (
        f"{constant:,} B + max({chunk:,} tokens x {rates.per_token:,} B, {rows:,} rows x {vocabulary:,} entries x "
        f"{run.bytes_per_logit.value} B + {workspace:,} B of experts' workspace)"
    )
    return ProfiledActivations(last=constant + max(forward, sampler), first=constant + forward, arithmetic=text)


def workspace_per_token(graph: LayerGraph, layout: Layout) -> int:
    """Bytes a token that vLLM's fused experts keep: of each routed copy the wider of gate and up together and the
    output, and the activated width (vllm/model_executor/layers/fused_moe, workspace13 and workspace2)."""
    widest = 0
    for group in graph.groups:
        if group.first.scope == "text" and group.declaration.routed is not None:
            cut = layout_for(group.first, Layout(tp=layout.tp, ep=layout.ep))
            matrices = [p for p in group.declaration.parameters if p.role == "expert" and len(p.dims) == 3]
            if matrices:
                *inner, last = [shard_size(matrix.dims[1], cut) for matrix in matrices]
                elements = max(sum(inner), last) + shard_size(matrices[-1].dims[2], cut)
                widest = max(widest, group.declaration.routed.num_per_token * elements * ACTIVATION_BYTES)
    return widest
