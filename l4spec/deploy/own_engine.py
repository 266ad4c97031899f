"""By which engine's cache policy and memory share a launch is planned."""

from typing import TypeVar

from planners.request import PlanRequest

R = TypeVar("R", bound=PlanRequest)
OWN_ENGINE = {
    "vllm": "vllm-hybrid",
    "k8s": "vllm-hybrid",
    "sbatch": "vllm-hybrid",
    "sglang": "sglang-hybrid",
    "tensorrt-llm": "tensorrt-llm",
}
"""The engine of our catalogue that a launch starts."""


def by_own_engine(target: str, request: R) -> R:
    """The request by the engine that `target` starts, unless one is named or the model is trained."""
    if "engine" in request.model_fields_set or target not in OWN_ENGINE or request.mode != "serve":
        return request
    return request.changed(engine=OWN_ENGINE[target])
