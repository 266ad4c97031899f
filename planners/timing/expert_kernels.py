"""Routed experts in a step by the law of their kernels, in place of the engine's shares of bandwidth and peak.

The law was fitted on kernels of Llama 4's widths; on others it is an extrapolation. Its launch is left out here: an
engine's constant per routed block has it. Routing acts by the experts that the busiest rank reaches and by its rows.
"""

from l4spec.sharding.layout import Layout
from planners.timing.efficiency import MATMUL_REACH, ServingEfficiency
from planners.timing.grouped_matmul import ExpertWork, GroupedMatmul, GroupedMatmulLaws
from planners.timing.layer_demand import KindProfile, Routing, Step, covered_experts
from planners.timing.machine import Machine
from planners.timing.resources import matmul_seconds

_FORMATS: dict[str, tuple[str, ...]] = {"bf16": ("bf16",), "fp8": ("fp8", "fp8_block"), "fp4": ("nvfp4",)}
"""The kernels' formats for those of matmuls, the first that was measured."""


def kernel_of(laws: GroupedMatmulLaws, machine: Machine, kind: KindProfile) -> GroupedMatmul | None:
    """The kernel that computes a kind's experts; None for dense layers, and without a measurement of the setting."""
    dtype = _dtype(kind)
    if dtype is None:
        return None
    measured = (laws.find(machine.hardware.name, name) for name in _FORMATS.get(dtype, ()))
    return next((law for law in measured if law is not None), None)


def _dtype(kind: KindProfile) -> str | None:
    """The format in which most FLOPs of a routed layer run; None for a dense one."""
    return max(kind.flops_per_row, key=lambda rate: rate[1])[0] if kind.num_experts and kind.flops_per_row else None


def work_of_experts(kind: KindProfile, step: Step, layout: Layout, routing: Routing) -> ExpertWork:
    """Work of one layer's experts on the busiest rank; `step` must have tokens."""
    hidden, width = _sizes(kind, layout)
    activated = covered_experts(kind, step, layout.ep, routing)
    rows = step.tokens * kind.experts_per_token * routing.hottest(kind, layout.ep)
    return ExpertWork(
        rows=((activated, rows / activated),),
        expert_bytes=kind.expert_bytes,
        row_flops=6 * hidden * width,
        width=width,
        hidden=hidden,
        tokens=step.tokens * layout.ep,
        mean_rows=step.tokens * layout.ep * kind.experts_per_token / kind.num_experts,
    )


def _sizes(kind: KindProfile, layout: Layout) -> tuple[int, float]:
    """The residual stream's width, and the experts' on one device."""
    matrix = next(p for p in kind.group.declaration.parameters if p.is_per_expert and len(p.shape) == 3)
    width = next(dim.size for dim in matrix.dims if dim.axis == "expert_ffn")
    return next(dim.size for dim in matrix.dims[1:] if dim.axis != "expert_ffn"), width / layout.tp


def correction(
    law: GroupedMatmul,
    work: ExpertWork,
    machine: Machine,
    factors: ServingEfficiency,
) -> float:
    """Seconds that one layer's experts take by the law, launch left out, less those by the engine's own shares."""
    peak = machine.peak("fp4" if law.dtype == "nvfp4" else law.dtype.removesuffix("_block"))
    assert peak is not None, "ask `unknown` first"
    weight_read = work.activated * work.expert_bytes / machine.bandwidth
    tensor_cores = work.num_rows * work.row_flops / peak / MATMUL_REACH.get(law.dtype, 1.0)
    by_shares = matmul_seconds(weight_read, tensor_cores, factors)
    return law.seconds(work, machine.bandwidth, peak) - law.launch - by_shares
