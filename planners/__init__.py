"""The cost planner: what a layer graph costs, and whether it fits a deployment."""

from planners.plan import plan
from planners.plan_types import Plan

__all__ = ["Plan", "plan"]
