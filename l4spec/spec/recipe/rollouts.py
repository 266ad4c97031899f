"""Rollouts of an RL phase: how answers are generated, in turns with training or asynchronously."""

from typing import Annotated, Literal

from pydantic import Field

from l4spec.layers.base import Size, Spec
from l4spec.spec.quantities import Tokens


class RolloutSpec(Spec):
    """Generation beside the learner. The planner simulates it; a run with actors does it."""

    mode: Literal["synchronous", "asynchronous"] = "asynchronous"
    """`synchronous`: all GPUs generate, then all train."""
    staleness: Annotated[float, Field(ge=0, le=64)] = 1.0
    """Batches that may be started beyond the one in training; 0: no training on answers of old weights."""
    partial: bool = True
    """Continue unfinished answers with new weights (partial rollouts); if false, weights wait for them to finish."""
    in_order: bool = False
    """Train on answers in the order in which they were started, so that none is staler than `staleness` and long ones
    are as likely as short ones; if false, in the order in which they end."""
    actors: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that generate in an asynchronous run."""
    generation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the GPUs that generate; null: the plan takes the fastest of eighths."""
    gpus_per_replica: Annotated[int, Field(ge=1, le=4096)] | None = None
    """GPUs of a replica that generates; null: the smallest power of two that holds model and answers."""
    slots: Annotated[int, Field(ge=1, le=65536)] = 256
    """Most answers that a replica generates concurrently."""
    quantization: str = "bf16"
    """Weights of replicas in the plan: a scheme of `l4spec ls quantization`."""
    prompt: Tokens = 512
    """Tokens of a prompt in the plan."""
    mean_answer: Tokens | None = None
    """Mean tokens of an answer in the plan; null: half of the most."""
    spread: Annotated[float, Field(ge=0, le=4)] = 1.0
    """Standard deviation of the logarithm of lengths in the plan, before they are cut at the most."""
    chunks: Size = 1
    """Equal parts of a batch, each of which the learner takes as soon as its answers are complete."""
