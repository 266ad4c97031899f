"""Whether this machine has room for all ranks of a run: asked before any of them starts. Knows no torch on a CPU."""

from math import prod

from l4spec.errors import Problem, UserError
from l4spec.runtime.memory_check import ITEM_BYTES, free_bytes
from l4spec.runtime.parallel.run.job import Job
from l4spec.sharding.layout import Layout, place_of
from l4spec.sharding.rules import MESH_AXIS, region_of, stage_of

_COPIES_TO_TRAIN = 4
"""Weights, gradients and AdamW's two moments, all in the weights' format and divided among data ranks alike."""


def held_bytes(job: Job) -> int:
    """Bytes of weights that all ranks hold together, with gradients and moments when training; no activations."""
    size = ITEM_BYTES[job.number_format] * (_COPIES_TO_TRAIN if job.steps else 1)
    return size * sum(_elements(job, rank) for rank in range(job.layout.num_devices))


def _elements(job: Job, rank: int) -> int:
    layout, place, total = job.layout, place_of(job.layout, rank), 0
    for node, parameter in job.graph.parameters():
        if parameter.tied_to is None and stage_of(job.graph, node, layout.pp) == place.pp:
            held = prod(map(len, region_of(node, parameter, layout, place)))
            is_expert = any(MESH_AXIS.get(dim.axis) == "ep" for dim in parameter.dims)
            total += held // _sharers(layout, is_expert) if job.steps else held
    return total


def _sharers(layout: Layout, is_expert: bool) -> int:
    return layout.dp if is_expert else layout.dp * layout.ep


def require_room(job: Job) -> None:
    """Raise UserError for ranks that need more memory than is free here."""
    if job.device != "cpu":
        return
    needed, free = held_bytes(job), free_bytes("cpu")
    if free is not None and needed > free:
        message = f"{job.layout.num_devices} ranks need at least {needed / 2**30:.2f} GiB, {free / 2**30:.2f} are free"
        raise UserError([Problem(message, hint="try --scale tiny, or --layers")])
