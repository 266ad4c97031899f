"""`l4spec plan --emit`: the launch command or configuration of an engine for a plan."""

from collections.abc import Callable

from l4spec.deploy.k8s import emit_k8s, to_yaml
from l4spec.deploy.launch import Emission, LaunchRequest, refuse, to_shell
from l4spec.deploy.sbatch import to_sbatch
from l4spec.deploy.sglang import emit_sglang
from l4spec.deploy.tensorrt_llm import emit_tensorrt_llm
from l4spec.deploy.torchtitan import emit_torchtitan
from l4spec.deploy.vllm import emit_vllm
from planners.catalog.engine_formats import unsupported

EMITTERS: dict[str, Callable[[LaunchRequest], Emission]] = {
    "vllm": emit_vllm,
    "sglang": emit_sglang,
    "tensorrt-llm": emit_tensorrt_llm,
    "torchtitan": emit_torchtitan,
}
"""Engines that are launched by commands."""


def emit(engine: str, request: LaunchRequest) -> str:
    """The text to run or apply, its notes in comments. Raises UserError for what the engine cannot express."""
    if request.plan.layout.cp > 1 and request.plan.deployment.mode == "serve":
        refuse(engine, "it divides sequences among ranks for their prefill alone (cp)", "plan the serving without --cp")
    if request.plan.host_memory is not None:
        refuse(
            engine,
            "it keeps all weights on GPUs, and the plan puts some into host memory",
            "llama.cpp takes the option that `plan` prints",
        )
    if request.plan.drafts is not None:
        refuse(engine, "launches with drafts are not written", "plan it without --draft-acceptance, and add its option")
    launched = engine
    if engine in ("k8s", "sbatch"):
        launched = "vllm" if request.plan.deployment.mode == "serve" else "torchtitan"
    if reason := unsupported(launched, request.hardware, request.plan.deployment.quantization):
        refuse(engine, reason, "other GPUs, another engine or another --quantization")
    if engine == "sbatch":
        return to_sbatch(request)
    if engine == "k8s":
        objects, notes = emit_k8s(request)
        return to_yaml(objects, notes, request)
    return to_shell(EMITTERS[engine](request), request)


__all__ = ["EMITTERS", "Emission", "LaunchRequest", "emit"]
