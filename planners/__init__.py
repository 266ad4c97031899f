"""The cost planner: what a layer graph costs, and whether it fits a deployment.

`planners.plan(graph, gpus="8xH100")` answers; `PlanRequest` holds its options.
"""

from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest

__all__ = ["Plan", "PlanRequest", "plan"]
