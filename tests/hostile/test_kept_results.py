"""However many fresh models are planned one after the other, memory stays bounded: nothing outlives its graph."""

import gc
import resource
import sys
from pathlib import Path
from random import Random

import pytest

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from planners.plan import plan
from tests.hostile.draws import IS_EXHAUSTIVE, size
from tests.hostile.test_documents import model

NUM_PLANS = 20_000 if IS_EXHAUSTIVE else 60
MOST_BYTES = 300_000_000


def fresh_graph(random: Random) -> LayerGraph:
    """A model that nobody has planned before, with up to 10,000 layers and 300 different parts."""
    count = size(random, 300)
    width = size(random, 4096)
    parts = "".join(f"    p{i}: {{kind: mlp, intermediate_size: {width + i}}}\n" for i in range(count))
    layers = "".join(f"    - {{attention: a, ffn: p{i}}}\n" for i in range(count))
    if random.random() < 0.1:
        layers += f"    - {{attention: a, ffn: p0, repeat: {size(random, 2000)}}}\n"
    return l4spec.compile(parse_spec(read_text(model(parts=parts, layers=layers), "fresh.yaml")))


def planned(random: Random) -> None:
    """One plan of a fresh model on a drawn cluster."""
    graph = fresh_graph(random)
    mode = "train" if random.random() < 0.3 else "serve"
    plan(graph, gpus=f"{size(random, 64)}x{random.choice(['H100', 'B200', 'RTX-4090'])}", batch=64, mode=mode)


def num_graphs() -> int:
    """Graphs that are alive: those of this module, and of tests that ran in this process before."""
    gc.collect()
    return sum(type(thing) is LayerGraph for thing in gc.get_objects())


def test_plans_of_fresh_models_leave_little_behind() -> None:
    random = Random(8)
    planned(random)
    before = num_graphs()
    for number in range(NUM_PLANS):
        planned(random)
        if number % 50 == 0:
            gc.collect()
    assert num_graphs() - before < 20, "graphs are kept alive by what was worked out about them"
    if IS_EXHAUSTIVE and "pytest-xdist" not in sys.modules:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST_BYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_hundred_large_fresh_models_fit_into_what_few_take() -> None:
    random = Random(9)

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    text = model(layers="    - {attention: a, ffn: f, repeat: 10000}\n")
    before = resident()
    for _ in range(100 if IS_EXHAUSTIVE else 6):
        one = text.replace("hidden_size: 24", f"hidden_size: {24 + size(random, 4000)}")
        plan(l4spec.compile(parse_spec(read_text(one, "large.yaml"))), gpus="8xH100")
    assert resident() - before < 120_000_000  # three such models at a time, of some 40 MB each
