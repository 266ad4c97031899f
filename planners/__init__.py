"""The cost planner: cost of a model, and its fit on a deployment.

`planners.plan("scout", gpus="8xH100")` answers; `PlanRequest` holds its options, those of training among them.
"""

from l4spec.sharding.layout import Layout
from planners.device.training_state import TrainSetting
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest

__all__ = ["Layout", "Plan", "PlanRequest", "TrainSetting", "plan"]


def __dir__() -> list[str]:
    return sorted(__all__)
