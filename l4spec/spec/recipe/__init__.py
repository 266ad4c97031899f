"""`Recipe`: a model, data, and phases of training, as an author wrote them: planned at full size, run at small size."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.errors import nearest
from l4spec.layers.base import AsTuple, PositiveFloat, Spec
from l4spec.spec.claims import MAX_CLAIMS
from l4spec.spec.header import Header, located
from l4spec.spec.quantities import Share
from l4spec.spec.recipe.claim import RecipeClaim
from l4spec.spec.recipe.data import DataSpec, SyntheticSource
from l4spec.spec.recipe.lengths import LengthTest
from l4spec.spec.recipe.parametrization import Parametrization
from l4spec.spec.recipe.phase import DpoPhase, Phase, PretrainPhase, RlPhase

Key = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$")]
Overrides = Annotated[tuple[str, ...], AsTuple]


class Teacher(Spec):
    """A model whose soft targets a `distill` phase learns from."""

    model: str
    """Shipped name or path of its spec."""
    set: Overrides = ()
    """Changes of that spec, `path=value`."""
    phases: Annotated[tuple[PretrainPhase, ...], AsTuple] = ()
    """Phases by which it is trained first when the recipe is run; without any it has random weights."""
    students: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of students that share its forward passes; each is charged an equal part."""
    in_training: Share = 0.0
    """Share of its forward passes that its own training computes anyway; they are not charged."""


class Variant(Spec):
    """One of several models that the same recipe trains, to be compared."""

    set: Overrides = ()
    """Changes of the model's spec, `path=value`."""
    change: Overrides = ()
    """Changes of this recipe, as `phases.0.soft_weight=0.25`."""
    description: str | None = None
    """One line for the table."""


class Recipe(Header):
    """Training recipe: model, data and phases."""

    kind: Literal["recipe"]
    """Kind of the document."""
    model: str
    """Shipped name or path of the spec that is trained."""
    set: Overrides = ()
    """Changes of that spec, `path=value`."""
    data: DataSpec
    """Training data."""
    phases: Annotated[tuple[Phase, ...], AsTuple, Field(min_length=1, max_length=64)]
    """Phases, one after the other."""
    variants: Annotated[Mapping[Key, Variant], Field(max_length=64)] = Field(default_factory=dict)
    """Models to compare: each runs all phases."""
    teachers: Annotated[Mapping[Key, Teacher], Field(max_length=8)] = Field(default_factory=dict)
    """Models that `distill` phases name."""
    lengths: LengthTest | None = None
    """Retrieval test by length of the text (needle in a haystack), after each phase."""
    gpus: str | None = None
    """GPUs that the recipe is planned on, as `32768xH100`; the command's --gpus comes first."""
    watts_per_gpu: PositiveFloat | None = None
    """Power of a GPU in the plan's energy, as model cards take its rated power; null: no energy is planned."""
    claims: Annotated[tuple[RecipeClaim, ...], AsTuple, Field(max_length=MAX_CLAIMS)] = ()
    """Published figures of the training, checked by `verify`."""
    parametrization: Parametrization = Parametrization()
    """Rule by which initial scales and learning rates follow the size of the model."""
    initial_deviation: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Standard deviation of all random weights except norms and biases."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of weights, data and draws."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [phase.name for phase in self.phases]
        for index, phase in enumerate(self.phases):
            if phase.name in names[:index]:
                raise located(("phases", index, "name"), f"there is a phase {phase.name!r} already")
            for source in phase.mixture:
                if source not in self.data.sources:
                    hint = nearest(source, self.data.sources)
                    raise located(("phases", index, "mixture"), f"no source {source!r} in data.sources", hint)
            if phase.kind == "distill" and phase.teacher not in self.teachers:
                hint = nearest(phase.teacher, self.teachers)
                raise located(("phases", index, "teacher"), f"no teacher {phase.teacher!r}", hint)
        return self

    @model_validator(mode="after")
    def _claims_name_phases(self) -> Self:
        names = [phase.name for phase in self.phases]
        for index, claim in enumerate(self.claims):
            if claim.phase is not None and claim.phase not in names:
                raise located(("claims", index, "phase"), f"no phase {claim.phase!r}", nearest(claim.phase, names))
        return self

    @model_validator(mode="after")
    def _teachers_train_no_modules(self) -> Self:
        for name, teacher in self.teachers.items():
            for index, phase in enumerate(teacher.phases):
                if phase.mtp is not None:
                    path = ("teachers", name, "phases", index, "mtp")
                    raise located(path, "a teacher's modules of multi-token prediction have no use", "leave mtp out")
        return self

    @model_validator(mode="after")
    def _lengths_are_of_needles(self) -> Self:
        if self.lengths is None:
            return self
        name = self.lengths.source
        source = self.data.sources.get(name)
        if source is None:
            hint = nearest(name, self.data.sources)
            raise located(("lengths", "source"), f"no source {name!r} in data.sources", hint)
        if not isinstance(source, SyntheticSource) or source.task != "needles":
            raise located(("lengths", "source"), f"{name!r} can not be made at any length", "task: needles can")
        if list(self.lengths.tokens) != sorted(set(self.lengths.tokens)):
            raise located(("lengths", "tokens"), "expected ascending lengths")
        return self


__all__ = ["DataSpec", "DpoPhase", "Phase", "Recipe", "RecipeClaim", "RlPhase", "Teacher", "Variant"]
