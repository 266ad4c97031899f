"""What a rank keeps of a forward pass for its backward pass is what the plan says, to the byte."""

from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout
from planners.device.activations import KeptOfLayer, kept_per_token
from tests.distributed.world import run_world
from tests.runtime.kept import kept_bytes
from tests.runtime.tiny import SWIGLU, gqa, graph_of, randomised, text_of, token_ids

SEQUENCES, TOKENS = 2, 32
WIDER = 2
"""The ranks compute in fp32, and the plan counts bf16."""
PARTS = {"a": gqa(mask={"kind": "causal"}), "f": SWIGLU}
Kept = dict[tuple[int, Checkpointing], int]


def kept_by_rank(_: int, layout: Layout) -> Kept:
    """Bytes by number of layers and kind of checkpointing."""
    kept: Kept = {}
    for num_layers in (2, 3):
        graph = graph_of(text_of(PARTS, [{"attention": "a", "ffn": "f", "repeat": num_layers}]))
        model = distribute(randomised(graph, dtype="fp32"), layout).train()
        ids = model.own_rows(token_ids(SEQUENCES, TOKENS))
        for model.checkpointing in CHECKPOINTING:
            kept[num_layers, model.checkpointing] = kept_bytes(model.run_stage, ids, besides=model.parameters())
    return kept


def planned(layout: Layout, checkpointing: Checkpointing) -> KeptOfLayer:
    graph = graph_of(text_of(PARTS, [{"attention": "a", "ffn": "f"}]))
    return kept_per_token(graph, layout.tp, layout.ep, checkpointing)[0]


def test_a_rank_of_tensor_parallelism_keeps_what_is_planned() -> None:
    """Of full checkpointing a layer's input, of selective all but the sums of softmaxes (fp32 in the plan too)."""
    layout = Layout(tp=2)
    for kept in run_world(2, kept_by_rank, layout):
        tokens = SEQUENCES * TOKENS
        assert kept[3, "full"] - kept[2, "full"] == tokens * planned(layout, "full").kept * WIDER
        saved = [kept[layers, "none"] - kept[layers, "selective"] for layers in (2, 3)]
        assert saved == [layers * tokens * planned(layout, "selective").again for layers in (2, 3)]
