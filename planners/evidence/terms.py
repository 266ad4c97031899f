"""Every factor that turns bounds into estimates: unit, meaning, where it is expected and why. One table for all.

A fit starts at `expected`; `spread` (in log units: 0.1 is about 10 %) is one standard deviation of what is plausible
before any row is seen. A factor that rows do not determine keeps that value, which its file notes.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

Unit = Literal["share", "factor", "seconds"]
When = Literal["always", "dense", "routed", "ranks", "server"]


@dataclass(frozen=True, slots=True)
class Term:
    """One factor. `share` is of a published peak, `factor` multiplies a time, `seconds` is a constant.

    `most` is the largest value that measurements allow, `source` that of `expected`. `when` selects the deployments in
    which it acts: of dense or routed models, of several ranks, or only in the limits of a whole server, which the
    requests of one run do not show.
    """

    name: str
    unit: Unit
    expected: float
    spread: float
    meaning: str
    source: str
    most: float = inf
    when: When = "always"


MEASURED_MATMUL = 0.803
"""The largest share of a dense peak that a search over matmul shapes found: bf16 on H100, row KER-0011."""
MEASURED_FP8_MATMUL = 0.763
"""The same for fp8: B200, row KER-0015 (H100: 0.709, row KER-0013)."""

ALL_REDUCES = "aiconfigurator-core 0.12.0, custom_allreduce_perf of H100 and H200 in CUDA graphs, 2 to 8 ranks"
"""vLLM 0.14 to 0.24 takes 4.4 to 5.8 us, SGLang 2.6 to 5.7, TensorRT-LLM 2.8 to 4.2. It binds `collective`: rows of a
few degrees of tp cannot tell a dearer call from a dearer block."""

SERVING: tuple[Term, ...] = (
    Term("memory", "share", 0.85, 0.08, "of memory bandwidth, reading weights", "streaming kernels: 0.8 to 0.92", 1.0),
    Term("cache", "share", 0.60, 0.40, "of memory bandwidth, reading the cache", "paged attention of few heads", 1.0),
    Term("compute", "share", 0.55, 0.25, "of the peak, matmuls", "KER-0011, KER-0013", MEASURED_FP8_MATMUL),
    Term("attention", "share", 0.45, 0.30, "of the bf16 peak, attention", "FlashAttention-2 and 3 on H100", 1.0),
    Term(
        "links",
        "share",
        0.75,
        0.05,
        "of link bandwidth",
        "bus bandwidth of large all-reduces (nccl-tests)",
        1.0,
        when="ranks",
    ),
    Term("layer", "seconds", 20e-6, 0.7, "of a block", "a dozen kernel launches", when="dense"),
    Term(
        "moe_layer",
        "seconds",
        78e-6,
        0.5,
        "of a block that routes",
        "between vLLM's dense, SGLang's DeepSeek block",
        when="routed",
    ),
    Term("wide_layer", "seconds", 10e-6, 1.5, "more of a block when many sequences decode", "open"),
    Term(
        "collective", "seconds", 4.2e-6, 0.3, "of a call", f"an all-reduce of 16 to 32 KB: {ALL_REDUCES}", when="ranks"
    ),
    Term("host_step", "seconds", 1e-3, 1.5, "of the host between steps", "open", when="server"),
    Term("host_sequence", "seconds", 50e-6, 1.5, "of the host between steps, a sequence", "open", when="server"),
    Term("request", "seconds", 30e-3, 1.0, "of a request before its prefill, its HTTP stack included", "open"),
    Term(
        "moe_request",
        "seconds",
        0.1,
        1.0,
        "more of a request of a routed model",
        "DeepSeek under SGLang and TensorRT-LLM waits 0.1 to 0.3 s longer than Llama 70B",
        when="routed",
    ),
)
"""The factors of `planners.timing.efficiency.ServingEfficiency`."""

MATMULS: dict[str, dict[str, float]] = {
    "hopper": {"bf16": 0.72, "fp8": 0.64},
    "blackwell": {"bf16": 0.65, "fp8": 0.6, "mxfp8": 0.55, "fp4": 0.5},
    "ampere": {"bf16": 0.65},
}
"""Expected shares of the dense peak in training, by family and number format, beside the traffic of operands.

Hopper's are nine tenths of the best measured matmuls; the others' less, since fewer kernels were measured.
"""
TRAINERS = ("torchtitan", "maxtext")
"""Trainers with a factor of their own; Megatron's is 1."""
ATTENTION_OF = ("torchtitan",)
"""Trainers whose attention has a share of its own: torchtitan's is PyTorch's FlashAttention-2."""

TRAINING: tuple[Term, ...] = (
    *(
        Term(f"{family}.{dtype}", "share", share, 0.12, "of the peak, matmuls", "KER-0011 to KER-0015", MEASURED_MATMUL)
        for family, shares in MATMULS.items()
        for dtype, share in shares.items()
    ),
    Term("operands", "factor", 0.6, 0.5, "of the traffic of matmuls, on top of their FLOPs", "it overlaps in part"),
    Term("attention", "share", 0.45, 0.15, "of the bf16 peak, attention", "FlashAttention-2 and 3 on H100", 1.0),
    Term(
        "torchtitan.attention", "share", 0.35, 0.2, "of the bf16 peak, torchtitan's attention", "FlashAttention-2", 1.0
    ),
    Term("moved", "factor", 1.5, 0.2, "of declared element-wise traffic, dense layers", "copies of unfused kernels"),
    Term("blackwell.moved", "factor", 1.0, 0.3, "of both element-wise factors, on top", "shares of a faster memory"),
    Term("moe_moved", "factor", 3.0, 0.7, "the same of routed layers", "permutation and padding of rows"),
    Term("tp", "share", 0.35, 0.3, "of its communication that computation does not hide", "Megatron-LM's overlap", 1.0),
    Term("ep", "share", 0.6, 0.3, "the same of all-to-alls", "open", 1.0),
    Term("cp", "share", 0.3, 0.7, "the same of rings", "open", 1.0),
    Term("dp", "share", 0.3, 0.7, "the same of gradients and weights", "they overlap with the backward pass", 1.0),
    Term("optimizer", "factor", 1.3, 0.3, "of the optimizer's traffic", "norms and casts on top"),
    Term("torchtitan", "factor", 1.15, 0.15, "of Megatron's matmuls and element-wise work", "open"),
    Term("maxtext", "factor", 1.1, 0.15, "of Megatron's matmuls and element-wise work", "open"),
)
"""The factors of `planners.timing.efficiency.TrainingEfficiency`, of all hardware families together."""
