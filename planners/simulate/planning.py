"""Servers of a scenario, planned together: drafts, models that share GPUs, and prefill servers."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.parse import place_of
from l4spec.spec.resolve import resolve
from l4spec.spec.scenario.deployment import ModelDeployment
from l4spec.spec.scenario.references import LoadedScenario
from planners.catalog.cluster import parse_cluster
from planners.deployment import Deployment
from planners.device.memory import place
from planners.plan import plan_deployment
from planners.simulate.drafts import besides
from planners.simulate.servers import Neighbours, Server, plan_request, server_of
from planners.simulate.settings import merged

PREFILL = "/prefill"
"""Suffix of a model's key in that of its prefill servers."""


def planned_servers(loaded: LoadedScenario) -> dict[str, Server]:
    """A server of each model of a scenario, and one for its prefills where they run apart.

    Raises UserError with everything that cannot be planned, each with its place.
    """
    graphs = {key: build_graph(resolve(spec)) for key, spec in loaded.models.items()}
    drafts = {key: build_graph(resolve(spec)) for key, spec in loaded.drafts.items()}
    servers: dict[str, Server] = {}
    problems: list[Problem] = []
    for key, model in loaded.scenario.models.items():
        try:
            neighbours = _neighbours(loaded, graphs, key, drafts)
            servers[key] = _server(loaded, graphs[key], key, model, neighbours)
            if model.disaggregated is not None:
                prefill = replace(
                    _server(loaded, graphs[key], key, _apart(model), neighbours), key=key + PREFILL, acceptance=()
                )
                servers[key + PREFILL], servers[key] = prefill, _linked(servers[key], prefill)
        except UserError as error:
            problems += [_placed(problem, loaded, key) for problem in error.problems]
    if problems:
        raise UserError(problems)
    return servers


def _apart(model: ModelDeployment) -> ModelDeployment:
    """The deployment of a model's prefills, with their GPUs and the price of these."""
    split = model.disaggregated
    assert split is not None, "asked for with prefills apart"
    gpus, price = split.prefill_gpus or model.gpus, split.prefill_usd_per_gpu_hour
    if price is None and parse_cluster(gpus).hardware.name == parse_cluster(model.gpus).hardware.name:
        price = model.usd_per_gpu_hour
    return model.model_copy(update={"gpus": gpus, "usd_per_gpu_hour": price})


def _linked(decode: Server, prefill: Server) -> Server:
    """The decode server, its caches sent at the pace of the slower end."""
    assert decode.cache_link is not None, "disaggregated servers have a link"
    return replace(decode, cache_link=replace(decode.cache_link, other_end=prefill.cache_link))


def _server(
    loaded: LoadedScenario, graph: LayerGraph, key: str, model: ModelDeployment, neighbours: Neighbours
) -> Server:
    find = partial(loaded.file, ("models", key, "times", "path"), prefix=True)
    return server_of(key, graph, model, loaded.scenario.scheduler, find, neighbours)


def co_located(loaded: LoadedScenario, key: str) -> tuple[str, ...]:
    """The other models on the GPUs of the model `key`."""
    models = loaded.scenario.models
    root = models[key].shares_gpus_with or key
    return tuple(
        other for other in models if other != key and (models[other].shares_gpus_with == root or other == root)
    )


def own_bytes(loaded: LoadedScenario, key: str, graph: LayerGraph, draft: LayerGraph | None) -> int:
    """Bytes on the fullest device that a model of a scenario needs besides its cache, its draft included."""
    model = loaded.scenario.models[key]
    asked = plan_request(model, merged(loaded.scenario.scheduler, model.scheduler))
    deployment = Deployment.resolve(graph, asked)
    placement = place(deployment.setting, plan_deployment(deployment).layout)
    drafting = besides(graph, model, placement, draft)
    pairs = zip(placement.stages, placement.uses(1, 1), strict=True)
    return max(use.total - use.cache + drafting.of_draft(stage)[0] for (stage, _), use in pairs)


def _neighbours(
    loaded: LoadedScenario, graphs: Mapping[str, LayerGraph], key: str, drafts: Mapping[str, LayerGraph]
) -> Neighbours:
    """Other users of a model's GPUs: models, and stages without a model; they share the cache equally."""
    scenario = loaded.scenario
    others = co_located(loaded, key)
    for other in others:
        if scenario.models[other].gpus != scenario.models[key].gpus:
            message = (
                f"'{other}' runs on the same GPUs, so both must name the same, found {scenario.models[other].gpus}"
            )
            raise UserError([Problem(message, path="gpus")])
    root = scenario.models[key].shares_gpus_with
    if root is not None and scenario.models[key].replicas > scenario.models[root].replicas:
        message = f"at most the {scenario.models[root].replicas:,} of '{root}', whose GPUs these are"
        raise UserError([Problem(message, path="replicas", hint=f"more replicas of '{root}', or GPUs of its own")])
    taken = sum(own_bytes(loaded, other, graphs[other], drafts.get(other)) for other in others)
    here = {key, *others}
    taken += sum(stage.bytes or 0 for stage in scenario.chain if stage.beside in here)
    return Neighbours(drafts.get(key), taken, 1 / (1 + len(others)))


def _placed(problem: Problem, loaded: LoadedScenario, key: str) -> Problem:
    """The problem with the place of the field of a model that it is about."""
    field = problem.path.removeprefix(f"models.{key}").lstrip(".")
    path = ("models", key, field) if field else ("models", key)
    return problem if problem.place is not None else problem._replace(place=place_of(loaded.document, path))
