"""From `l4spec simulate` options to a scenario: a scenario file with options applied, or a spec with a load."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from l4spec.errors import Place, Problem, SpecError
from l4spec.spec.document import Document, load_document
from l4spec.spec.document_kinds import kind_of, parse_as
from l4spec.spec.model import ModelSpec
from l4spec.spec.scenario import Scenario
from l4spec.spec.scenario.references import LoadedScenario, with_models
from l4spec.spec.tree import Data, KeyPath
from planners.simulate.request import SimulateRequest

MODEL_KEY = "model"


def scenario_of(path_or_name: str, request: SimulateRequest, overrides: Sequence[str] = ()) -> LoadedScenario:
    """The named scenario with the request's options applied to it, or, for a spec, a scenario made of the options.

    `overrides` change the document that is named. Raises SpecError with all problems, those of options by their names.
    """
    document = load_document(path_or_name, overrides)
    if kind_of(document).name == "spec":
        made = _made_for(path_or_name, parse_as(document, ModelSpec), request, overrides)
        return with_models(parse_as(made, Scenario), made)
    changed = _changed(document, request, _answering(document))
    return with_models(parse_as(changed, Scenario), changed)


def _made_for(spec: str, model: ModelSpec, request: SimulateRequest, overrides: Sequence[str]) -> Document:
    """A scenario document of one model, its deployment and workload taken from the options."""
    _refuse_contradictions(request)
    missing = []
    if request.gpus is None:
        missing.append(Problem("is needed: a simulation runs on GPUs", path="--gpus", hint="as --gpus 8xH100"))
    if request.rate is None and request.concurrency is None and not _traced(request):
        hint = "--rate 4/s, --concurrency 20 or --trace FILE; or name a scenario: `l4spec ls scenarios`"
        missing.append(Problem("no requests arrive", path="--rate", hint=hint))
    if not _traced(request):
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(request, name) is None:
                flag = f"--{name.replace('_', '-')}"
                missing.append(
                    Problem("is needed: the length of requests is unknown", path=flag, hint=f"as {flag} 300")
                )
    if missing:
        raise SpecError(missing)
    data: dict[str, Data] = {
        "l4spec": 1,
        "kind": "scenario",
        "name": model.name,
        "models": {MODEL_KEY: {"spec": spec, "set": list(overrides)}},
        "workload": {"arrivals": {}},
    }
    empty = Document(data, {(): Place("the command line")}, "the command line")
    return _changed(empty, request, MODEL_KEY)


def _answering(document: Document) -> str:
    """Key of the model that options of a deployment are about."""
    models = document.data.get("models")
    keys = list(models) if isinstance(models, dict) else []
    chain = document.data.get("chain")
    for stage in chain if isinstance(chain, list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("model"), str) and "output_tokens" not in stage:
            return str(stage["model"])
    return keys[0] if keys else MODEL_KEY


def _changed(document: Document, request: SimulateRequest, key: str) -> Document:
    """The document with the options laid over it, each with its own place."""
    _refuse_contradictions(request)
    data: Any = deepcopy(document.data)
    places = dict(document.places)
    for path, (value, flag) in request.assignments(key).items():
        at = data
        for step in path[:-1]:
            at = at.setdefault(step, {}) if isinstance(at, dict) else {}
        at[path[-1]] = value
        for index in range(1, len(path) + 1):
            places.setdefault(path[:index], Place(flag))
        _forget_below(places, path)
        places[path] = Place(flag)
    if _traced(request) and isinstance(data.get("workload"), dict):
        for field in ("prompt_tokens", "output_tokens", "prefix", "sessions"):
            data["workload"].pop(field, None)
    return Document(data, places, document.source, document.extends)


def _forget_below(places: dict[KeyPath, Place], path: KeyPath) -> None:
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]


def _traced(request: SimulateRequest) -> bool:
    """True if requests come from a file."""
    return request.trace is not None or request.fit is not None


def _refuse_contradictions(request: SimulateRequest) -> None:
    given = [name for name in ("rate", "concurrency", "trace", "fit") if getattr(request, name) is not None]
    if len(given) > 1:
        both = " and ".join(f"--{name}" for name in given)
        raise SpecError([Problem(f"{both} each say when requests come", hint="leave all but one out")])
    if request.think is not None and request.concurrency is None:
        raise SpecError([Problem("needs --concurrency: only clients think", path="--think")])
    if _traced(request):
        lengths = [name for name in ("prompt_tokens", "output_tokens", "prefix_tokens") if getattr(request, name)]
        if lengths:
            flags = [f"--{name.replace('_', '-')}" for name in lengths]
            raise SpecError([Problem("a trace brings its own lengths", path=flag) for flag in flags])
