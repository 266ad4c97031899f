"""The least number of GPUs of one kind that a model fits on."""

from dataclasses import dataclass

from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div
from planners.counts.weights import weigh
from planners.deployment import Deployment
from planners.device.memory import place
from planners.search.layouts import fits, layouts_for

MAX_GPUS = 1024


@dataclass(frozen=True, slots=True)
class LeastGpus:
    """Least number of GPUs, and a layout that fits on them: the first legal one, tensor parallelism widest."""

    num_gpus: int
    layout: Layout


def least_gpus(deployment: Deployment) -> LeastGpus | None:
    """The least number of the deployment's GPUs on which some legal layout holds its batch.

    Every number from the one that the weights alone need upwards is tried, because a larger number may allow fewer
    layouts. None when `MAX_GPUS` are not enough.
    """
    setting, context = deployment.setting, deployment.context
    assert setting.hardware is not None, "without hardware one device holds everything"
    first = ceil_div(weigh(setting.graph, setting.scheme).bytes, setting.hardware.usable.num_bytes)
    for num_gpus in range(max(first, 1), MAX_GPUS + 1):
        legal, _ = layouts_for(setting, num_gpus, deployment.request, context, deployment.batch)
        for layout in sorted(legal, key=lambda layout: (layout.dp, -layout.tp, layout.pp)):
            if fits(deployment, place(setting, layout)):
                return LeastGpus(num_gpus, layout)
    return None
