"""FLOPs of a model's mathematics (model FLOPs)."""

from l4spec.graph.adapters import Lora, adapted, has_place
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import AttentionPairs, Elementwise, Matmul, Work
from planners.counts.cost_sheet import CostRow, PassTokens, row_of_group
from planners.plan_types import Flops


@kept_with(maxsize=1024)
def count_flops(
    graph: LayerGraph, *, context: int, batch: int, prompt: int | None = None, lora: Lora | None = None
) -> Flops:
    """`model_flops` of the usual passes: multiply-adds count 2, only attended pairs and chosen experts count.

    Norms, softmax, rotations and activations are left out by convention. The first `prompt` tokens of the context are
    prefilled; None: all of them. With `lora` the step of training is that of adapters on a frozen model.
    """
    step = Work(batch, context, phase="train")
    forward, pair, tile = _rates(graph)
    return Flops(
        forward_per_token=forward,
        attention_per_pair=pair,
        prefill=model_flops(graph, Work(batch, prompt or context, phase="prefill", num_logits=min(1, context))),
        decode=model_flops(graph, Work(batch, 1, max(context - 1, 0), phase="decode")),
        train_step=3 * model_flops(graph, step) if lora is None else lora_flops(graph, step, lora),
        vision_per_tile=tile,
    )


def lora_flops(graph: LayerGraph, work: Work, lora: Lora) -> int:
    """FLOPs of a training step of adapters: as `model_flops` three times, without gradients of frozen weights.

    The gradient of the embedding's result counts, as `enable_input_require_grads` of transformers makes it.
    """
    rows = _rows(graph, PassTokens(work))
    frozen = sum(row.group.count * op.flops for row in rows for op in row.operations if isinstance(op, Matmul))
    pairs = (
        (group.count, pair)
        for group in _computing_groups(graph, "text")
        if has_place(group.first)
        for pair in adapted(group.declaration, work, lora)
    )
    own = sum(count * op.flops for count, pair in pairs for op in pair.matmuls)
    return 3 * model_flops(graph, work) - frozen + 3 * own


def model_flops(graph: LayerGraph, text: Work, num_tiles: int = 0) -> int:
    """FLOPs of one forward pass over `text` and `num_tiles` image tiles."""
    return sum(row.flops for row in _rows(graph, PassTokens(text, num_tiles)))


def _rows(graph: LayerGraph, workload: PassTokens) -> list[CostRow]:
    """The cost sheet's rows that can have FLOPs and have work to do."""
    scopes = ("text", "vision") if workload.num_tiles else ("text",)
    return [row_of_group(graph, group, workload) for scope in scopes for group in _computing_groups(graph, scope)]


@kept_with(maxsize=128)
def _computing_groups(graph: LayerGraph, scope: str) -> tuple[LayerGroup, ...]:
    """Groups with a matmul or attention among their operations."""
    work = Work(1, 1)
    return tuple(
        group
        for group in graph.groups
        if group.first.scope == scope
        and not all(isinstance(op, Elementwise) for op in group.declaration.operations(work))
    )


@kept_with(maxsize=64)
def _rates(graph: LayerGraph) -> tuple[int, int, int | None]:
    """FLOPs of one token without attention pairs, of one pair in every text layer, and of one image tile.

    A pair costs 2 * num_heads * (qk_dim + v_dim), summed over layers.
    """
    rows = _rows(graph, PassTokens(Work(1, 1)))
    forward = sum(row.group.count * row.matmul_flops for row in rows)
    pair = sum(
        row.group.count * op.flops // op.pairs
        for row in rows
        for op in row.operations
        if isinstance(op, AttentionPairs) and op.pairs
    )
    tile = None if graph.model.vision is None else model_flops(graph, Work(0, 0), num_tiles=1)
    return forward, pair, tile
