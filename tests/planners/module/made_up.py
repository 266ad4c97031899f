"""A machine that nobody has: every piece takes its overhead and its share of a simple rate."""

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

from planners.catalog import Hardware

OVERHEAD = 1e-5
RATE = 1e10
AXES: dict[str, list[list[int]]] = {
    "product": [[1, 8, 64, 512], [64, 512, 4096], [64, 512, 4096]],
    "expert_product": [[1, 8, 64, 512], [64, 512, 4096], [64, 512, 4096]],
    "causal": [[2, 32], [16, 128, 1024], [32, 128]],
    "masked": [[2, 32], [32, 512], [64, 512, 2048], [32, 128]],
    "cached": [[1, 8], [1, 8], [32, 2048], [32, 512]],
    "norm": [[128, 2**16, 2**24], [32, 1024]],
    "route": [[1, 64, 4096], [4, 128], [1, 8]],
    "dispatch": [[2, 8192], [4, 128]],
}
STREAMS = ("add", "scale", "write", "gather", "fresh", "gate_silu", "gate_gelu", "gate_gelu_tanh")
ROTATIONS = ("rotate_pairs", "rotate_halves")


def _grid(axes: list[list[int]], seconds: Callable[..., float]) -> dict[str, Any]:
    hot = [seconds(*sizes) for sizes in product(*axes)]
    return {"axes": axes, "seconds": hot, "cold": [2 * second for second in hot]}


def made_up(*dtypes: str) -> Hardware:
    """Its profile for these number formats."""
    axes = AXES | {name: [[64, 2**14, 2**22]] for name in (*STREAMS, *ROTATIONS)}
    grids = {name: _grid(each, lambda *sizes: OVERHEAD + prod(sizes) / RATE) for name, each in axes.items()}
    constant = {"seconds": OVERHEAD, "cold": 2 * OVERHEAD}
    layers = dict.fromkeys(("gqa", "mla", "swiglu", "mlp", "moe", "rmsnorm", "add", "rotation"), constant)
    pieces = grids | {"expert": constant, "layer": layers, "forward": constant}
    source = "l4spec calibrate on paper"
    sizes = {name: {"value": 2**34, "source": source} for name in ("nominal", "physical")}
    return Hardware.model_validate(
        {
            "name": "this",
            "description": "a machine that nobody has",
            "memory": sizes | {"bandwidth": {"value": 2e10, "source": source}},
            "peaks": {dtype: {"value": 2e11, "source": source} for dtype in dtypes},
            "gpus_per_host": {"value": 1, "source": source},
            "eager": {
                "processor": "paper",
                "threads": 1,
                "torch": "0",
                "measured": "2026-11-25",
                "turns": 1,
                "resident": {dtype: {"bytes": [2**20, 2**26], "share": [0.0, 1.0]} for dtype in dtypes},
                "pieces": dict.fromkeys(dtypes, pieces),
            },
        }
    )
