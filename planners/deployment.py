"""`Deployment`: a request resolved against a model, with every name looked up; the argument of all later stages."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.published import AS_PUBLISHED, UNQUANTIZED, scheme_for
from l4spec.units import parse_bytes, parse_quantity
from planners.catalog import engine as engine_of
from planners.catalog.cluster import Cluster, parse_cluster, resized
from planners.counts.kv_cache import cache_dtype_bytes
from planners.counts.weights import scheme_of
from planners.device.memory import Setting
from planners.request import HOST_OPTIONS, LARGEST, PlanRequest, has_experts
from planners.request_checks import check
from planners.training_batch import chosen_batch

if TYPE_CHECKING:
    from planners.device.host_memory import HostMemory
    from planners.device.training_state import TrainSetting


class Deployment(NamedTuple):
    """The model and the complete request of a plan, with every default filled in.

    `setting` is the part that device memory depends on besides layout, context and batch. `context` counts tokens of a
    sequence, `batch` sequences over the whole deployment. Without `cluster` nothing limits memory.
    """

    graph: LayerGraph
    request: PlanRequest
    cluster: Cluster | None
    setting: Setting
    context: int
    batch: int

    @classmethod
    def resolve(cls, graph: LayerGraph, request: PlanRequest) -> "Deployment":
        """Resolve a request. Raises UserError for unknown names and for options that the model rules out."""
        check(request, graph)
        cluster = parse_cluster(request.gpus) if request.gpus is not None else None
        setting = Setting(
            graph=graph,
            scheme=scheme_of(scheme_for(graph.model.spec, _format_of(request))),
            engine=engine_of(request.engine),
            hardware=cluster.hardware if cluster else None,
            kv_dtype_bytes=cache_dtype_bytes(request.kv_dtype),
            memory_fraction=request.memory_fraction,
            prefill_chunk=request.prefill_chunk,
            num_tiles=request.tiles(graph),
            train=request.training,
            max_num_seqs=request.max_num_seqs,
            host=_host(request, cluster, graph),
            with_module=request.draft_acceptance is not None,
        )
        context = request.tokens(graph)
        return cls(graph, request, cluster, setting, context, _sequences(request, cluster, context))

    def changed(self, *, num_gpus: int | None = None, **options: Any) -> "Deployment":
        """The deployment with other options, looking up only the changed names. Raises UserError as `resolve` does."""
        cluster = self.cluster
        if num_gpus is not None:
            assert cluster is not None, "without GPUs there is nothing to have more of"
            options["gpus"], cluster = f"{num_gpus}x{cluster.written}", resized(cluster, num_gpus)
            options |= dict.fromkeys(HOST_OPTIONS)  # for one GPU alone
        elif "gpus" in options or "engine" in options:
            return Deployment.resolve(self.graph, self.request.changed(**options))
        request = self.request.changed(**options)
        check(request, self.graph)
        setting = self.setting
        if "quantization" in options or "mode" in options:
            setting = setting._replace(scheme=scheme_of(scheme_for(self.graph.model.spec, _format_of(request))))
        setting = setting._replace(
            kv_dtype_bytes=cache_dtype_bytes(request.kv_dtype),
            memory_fraction=request.memory_fraction,
            prefill_chunk=request.prefill_chunk,
            num_tiles=request.tiles(self.graph),
            train=_as_trained(request, setting.train),
            max_num_seqs=request.max_num_seqs,
            host=_host(request, cluster, self.graph),
            with_module=request.draft_acceptance is not None,
        )
        context = request.tokens(self.graph)
        return Deployment(self.graph, request, cluster, setting, context, _sequences(request, cluster, context))

    @property
    def gpus_per_host(self) -> int:
        """Devices that share a host; without a cluster, all of them."""
        return self.cluster.gpus_per_host if self.cluster else LARGEST

    @property
    def output_tokens(self) -> int | None:
        """Output tokens of each request; None if a batch is timed by itself."""
        return self.request.output_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of each prompt."""
        return max(1, self.context - (self.output_tokens or 0))


def _as_trained(request: PlanRequest, before: "TrainSetting | None") -> "TrainSetting | None":
    """Training as the request has it, with the trained tensors, modules and reference of a recipe's phase."""
    train = request.training
    if train is None or before is None:
        return train
    return replace(
        train, trainable=before.trainable, with_modules=before.with_modules, with_reference=before.with_reference
    )


def _sequences(request: PlanRequest, cluster: Cluster | None, context: int) -> int:
    """Sequences: as given, or for a training step on GPUs the usual number of such runs."""
    if request.mode == "serve" or cluster is None or "batch" in request.model_fields_set:
        return request.sequences
    return chosen_batch(context, cluster.num_gpus)


def _format_of(request: PlanRequest) -> str:
    """The requested scheme. Training has unquantized weights, however the published ones are stored."""
    published_in_training = request.mode == "train" and request.quantization == AS_PUBLISHED
    return UNQUANTIZED if published_in_training else request.quantization


def _host(request: PlanRequest, cluster: Cluster | None, graph: LayerGraph) -> "HostMemory | None":
    """The host's memory of a request; None without it.

    Raises UserError for more than one GPU, and if the bandwidth between GPU and host memory is unknown.
    """
    if request.host_memory is None or cluster is None:
        return None
    if cluster.num_gpus > 1:
        message = f"is planned for one GPU, and {cluster} has {cluster.num_gpus}"
        raise UserError([Problem(message, path="host_memory", hint=f"--gpus 1x{cluster.written}")])
    from planners.device.host_memory import ASSUMED_BANDWIDTH, HostMemory

    given = request.host_bandwidth
    return HostMemory(
        part=request.on_host or ("experts" if has_experts(graph) else "layers"),
        num_bytes=parse_bytes(request.host_memory),
        bandwidth=ASSUMED_BANDWIDTH if given is None else float(parse_quantity(given, "B/s")),
        bandwidth_given=given is not None,
        link=cluster.hardware.host_memory_bandwidth().value,
    )
