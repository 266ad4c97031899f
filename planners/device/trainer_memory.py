"""Memory laws of trainers: what they keep of a step, where that differs from our own runtime.

Our runtime keeps every operand of every operation; `planners.device.activations` counts it, and ranks measure the same
bytes. Megatron-Core fuses SwiGLU, so that the activated gate is made again; it keeps 4 bytes an entry of logits (fused
cross entropy), and has two more things at the peak: 4 bytes for each entry of the widest layer's gate and up while
their gradients are made, and the head's gradient in bf16 beside the accumulated one. torchtitan compiles blocks and
loss: SwiGLU is fused too, logits and their gradient take 8 bytes an entry (14 where the loss runs in eager mode, as
until 2024). Its FSDP2 shards fp32 weights beside two fp32 moments, and casts what it gathers to bf16; its selective
checkpointing keeps the results of attention and of every second matmul.

`l4spec accuracy` has the published peaks. Left out: allocator caches and fragmentation (peaks are of allocated memory),
buffers of communication, whatever a trainer's options change. Sources: Megatron-LM (arXiv:2205.05198), torchtitan
(arXiv:2410.06511; torchtitan/models/llama/parallelize_llama.py, December 2024).
"""

from dataclasses import dataclass, field

from l4spec.graph.adapters import Lora
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import Checkpointing
from planners.device.activations import KeptOfLayer, kept_per_token, saved_per_token

_BF16, _FP32 = 2, 4
_FUSED = frozenset({"activated_gate"})
_GATE_AND_UP = frozenset({"gate", "up"})
_EVERY_SECOND = frozenset({"query", "value", "gate", "attended", "log_sum_exp"})
"""Saved results of a block's first, third and fifth matmul (of query, key, value, output, gate, up, down), and of
attention."""


@dataclass(frozen=True, slots=True)
class TrainerMemory:
    """Differences of a trainer's memory from our own runtime's.

    `weight_bytes` of a stored parameter and `optimizer_bytes` of its state, by optimizer, where they differ; `unsaved`
    the saved buffers that fused kernels make again, `logit_bytes` of an entry of logits at the peak (None: as the head
    declares, and a gradient), `workspace` and `head_gradient` whether the peak has those terms, `every_second` whether
    selective checkpointing keeps every second matmul.
    """

    weight_bytes: dict[str, int] = field(default_factory=dict)
    optimizer_bytes: dict[str, int] = field(default_factory=dict)
    unsaved: frozenset[str] = frozenset()
    logit_bytes: int | None = None
    workspace: bool = False
    head_gradient: bool = False
    every_second: bool = False

    def layers(
        self, graph: LayerGraph, tp: int, ep: int, checkpointing: Checkpointing, *, split: bool, lora: Lora | None
    ) -> tuple[KeptOfLayer, ...]:
        """Bytes of one token that each layer's block keeps, as `kept_per_token`."""
        kept = kept_per_token(graph, tp, ep, checkpointing, split=split, unsaved=self.unsaved, lora=lora)
        if checkpointing != "selective" or not self.every_second:
            return kept
        streams = 2 * graph.stream_width * _BF16  # the block's input, and the result of the last matmul
        named = saved_per_token(graph, tp, ep, _EVERY_SECOND)
        return tuple(
            KeptOfLayer(streams + own, max(0, layer.kept + layer.again - streams - own))
            for layer, own in zip(kept, named, strict=True)
        )

    def loss_bytes(self, row_bytes: int, rows: int) -> int:
        """Bytes of a token's logits at the peak; `row_bytes` of one row in fp32, `rows` of a token."""
        if not rows:
            return 0
        return (rows + 1) * row_bytes if self.logit_bytes is None else rows * row_bytes * self.logit_bytes // _FP32

    def workspace_bytes(self, graph: LayerGraph, tp: int, ep: int, layers: tuple[int, ...]) -> int:
        """Bytes of one token of the widest gate and up of these layers, 4 an entry."""
        if not self.workspace:
            return 0
        widths = saved_per_token(graph, tp, ep, _GATE_AND_UP)
        return _FP32 // _BF16 * max((widths[layer] for layer in layers), default=0)


OWN = TrainerMemory()
_OF_TRAINERS = {
    "megatron": TrainerMemory(unsaved=_FUSED, logit_bytes=4, workspace=True, head_gradient=True),
    "torchtitan": TrainerMemory(
        weight_bytes={"adamw": _FP32, "sgd": _FP32},  # which are the master copy
        optimizer_bytes={"adamw": 8, "sgd": 0},
        unsaved=_FUSED,
        logit_bytes=8,
        every_second=True,
    ),
}


def trainer_memory(name: str | None) -> TrainerMemory:
    """The law of a trainer; our own runtime's without one, and for a trainer whose memory nobody published."""
    return _OF_TRAINERS.get(name or "", OWN)


def is_known(name: str | None) -> bool:
    """True if memory is planned as this trainer uses it."""
    return name is None or name in _OF_TRAINERS
