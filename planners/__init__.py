"""The cost planner: cost of a model, and its fit on a deployment.

`planners.plan("scout", gpus="8xH100")` answers; `PlanRequest` holds its options, those of training among them.
"""

from typing import TYPE_CHECKING, Any

from l4spec.sharding.layout import Layout
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest

if TYPE_CHECKING:
    from planners.device.training_state import TrainSetting

__all__ = ["Layout", "Plan", "PlanRequest", "TrainSetting", "plan"]


def __getattr__(name: str) -> Any:
    """Import the settings of training on first access: plans of serving need none."""
    if name != "TrainSetting":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from planners.device.training_state import TrainSetting

    return TrainSetting


def __dir__() -> list[str]:
    return sorted(__all__)
