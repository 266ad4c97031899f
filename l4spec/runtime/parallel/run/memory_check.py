"""Memory check before ranks start: whether this machine has room for all of them. Imports no torch on a CPU."""

from math import prod

from l4spec.errors import Problem, UserError
from l4spec.runtime.memory_check import ITEM_BYTES, free_bytes
from l4spec.runtime.parallel.run.task import Task
from l4spec.sharding.layout import Layout, place_of
from l4spec.sharding.rules import MESH_AXIS, region_of, stage_of
from l4spec.units import gib


def rank_weight_bytes(task: Task) -> int:
    """Bytes of weights that all ranks hold together, with gradients and moments when training; no activations."""
    size = ITEM_BYTES[task.number_format] * task.copies
    return size * sum(_elements(task, rank) for rank in range(task.layout.num_devices))


def _elements(task: Task, rank: int) -> int:
    layout, place, total = task.layout, place_of(task.layout, rank), 0
    for node, parameter in task.graph.parameters():
        if parameter.tied_to is None and stage_of(task.graph, node, layout.pp) == place.pp:
            count = prod(map(len, region_of(node, parameter, layout, place)))
            is_expert = any(MESH_AXIS.get(dim.axis) == "ep" for dim in parameter.dims)
            total += count // _sharers(layout, is_expert) if task.copies > 1 else count
    return total


def _sharers(layout: Layout, is_expert: bool) -> int:
    return layout.dp if is_expert else layout.dp * layout.ep


def require_room(task: Task, beside: int = 0) -> None:
    """Raise UserError for ranks that need more memory than is free here; `beside` are bytes besides weights, of all."""
    if task.device != "cpu":
        return
    needed, free = rank_weight_bytes(task) + beside, free_bytes("cpu")
    if free is not None and needed > free:
        message = f"{task.layout.num_devices} ranks need at least {gib(needed)}, {gib(free)} are free"
        raise UserError([Problem(message, hint="try --scale tiny, or --layers")])
