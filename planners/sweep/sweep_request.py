"""Options of a sweep: those of serving, and a training run beside them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from l4spec.options import Option, option_of, read_count, read_tokens
from planners.request import LARGEST, LONGEST, MOST_TRAIN_TOKENS, PlanRequest

REFUSED = {
    "mode": "a sweep plans serving, and with --tokens a training run too",
    **dict.fromkeys(
        (
            *("optimizer", "zero_stage", "checkpointing", "sequence_parallel", "gradient_bytes", "micro_batch"),
            *("trainer", "virtual_stages", "lora_rank", "lora_targets"),
        ),
        "the training run of a sweep has the defaults of `plan --mode train`",
    ),
}
"""Options of a plan that a sweep does not take, with the reason."""
OF_TRAINING = ("train_gpus", "train_context", "train_batch", "precision", "fp8_matmuls")
"""Options of the training run alone, besides its tokens."""


class SweepRequest(PlanRequest):
    """The options of a plan for each variant; with `train_tokens` each is planned as a training run too."""

    train_tokens: Annotated[
        int | None,
        Option(
            "Tokens of a training run, as 15T: adds its GPU-hours and cost.",
            metavar="TOKENS",
            flags=("--tokens",),
            parse=read_tokens,
        ),
        Field(ge=1, le=MOST_TRAIN_TOKENS),
    ] = None
    train_gpus: Annotated[
        str | None, Option("GPUs of the training run, as 2048xH100.", metavar="GPUS", default="--gpus")
    ] = None
    train_context: Annotated[
        int | None,
        Option(
            "Tokens of a training sequence.",
            metavar="TOKENS",
            parse=read_tokens,
            default="8192, or the model's shorter limit",
        ),
        Field(ge=1, le=LONGEST),
    ] = None
    train_batch: Annotated[
        int | None,
        Option("Sequences of a training step.", parse=read_count, default="about 16M tokens of them"),
        Field(ge=1, le=LARGEST),
    ] = None
    precision: Annotated[
        Literal["bf16", "fp8"], Option("Matmuls of the training run in bf16 or fp8.", metavar="FORMAT")
    ] = "bf16"
    fp8_matmuls: Annotated[
        str,
        Option("With --precision fp8: the scheme whose rules select the matmuls in fp8.", metavar="SCHEME"),
    ] = "fp8"
    jobs: Annotated[int, Option("Variants to plan in parallel.", parse=read_count), Field(ge=1, le=1024)] = 1

    def served(self) -> PlanRequest:
        """The plan of serving."""
        names = [n for n in PlanRequest.model_fields if n != "mode" and option_of(PlanRequest, n).mode != "train"]
        return PlanRequest(**{name: value for name, value in self.echo().items() if name in names})

    def trained(self) -> PlanRequest | None:
        """The plan of the training run; None if no tokens of one were given."""
        if self.train_tokens is None:
            return None
        options: dict[str, Any] = {
            "gpus": self.train_gpus or self.gpus,
            "context": self.train_context,
            "batch": self.train_batch,
            "precision": self.precision,
            "fp8_matmuls": self.fp8_matmuls,
            "train_tokens": self.train_tokens,
            "usd_per_gpu_hour": self.usd_per_gpu_hour,
        }
        return PlanRequest(mode="train", **{name: value for name, value in options.items() if value is not None})
