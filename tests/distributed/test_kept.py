"""What a rank keeps of a forward pass for its backward pass is what the plan says, to the byte."""

import gc
import time

import pytest

from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.runtime.measure.memory import PeakMemory, tracking_memory
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout
from planners.device.activations import KeptOfLayer, kept_per_token
from tests.distributed.world import run_world
from tests.runtime.tiny import SWIGLU, gqa, graph_of, randomised, text_of, token_ids

SEQUENCES, TOKENS = 2, 32
WIDER, FP32 = 2, 4
"""The ranks compute in fp32, and the plan counts bf16."""
PARTS = {"a": gqa(mask={"kind": "causal"}), "f": SWIGLU}
Kept = dict[tuple[int, Checkpointing], int]


def kept_by_rank(_: int, layout: Layout, sequence_parallel: bool = False) -> Kept:
    """Bytes that are alive after a forward pass, by number of layers and kind of checkpointing."""
    kept: Kept = {}
    for num_layers in (2, 3):
        graph = graph_of(text_of(PARTS, [{"attention": "a", "ffn": "f", "repeat": num_layers}]))
        model = distribute(randomised(graph, dtype="fp32"), layout, sequence_parallel=sequence_parallel).train()
        ids = model.own_rows(token_ids(SEQUENCES, TOKENS))
        for model.checkpointing in CHECKPOINTING:
            with tracking_memory(model.device) as memory:
                logits = model.run_stage(ids)
            kept[num_layers, model.checkpointing] = settled(memory)
            del logits
    return kept


def settled(memory: PeakMemory) -> int:
    """Bytes alive once the threads that sent have dropped what they sent, and cycles are gone."""
    for _ in range(10):
        gc.collect()
        time.sleep(0.02)
    return memory.live_bytes


def planned(layout: Layout, checkpointing: Checkpointing, *, split: bool = False) -> KeptOfLayer:
    graph = graph_of(text_of(PARTS, [{"attention": "a", "ffn": "f"}]))
    return kept_per_token(graph, layout.tp, layout.ep, checkpointing, split=split)[0]


def of_layer(kept: Kept, checkpointing: Checkpointing) -> int:
    """What a third layer adds."""
    return kept[3, checkpointing] - kept[2, checkpointing]


def test_a_rank_of_tensor_parallelism_keeps_what_is_planned() -> None:
    """Of full checkpointing a layer's input, of selective all but the sums of softmaxes (fp32 in the plan too)."""
    layout, tokens = Layout(tp=2), SEQUENCES * TOKENS
    for kept in run_world(2, kept_by_rank, layout):
        assert of_layer(kept, "full") == tokens * planned(layout, "full").kept * WIDER
        assert of_layer(kept, "none") - of_layer(kept, "selective") == tokens * planned(layout, "selective").again


@pytest.mark.parametrize("tp", [2, 4])
def test_sequence_parallelism_keeps_a_share_of_the_stream(tp: int) -> None:
    """Of every layer as much less as is planned, and of what torch's two norms keep on a CPU beside their input.

    That is their result before the weight, and the inverse of each token's norm.
    """
    layout, tokens = Layout(tp=tp), SEQUENCES * TOKENS
    whole = run_world(tp, kept_by_rank, layout)[0]
    beside = 2 * (graph_of(text_of(PARTS, [{"attention": "a", "ffn": "f"}])).hidden_size + 1) * FP32
    for kept in run_world(tp, kept_by_rank, layout, True):
        assert of_layer(kept, "full") == tokens * planned(layout, "full", split=True).kept * WIDER
        for kind in ("none", "selective"):
            less = planned(layout, kind).kept - planned(layout, kind, split=True).kept
            assert (
                of_layer(whole, kind) - of_layer(kept, kind) == tokens * less * WIDER + (tokens - tokens // tp) * beside
            )
