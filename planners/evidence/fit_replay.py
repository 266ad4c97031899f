"""Published claims that a model fits, or how long its context may be, as predictions: 1 where it fits, 0 where not."""

import re

from l4spec.errors import UserError
from planners.evidence.deployments import graph_of, hardware_of, model_of
from planners.evidence.rows import Row
from planners.plan import plan

METRICS = ("fits", "max_context_reported", "max_context_recommended")
_FORMATS = {"bf16": "bf16", "fp8": "fp8", "int4": "int4"}
_GPUS = {"80GB GPU": "h100-sxm"}
"""GPUs that claims name by their memory alone."""
_ENGINES = (("SGLang", "sglang-hybrid"), ("vLLM", "vllm"), ("vllm", "vllm"))


def predict_fit(row: Row) -> float | str:
    """1 if the model fits with the row's context, else 0; of a context the same, in tokens; or why there is none."""
    if row.metric not in METRICS:
        return "the GPUs and the context are not published in the row"
    name, device = model_of(row), hardware_of(row) or _GPUS.get(row.hardware)
    scheme = _FORMATS.get(row.precision_weights)
    if name is None or device is None or scheme is None:
        return "model, hardware or number format is not in the catalogue, or the row contradicts its own notes"
    context, share = row.number("isl"), re.search(r"util(?:ization)? (0?\.\d+)", row.notes)
    try:
        planned = plan(
            graph_of(name),
            gpus=f"{row.number('n_gpus') or 1}x{device}",
            quantization=scheme,
            kv_dtype=row.precision_kv,
            engine=next((engine for text, engine in _ENGINES if text in row.source), "vllm"),
            memory_fraction=float(share[1]) if share else None,
            **({} if context is None else {"context": context}),
        )
    except UserError as error:
        return str(error.problems[0])
    return (context or 1) * float(bool(planned.fits))
