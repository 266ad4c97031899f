"""Base of the documents that the planner gives."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of a plan's parts: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
