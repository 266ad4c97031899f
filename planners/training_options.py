"""Training options of a request that say what a device keeps: optimizer, sharding, checkpointing, trainer."""

from typing import Annotated, Literal

from pydantic import Field

from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.options import Option, read_count

MOST_RANK = 1 << 14
"""A larger rank is a mistake: no tensor has so many dimensions."""

Optimizer = Annotated[
    Literal["adamw", "adamw-bf16", "sgd"],
    Option("For training: adamw, adamw-bf16 or sgd.", metavar="NAME", mode="train"),
]
ZeroStage = Annotated[
    int | None,
    Option(
        "For training: what data-parallel ranks shard.",
        metavar="0-3",
        parse=read_count,
        mode="train",
        default="the fastest of 1 to 3; 1 without --gpus",
    ),
    Field(ge=0, le=3),
]
ActivationCheckpointing = Annotated[
    Checkpointing | None,
    Option(
        "For training: activation checkpointing, none, selective (attention's core) or full.",
        metavar="KIND",
        mode="train",
        default="the fastest; full without --gpus",
    ),
]
SequenceParallel = Annotated[
    Literal["on", "off"],
    Option("For training: norms and residual streams divided among tp ranks, on or off.", "KIND", mode="train"),
]
GradientBytes = Annotated[
    int,
    Option("For training: bytes of a gradient, 2 or 4.", parse=read_count, mode="train", expects="2 or 4"),
    Field(ge=2, le=4, multiple_of=2),
]
TrainerName = Annotated[
    Literal["megatron", "torchtitan", "maxtext"] | None,
    Option(
        "For training: the trainer whose time and memory are planned: megatron, torchtitan or maxtext.",
        metavar="NAME",
        mode="train",
        default="l4spec's own memory, Megatron's time",
    ),
]
VirtualStages = Annotated[
    int,
    Option("For training: chunks of layers per pipeline stage (interleaved 1F1B).", parse=read_count, mode="train"),
    Field(ge=1, le=1024),
]
LoraRank = Annotated[
    int | None,
    Option(
        "For training: rank of low-rank adapters (LoRA), which alone are trained.",
        parse=read_count,
        mode="train",
        default="none: all weights are trained",
    ),
    Field(ge=1, le=MOST_RANK),
]
LoraTargets = Annotated[
    str,
    Option(
        "With --lora-rank: tensors with an adapter, as q_proj,v_proj, or linear, attention, ffn, experts.",
        metavar="NAMES",
        mode="train",
    ),
]
