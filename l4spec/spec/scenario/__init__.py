"""`Scenario`: models with their deployments, a workload, a scheduler and service levels, as an author wrote them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.errors import nearest
from l4spec.layers.base import AsTuple, Spec
from l4spec.spec.header import Header, located
from l4spec.spec.quantities import ByteCount, Duration, Share, Tokens
from l4spec.spec.scenario.deployment import ModelDeployment, SchedulerSpec
from l4spec.spec.scenario.workload import Workload

ModelKey = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class ServiceLevels(Spec):
    """Service-level objectives. A request is good when it meets every level that is set."""

    ttft: Duration | None = None
    """Longest time to the first token."""
    tpot: Duration | None = None
    """Longest mean time per output token after the first."""
    e2e: Duration | None = None
    """Longest time to the last token."""
    attainment: Share = 0.9
    """Share of requests that must be good for a rate to count as sustained (0.9 in DistServe, arXiv 2401.09670)."""


class Stage(Spec):
    """One stage of a chain: a model, or a classifier of given time and bytes."""

    name: ModelKey
    """Name of the stage in reports."""
    model: ModelKey | None = None
    """Key of the model that runs it; without one, `seconds` and `bytes` are given."""
    reads: Literal["prompt", "answer", "both"] = "prompt"
    """Input of the stage."""
    template_tokens: Tokens | None = None
    """Tokens of the stage's own instructions around what it reads."""
    output_tokens: Tokens | None = None
    """Tokens of its verdict; without it the stage writes the answer itself."""
    refusal_rate: Share = 0.0
    """Share of requests that end here."""
    check: Literal["blocking", "streaming"] = "blocking"
    """blocking: the next stage waits. streaming: the answer is shown while it is checked."""
    seconds: Duration | None = None
    """Time of a stage without a model."""
    bytes: ByteCount | None = None
    """Memory of a stage without a model, on the GPUs of `beside`."""
    beside: ModelKey | None = None
    """Key of the model whose GPUs a stage without a model uses."""

    @model_validator(mode="after")
    def _has_a_time(self) -> Self:
        if (self.model is None) == (self.seconds is None):
            raise located(("model",), "a stage needs a `model`, or `seconds` instead of one")
        if self.model is not None and self.bytes is not None:
            raise located(("bytes",), "the bytes of a model are planned", "leave it out")
        return self


class Scenario(Header):
    """Deployed models under a load."""

    kind: Literal["scenario"]
    """Kind of the document."""
    models: Annotated[dict[ModelKey, ModelDeployment], Field(min_length=1, max_length=64)]
    """Models by a name of your own, each with its deployment."""
    workload: Workload
    """Requests and their arrivals."""
    scheduler: SchedulerSpec = SchedulerSpec()
    """Settings of every model's scheduler."""
    slo: ServiceLevels = ServiceLevels()
    """Service levels."""
    chain: Annotated[tuple[Stage, ...], AsTuple] = ()
    """Stages that a request passes in turn; without it, the one model answers."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of everything that is drawn."""

    @model_validator(mode="after")
    def _models_are_known(self) -> Self:
        for key, model in self.models.items():
            other = model.shares_gpus_with
            if other is not None and (other == key or other not in self.models):
                message = f"no other model is called '{other}'"
                raise located(("models", key, "shares_gpus_with"), message, nearest(other, self.models.keys() - {key}))
        for index, stage in enumerate(self.chain):
            for field in ("model", "beside"):
                name = getattr(stage, field)
                if name is not None and name not in self.models:
                    hint = nearest(name, self.models)
                    raise located(("chain", index, field), f"no model is called '{name}'", hint)
        return self

    @model_validator(mode="after")
    def _something_answers(self) -> Self:
        if not self.chain and len(self.models) > 1:
            raise located(("chain",), f"{len(self.models)} models need a `chain` that says which one does what")
        answering = [index for index, stage in enumerate(self.chain) if stage.model and stage.output_tokens is None]
        if self.chain and len(answering) != 1:
            message = f"one stage with a model writes the answer, {len(answering)} have no output_tokens"
            raise located(("chain", answering[1] if len(answering) > 1 else 0), message)
        for index, stage in enumerate(self.chain):
            if answering and index < answering[0] and stage.reads != "prompt":
                raise located(("chain", index, "reads"), "there is no answer yet", "write reads: prompt")
        return self

    @property
    def answering(self) -> str:
        """Key of the model that writes the answer."""
        if not self.chain:
            return next(iter(self.models))
        return next(stage.model for stage in self.chain if stage.model is not None and stage.output_tokens is None)


__all__ = ["ModelDeployment", "Scenario", "SchedulerSpec", "ServiceLevels", "Stage", "Workload"]
