"""Plans leave nothing behind, however many there were. benchmarks/plan_speed.py measures time and memory at length."""

import gc
import tracemalloc
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path

import planners
from planners.plan import plan
from tests.planners.models import graph

MODELS = ("scout", "maverick", "llama-guard-4-12b", "mobilellm-r1-950m")


def plans(contexts: range) -> int:
    for name, context in product(MODELS, contexts):
        tp = 2 if name.startswith("mobilellm") else 8
        plan(graph(name), gpus=f"{tp}xH100", tp=tp, context=context)
    return len(contexts) * len(MODELS)


def test_memory_stays_flat_however_many_plans_there_were() -> None:
    plans(range(1, 1100))  # more than a cache of one graph holds
    tracemalloc.start()
    plans(range(1100, 1120))
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    count = plans(range(1120, 1170))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    # full caches replace about 1.8 kB a plan, of which the tracer sees the new and not the old; a plan is some 20 kB
    assert grown < count * 4000


def iter_modules(package: str) -> Iterator[str]:
    """Dotted names of every module of the planner but the scripts."""
    for path in sorted(Path(planners.__path__[0]).rglob("*.py")):
        parts = path.relative_to(planners.__path__[0]).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            yield ".".join((package, *parts))


def test_every_cache_of_the_planner_is_bounded() -> None:
    sizes: dict[str, int | None] = {}
    for module in iter_modules("planners"):
        for name, value in vars(import_module(module)).items():
            if hasattr(value, "cache_parameters"):
                sizes[f"{module}.{name}"] = value.cache_parameters()["maxsize"]
    assert len(sizes) >= 10
    assert all(size is not None and size <= 4096 for size in sizes.values()), sizes
