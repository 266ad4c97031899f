"""The answer of `l4spec plan RECIPE`: every phase and their sum, in base units."""

from typing import Literal

from planners.frozen import Frozen
from planners.latency_types import LatencyError
from planners.recipes.fp8 import Fp8Share
from planners.recipes.rl.rl_plan import RlPhasePlan


class TeacherPasses(Frozen):
    """Forward passes of a teacher over a phase's tokens: all of them, and this student's share of their cost.

    `charged_flops` leaves out passes that the teacher's own training runs anyway, and other students' shares.
    `cache_bytes` are those of the logits that `train --teacher-cache` keeps, in fp32, with their places in 4 bytes each
    where the phase takes the largest alone.
    """

    teacher: str
    flops: int
    charged_flops: int
    students: int
    in_training: float
    gpu_hours: float | None
    cache_bytes: int


class ReferencePasses(Frozen):
    """Forward passes of the model as it entered the phase: DPO's of every step, of RL with a KL one of every batch.

    `flops` are those of all steps. `gpu_hours` are at the rate of a GPU that the update reaches; with `in_step` they
    are part of the step that `rollouts` plan. `weights_bytes` are on the fullest GPU, shared as the model's weights.
    """

    flops: int
    gpu_hours: float | None
    in_step: bool
    weights_bytes: int


class PhasePlan(Frozen):
    """One phase. `model_flops` is the mathematics of all steps but other models' passes; `notes` explain null times.

    `gpu_hours` and quantities computed from it include their passes. `generated_flops` are forward passes of
    answers that RL draws, once for all `iterations` of a batch; their time is in `gpu_hours` where `rl` says how they
    are. A checkpoint has bf16 weights and the optimizer's state of trained tensors. `trainable` names that, nothing:
    all; `tiles_per_step` are image tiles. `num_modules` of multi-token prediction train, too: `module_params` are their
    own parameters, `module_bytes` what they add on a GPU of the last stage to weights, gradients, optimizer states and
    activations.
    """

    name: str
    kind: str
    trainable: tuple[str, ...] = ()
    tiles_per_step: int = 0
    num_modules: int = 0
    module_params: int = 0
    module_bytes: int = 0
    tokens: int
    steps: int
    context: int
    batch: int
    gpus: str | None
    num_gpus: int | None
    layout: str
    fits: bool | None
    precision: str
    model_flops: int
    generated_flops: int
    step_seconds: float | None
    step_seconds_source: Literal["estimate", "given utilization"] | None
    tokens_per_second: float | None
    flops_per_second_per_gpu: float | None
    utilization: float | None
    gpu_hours: float | None
    days: float | None
    usd: float | None
    energy_joules: float | None
    checkpoint_bytes: int
    teacher: TeacherPasses | None = None
    reference: ReferencePasses | None = None
    rl: RlPhasePlan | None = None
    fp8: Fp8Share | None = None
    errors: tuple[LatencyError, ...] = ()
    notes: tuple[str, ...] = ()


class RecipePlan(Frozen):
    """All phases, and their sums; a sum is null if one of its terms is."""

    l4spec_recipe_plan: int = 1
    recipe: str
    model: str
    active_params: int
    total_params: int
    estimated: tuple[str, ...]
    phases: tuple[PhasePlan, ...]
    tokens: int
    model_flops: int
    gpu_hours: float | None
    days: float | None
    usd: float | None
    energy_joules: float | None
    checkpoint_bytes: int
    fits: bool | None
