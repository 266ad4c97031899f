"""The files that a scenario refers to: specs of its models, traces and tables, relative to where they are named."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from l4spec.errors import Problem, SpecError
from l4spec.library import find_beside, missing
from l4spec.spec.document import Document, load_document
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import place_of
from l4spec.spec.scenario import Scenario
from l4spec.spec.tree import KeyPath, dotted


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A scenario with the specs of its models, and the document with the location of every entry."""

    scenario: Scenario
    document: Document
    models: Mapping[str, ModelSpec]
    """Specs by key of the scenario's `models`."""
    drafts: Mapping[str, ModelSpec]
    """Specs of draft models, by key of the model that they draft for."""

    def file(self, path: KeyPath, name: str, *, prefix: bool = False) -> Path:
        """The file that the field at `path` names, relative to its document.

        With `prefix` it is the common beginning of several file names. Raises SpecError where there is none.
        """
        folder = _folder(self.document, path)
        candidates = (folder / name, Path(name))
        for candidate in candidates:
            if candidate.exists() or (prefix and any(candidate.parent.glob(f"{candidate.name}__*"))):
                return candidate
        place = place_of(self.document, path)
        raise SpecError([Problem(f"no file {name!r}", dotted(path), place, f"looked in {folder}")])


def load_scenario(path_or_name: str | Path, overrides: tuple[str, ...] = ()) -> LoadedScenario:
    """A scenario by path or shipped name, and the specs of its models. Raises SpecError with all problems at once."""
    document = load_document(path_or_name, overrides)
    return with_models(parse_as(document, Scenario), document)


def with_models(scenario: Scenario, document: Document) -> LoadedScenario:
    """The scenario with its models' specs read. Raises SpecError with the problems of all of them."""
    problems: list[Problem] = []
    models: dict[str, ModelSpec] = {}
    drafts: dict[str, ModelSpec] = {}
    for key, model in scenario.models.items():
        path: KeyPath = ("models", key, "spec") if model.spec is not None else ("models", key)
        try:
            models[key] = _spec(document, path, model.spec or key, model.set)
            if model.speculation is not None and model.speculation.spec is not None:
                where = ("models", key, "speculation", "spec")
                drafts[key] = _spec(document, where, model.speculation.spec, ())
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return LoadedScenario(scenario, document, models, drafts)


def _spec(document: Document, path: KeyPath, name: str, changes: tuple[str, ...]) -> ModelSpec:
    file = find_beside(name, _folder(document, path))
    if file is None:
        message, hint = missing(name, _folder(document, path))
        raise SpecError([Problem(message, dotted(path), place_of(document, path), hint)])
    return parse_as(load_document(file, changes), ModelSpec)


def _folder(document: Document, path: KeyPath) -> Path:
    """The folder of the file in which a field was written; the current one for an option such as `--set`."""
    place = place_of(document, path)
    return Path(place.file).parent if place is not None and not place.file.startswith("--") else Path()


__all__ = ["LoadedScenario", "load_scenario", "with_models"]
