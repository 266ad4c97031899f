"""`Explorer`: everything that the page asks, without any web in it. Texts in, JSON documents out."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from l4spec.errors import Problem, UserError, nearest
from l4spec.explore import answer, downloads
from l4spec.explore.controls import Control, controls_of
from l4spec.explore.question import Question, at_controls, changed_fields, price_note, request_of
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface import opening
from l4spec.library import shipped_specs
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.model import ModelSpec
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExploredModel:
    """A model by name with all changes laid over it: `overrides` are those of the command line and of the page."""

    name: str
    overrides: tuple[str, ...]
    data: dict[str, Any]
    graph: LayerGraph

    @classmethod
    def of(cls, name: str, overrides: tuple[str, ...]) -> "ExploredModel":
        """Read and compile a model; a shipped name is the shipped file, never one in the current folder. Raises
        UserError.
        """
        document, _ = opening.open_document(_paths().get(name, name), overrides)
        return cls(name, overrides, document.data, opening.compiled(parse_as(document, ModelSpec)))


@dataclass(frozen=True, slots=True)
class Explorer:
    """The shipped models and the one that was named; `base` are changes (`--set`) of that one alone."""

    named: str
    base: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models to choose from, the given one first."""
        return tuple(dict.fromkeys((self.named, *_paths())))

    def parent(self, name: str) -> ExploredModel:
        """The model that is changed on the page. Raises UserError, for a name that is not among `models` too."""
        if name not in self.models:
            raise UserError([Problem("no such model on this page", path="model", hint=nearest(name, self.models))])
        return _model(name, self.base if name == self.named else ())

    def model(self, name: str) -> Reply:
        """The controls of a model, or problems. Its file is read again: it may have been edited."""
        for kept in (_model, _plan_of_parent):
            kept.cache_clear()
        try:
            return {"controls": [asdict(control) for control in controls_of(self.parent(name).data)]}
        except UserError as error:
            return {"problems": at_controls(error.problems, {})}

    def plan(self, question: Question) -> Reply:
        """The plan of a variant beside that of its parent, and downloads; or problems by field."""
        return self._answered(question, _planned)

    def suggest(self, question: Question) -> Reply:
        """Changes that would make the variant fit, one per line; requested separately because they take many plans."""
        return self._answered(
            question, lambda parent, model, request: {"text": answer.suggestions(plan(model.graph, request))}
        )

    def launch(self, question: Question) -> Reply:
        """The launch of the variant by `target`, or problems."""

        def launched(parent: ExploredModel, variant: ExploredModel, request: PlanRequest) -> Reply:
            changed = bool(variant.overrides)
            return {"text": downloads.launch(question.target, variant.graph, request, changed=changed)}

        return self._answered(question, launched)

    def report(self, question: Question) -> Reply:
        """The HTML report of the variant, or problems."""
        return self._answered(
            question, lambda parent, variant, request: {"text": downloads.report(variant.graph, request)}
        )

    def _answered(
        self, question: Question, make: Callable[[ExploredModel, ExploredModel, PlanRequest], Reply]
    ) -> Reply:
        controls: Mapping[str, Control] = {}
        try:
            parent = self.parent(question.model)
            controls = {control.path: control for control in controls_of(parent.data)}
            variant, request = _read(question, parent, controls)
            return make(parent, variant, request)
        except UserError as error:
            return {"problems": at_controls(error.problems, controls)}


def _read(
    question: Question, parent: ExploredModel, controls: Mapping[str, Control]
) -> tuple[ExploredModel, PlanRequest]:
    """The requested variant and options, or the problems of both."""
    problems: list[Problem] = []
    variant, request = parent, PlanRequest()
    try:
        changes = changed_fields(question, controls)
        variant = _model(parent.name, (*parent.overrides, *changes)) if changes else parent
    except UserError as error:
        problems += error.problems
    try:
        request = request_of(question)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return variant, request


def _planned(parent: ExploredModel, variant: ExploredModel, request: PlanRequest) -> Reply:
    made = plan(variant.graph, request)
    before = made if variant is parent else _plan_of_parent(parent.name, parent.overrides, request)
    typed = downloads.command(variant.name, variant.overrides, request)
    return {
        "verdict": answer.headline(made),
        "fits": made.fits,
        "rows": answer.rows((variant.graph, made), None if before is None else (parent.graph, before)),
        "memory": answer.memory(made),
        "notes": [note for note in (price_note(request), *answer.notes(made)) if note],
        "plan": json.loads(made.model_dump_json(exclude=answer.NOT_SENT)),
        "command": typed,
        "yaml": downloads.as_yaml(variant.name, variant.overrides, variant.data),
    }


@lru_cache(maxsize=1)
def _paths() -> dict[str, Path]:
    return shipped_specs()


@lru_cache(maxsize=8)
def _model(name: str, overrides: tuple[str, ...]) -> ExploredModel:
    """Cached, because a graph caches results: a changed option is then planned in half the time."""
    return ExploredModel.of(name, overrides)


@lru_cache(maxsize=16)
def _plan_of_parent(name: str, overrides: tuple[str, ...], request: PlanRequest) -> Plan | None:
    """The same options for the unchanged model; None if it does not allow them, as a longer context."""
    try:
        return plan(_model(name, overrides).graph, request)
    except UserError:
        return None
