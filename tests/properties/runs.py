"""What a run of a random model shows, for the laws that hold the plan against it."""

from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from unittest.mock import patch

import torch

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.runtime.build import build
from l4spec.runtime.measure.flops import counting_flops
from l4spec.runtime.measure.run import RunMeasurement, RunShape, Stage, measure_run
from l4spec.runtime.model import Model
from planners.module.executed import executed_rows

ITEM_BYTES = {"fp32": 4, "bf16": 2}
CODE_WITH_BLOCKS = (
    "l4spec.layers.attention.walk.BLOCK",
    "l4spec.layers.attention.ledger.BLOCK",
    "l4spec.layers.attention.compute.BLOCK",
    "l4spec.layers.sparse_mla.module.BLOCK",
    "l4spec.layers.compressed_attention.pairs.BLOCK",
)


for _place in CODE_WITH_BLOCKS:  # a module first imported under a patch would keep the patched size for good
    import_module(_place.rpartition(".")[0])


def small_blocks(size: int) -> ExitStack:
    """Within the block, bands of attention have `size` queries, so that small runs have several."""
    stack = ExitStack()
    for place in CODE_WITH_BLOCKS:
        stack.enter_context(patch(place, size))
    return stack


def longest_prompt(graph: LayerGraph) -> int:
    """Tokens that the model can read at once: learned positions end somewhere."""
    learned = graph.model.text.position
    return 1000 if learned is None else learned.num_positions


def planned_flops(graph: LayerGraph, work: Work, num_tiles: int = 0) -> dict[str, int]:
    """Executed FLOPs by node id, of the nodes that have any."""
    rows = executed_rows(graph, work, num_tiles)
    return {node.id: row.flops_per_layer for row in rows if row.flops_per_layer for node in row.group.nodes}


def some(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts that are not 0."""
    return {name: count for name, count in counts.items() if count}


def tokens(model: Model, batch: int, length: int) -> torch.Tensor:
    """Random token ids, none of which is the place of an image."""
    vocab_size = model.graph.model.text.embedding.vocab_size
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


def decoded(model: Model, batch: int, pieces: list[int]) -> list[tuple[Work, dict[str, int]]]:
    """A prompt read piece by piece into a cache: the work of each piece, and the FLOPs that were counted."""
    cache, logits, start = model.new_cache(batch, sum(pieces)), [], 0
    for length in pieces:
        ids = tokens(model, batch, length)
        with counting_flops(model) as counted:
            model(ids, cache=cache, logits="last")
        logits.append((Work(batch, length, start, num_logits=1), some(counted)))
        start += length
    return logits


def measured(graph: LayerGraph, sample: RunShape, *stages: Stage, dtype: str = "fp32") -> RunMeasurement:
    """These stages of a measured run."""
    return measure_run(build(graph, dtype=dtype), sample, stages=stages)
