"""One phase of training: tokens, data, loss, optimizer, schedule and layout."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import AsTuple, PositiveFloat, Size, Spec
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.spec.header import located
from l4spec.spec.quantities import Share, Tokens, TrainTokens
from l4spec.spec.recipe.data import Key, Weight
from l4spec.spec.recipe.mtp import MTPPhaseSpec
from l4spec.spec.recipe.precision import Bf16Spec, Fp8Spec, Precision
from l4spec.spec.recipe.rollouts import RolloutSpec

Rate = Annotated[float, Field(ge=0, le=10)]
Selector = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^(\*|[A-Za-z0-9_]+)(\.(\*|[A-Za-z0-9_]+))*$")]
Degree = Annotated[int, Field(ge=1, le=1 << 20)]


class OptimizerSpec(Spec):
    """AdamW (arXiv:1711.05101), or SGD."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """Optimizer; `sgd` has no state."""
    learning_rate: Rate
    """Peak learning rate."""
    betas: Annotated[tuple[Share, Share], AsTuple] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled decay of matrices; norms and biases have none."""
    clip: PositiveFloat | None = 1.0
    """Global norm to which gradients are clipped; null: no clipping."""


class ScheduleSpec(Spec):
    """The learning rate over a phase, as a share of its peak."""

    kind: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay after the warm-up."""
    warmup: Share = 0.02
    """Share of the phase in which it rises from 0."""
    final: Share = 0.1
    """Final learning rate, as a share of the peak."""


class LayoutSpec(Spec):
    """Parallel degrees; those left out are chosen by the plan, and 1 in a run."""

    tp: Degree | None = None
    """Tensor-parallel degree."""
    ep: Degree | None = None
    """Expert-parallel degree."""
    pp: Degree | None = None
    """Pipeline stages."""
    dp: Degree | None = None
    """Data-parallel degree."""
    cp: Degree = 1
    """Context-parallel degree: ranks that divide each sequence. Planned, not run."""
    virtual_stages: Annotated[int, Field(ge=1, le=1024)] = 1
    """Chunks of layers of each pipeline stage (interleaved 1F1B, arXiv:2104.04473). Planned, not run."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """ZeRO stage (arXiv:1910.02054)."""
    checkpointing: Checkpointing = "full"
    """Activation checkpointing: recompute nothing, the core of attention, or whole blocks."""
    sequence_parallel: bool = False
    """Sequence parallelism (arXiv:2205.05198): tp ranks hold a share of norms and residual streams each."""


class PhaseBase(Spec):
    """Fields that every phase has."""

    name: Key
    """Name of the phase."""
    tokens: TrainTokens
    """Tokens that the phase trains on; of RL, tokens that are generated."""
    context: Tokens
    """Tokens of a sequence."""
    batch: Size
    """Sequences of a step, over all ranks."""
    micro_batch: Size = 1
    """Sequences of a rank that run together; a run without pipeline takes all at once."""
    optimizer: OptimizerSpec
    """Optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning rate over the phase."""
    precision: Precision = Bf16Spec()
    """Format of matmuls, in plan and run: `bf16`, `fp8`, or `{kind: fp8}` with settings. A run computes everything else
    in `train --dtype`."""
    layout: LayoutSpec = LayoutSpec()
    """Parallel degrees of the plan."""
    trainable: Annotated[tuple[Selector, ...], AsTuple, Field(max_length=64)] = ()
    """Tensors that the phase trains, by beginnings of their names, as `vision` or `text.layers.*.attention`; the others
    are frozen. Without any, all are trained."""
    mixture: Annotated[Mapping[Key, Weight], Field(max_length=256)] = Field(default_factory=dict)
    """Weights of sources in this phase; by default those of `data`."""
    gpus: str | None = None
    """GPUs of this phase in the plan; by default the recipe's."""
    utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """MFU that the plan uses instead of its own estimate of the step time."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps: tokens over the tokens of a step, at least 1."""
        return max(1, round(self.tokens / (self.batch * self.context)))

    @property
    def modules(self) -> MTPPhaseSpec | None:
        """Training of the modules of multi-token prediction; None if they are not trained."""
        return None

    @property
    def fp8(self) -> Fp8Spec | None:
        """Settings of fp8 matmuls; None for bf16."""
        return self.precision if self.precision.kind == "fp8" else None


class PretrainPhase(PhaseBase):
    """Next-token prediction on packed documents."""

    kind: Literal["pretrain", "midtrain"]
    """`midtrain` is a later phase of the same: other data, longer contexts."""
    mtp: MTPPhaseSpec | None = None
    """Training of the spec's modules of multi-token prediction; null: they are not trained."""

    @property
    def modules(self) -> MTPPhaseSpec | None:
        """See `PhaseBase`."""
        return self.mtp


class DistillPhase(PhaseBase):
    """Next-token prediction with both a teacher's distribution and the data as targets (codistillation)."""

    kind: Literal["distill"]
    teacher: Key
    """Name among the recipe's `teachers`."""
    divergence: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    """`forward_kl`: KL(teacher || student); `reverse_kl`: KL(student || teacher)."""
    soft_weight: Share = 0.5
    """Weight of the soft targets; the hard ones have the rest."""
    weighting: Literal["fixed", "linear", "dynamic"] = "fixed"
    """`linear`: from `soft_weight` to 0 over the phase. `dynamic`: each token's soft_weight x min(1, student's loss /
    teacher's): less where the student is better than its teacher."""
    top_k: Size | None = None
    """Keep the teacher's k largest probabilities, renormalized; null: all."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both."""

    @model_validator(mode="after")
    def _is_finite(self) -> Self:
        if self.divergence == "reverse_kl" and self.top_k is not None:
            raise located(
                ("top_k",), "KL(student || teacher) is infinite where the teacher's tail is cut", "forward_kl"
            )
        return self


class SftPhase(PhaseBase):
    """Supervised fine-tuning: loss on answers alone."""

    kind: Literal["sft"]
    drop_easy: Share = 0.0
    """Share of the dialogues, the easiest for the model that enters the phase, that is dropped."""


class RlPhase(PhaseBase):
    """Online reinforcement learning on tasks whose answers are checked."""

    kind: Literal["rl"]
    algorithm: Literal["grpo", "dr_grpo", "reinforce"] = "grpo"
    """GRPO (arXiv:2402.03300), without its division by deviations and lengths (arXiv:2503.20783), or REINFORCE with
    the other samples' mean as baseline (RLOO, arXiv:2402.14740)."""
    group: Annotated[int, Field(ge=2, le=1024)] = 8
    """Answers to each prompt."""
    max_answer: Size = 16
    """Most tokens of an answer."""
    clip_low: Share = 0.2
    """Importance ratios below 1 - this are clipped."""
    clip_high: Share = 0.2
    """Importance ratios above 1 + this are clipped."""
    kl_weight: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight of the KL to the model that entered the phase."""
    temperature: PositiveFloat = 1.0
    """Of sampling."""
    iterations: Size = 1
    """Optimizer steps on each batch of answers."""
    rollouts: RolloutSpec | None = None
    """Generation of answers; null: in turns with the learner in one process, and not part of the planned time."""

    @model_validator(mode="after")
    def _groups_fill_a_batch(self) -> Self:
        if self.batch % self.group:
            raise located(("group",), f"groups of {self.group} do not fill a batch of {self.batch}")
        return self


class DpoPhase(PhaseBase):
    """Direct preference optimization (arXiv:2305.18290) on pairs of answers."""

    kind: Literal["dpo"]
    beta: PositiveFloat = 0.1
    """Strength of the KL constraint to the model that entered the phase."""

    @model_validator(mode="after")
    def _rows_pair_up(self) -> Self:
        if self.batch % 2:
            raise located(("batch",), "a batch of pairs holds an even number of sequences")
        return self


Phase = Annotated[PretrainPhase | DistillPhase | SftPhase | RlPhase | DpoPhase, Field(discriminator="kind")]
