"""The least number of GPUs of one kind that a model fits on."""

from dataclasses import dataclass

from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from planners.catalog import Hardware
from planners.catalog import engine as engine_of
from planners.catalog import quantization as quantization_of
from planners.counts.kv_cache import cache_dtype_bytes
from planners.counts.weights import scheme_of, weigh
from planners.device.memory import Setting, place
from planners.request import DEFAULT_PREFILL_CHUNK, Pinned
from planners.search.layouts import layouts_for

MAX_GPUS = 1024


@dataclass(frozen=True, slots=True)
class LeastGpus:
    """How many, and a layout that fits on them: the first of the legal ones, tensor parallelism widest."""

    num_gpus: int
    layout: Layout


def least_gpus(
    graph: LayerGraph,
    hardware: Hardware,
    *,
    quantization: str,
    kv_dtype: str,
    context: int,
    batch: int,
    engine: str,
) -> LeastGpus | None:
    """The least number of `hardware` on which some legal layout holds `batch` sequences of `context` tokens.

    Every number from the one that the weights alone need upwards is tried, because a larger number may allow fewer
    layouts. None when `MAX_GPUS` are not enough. Raises UserError for unknown names and schemes that cannot pack.
    """
    scheme = scheme_of(quantization_of(quantization))
    setting = Setting(
        graph, scheme, engine_of(engine), hardware, cache_dtype_bytes(kv_dtype), None, DEFAULT_PREFILL_CHUNK
    )
    first = -(-weigh(graph, scheme).bytes // hardware.usable.num_bytes)
    for num_gpus in range(max(first, 1), MAX_GPUS + 1):
        legal, _ = layouts_for(setting, num_gpus, Pinned(), context)
        for layout in sorted(legal, key=lambda layout: (layout.dp, -layout.tp, layout.pp)):
            if place(setting, layout).fits(context, batch):
                return LeastGpus(num_gpus, layout)
    return None
